"""Plain REQ messages: each rule of docs/protocol.md once, without sockets."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import uuid
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import NotFound
from agentkit.wire import plain, values

VECTORS = json.loads((Path(__file__).parent / "vectors/ak1.json").read_text())["plain"]


def parsed(message: Any) -> plain.PlainRequest:
    """`message` read as JSON and as msgpack, which must come to the same."""
    as_json = plain.parse(json.dumps(message).encode())
    as_msgpack = plain.parse(msgpack.packb(message))
    assert as_json.is_json
    assert not as_msgpack.is_json
    assert as_json[:4] == as_msgpack[:4]
    return as_json


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_vector_is_read_as_it_says(vector: dict[str, Any]) -> None:
    asked = plain.parse(vector["request"].encode())
    assert (asked.verb, asked.arguments, asked.meta) == (vector["verb"], vector["arguments"], vector["meta"])


def test_the_verb_is_action_else_type_else_command() -> None:
    assert parsed({"command": "c", "type": "t", "action": "a"}).verb == "a"
    assert parsed({"command": "c", "type": "t"}).verb == "t"
    assert parsed({"command": "c"}).verb == "c"
    assert parsed({"action": 5, "type": "t"}).verb == "t"


def test_a_verb_key_that_is_not_the_verb_is_an_argument() -> None:
    assert parsed({"action": "a", "type": "t"}).arguments == {"type": "t"}


def test_source_request_id_timestamp_and_underscored_keys_are_meta() -> None:
    asked = parsed({"action": "a", "source_agent": "X", "request_id": 7, "timestamp": 1.5, "_trace": "t", "n": 1})
    assert asked.meta == {"source_agent": "X", "request_id": 7, "timestamp": 1.5, "_trace": "t"}
    assert asked.arguments == {"n": 1}


@pytest.mark.parametrize("key", ["payload", "data", "params"])
def test_a_nested_object_is_merged_where_it_is_the_only_other_key(key: str) -> None:
    assert parsed({"action": "a", key: {"n": 1}, "request_id": 3}).arguments == {"n": 1}
    assert parsed({"action": "a", key: {"n": 1}, "m": 2}).arguments == {key: {"n": 1}, "m": 2}
    assert parsed({"action": "a", key: [1]}).arguments == {key: [1]}


def test_another_nested_object_is_not_merged() -> None:
    assert parsed({"action": "a", "body": {"n": 1}}).arguments == {"body": {"n": 1}}


def test_the_whole_message_is_kept_for_handle_request() -> None:
    message = {"action": "a", "payload": {"n": 1}, "request_id": 3}
    assert parsed(message).raw == message


@pytest.mark.parametrize("verb", sorted(plain.HEALTH_VERBS))
@pytest.mark.parametrize("form", ["{}", '"{}"', "  {}\n"])
def test_health_verbs_work_as_bare_text(verb: str, form: str) -> None:
    assert plain.parse(form.format(verb).encode()).verb == verb
    assert plain.parse(form.format(verb.upper()).encode()).verb == verb


def test_health_verbs_work_as_bare_msgpack() -> None:
    asked = plain.parse(msgpack.packb("ping"))
    assert (asked.verb, asked.is_json) == ("ping", False)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "one JSON or msgpack object"),
        (b"hello", "one JSON or msgpack object"),
        (b"\x05", "not a int"),
        (b"[1, 2]", "not a list"),
        (b'{"action": ', "not JSON"),
        (b'{"title": "x"}', "no verb"),
        (b'{"action": {"a": 1}}', "no verb"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_plain_request_is_told_what_one_looks_like(body: bytes, says: str) -> None:
    with pytest.raises(plain.Unreadable, match=says):
        plain.parse(body)


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(plain.Unreadable):
        plain.parse(body)


def test_a_refused_msgpack_object_is_answered_as_msgpack_with_its_request_id() -> None:
    with pytest.raises(plain.Unreadable) as caught:
        plain.parse(msgpack.packb({"title": "x", "request_id": "r9"}))
    error = caught.value
    answer = values.unpack(plain.failure(error, error.meta, is_json=error.is_json))
    assert (answer["status"], answer["code"], answer["request_id"]) == ("error", "bad_request", "r9")


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_json", [True, False])
def test_a_dict_result_is_merged_beside_status_and_anything_else_stands_under_result(is_json: bool) -> None:
    def answered(result: Any) -> Any:
        answer = plain.success(result, {"request_id": "r1", "source_agent": "X"}, is_json=is_json)
        return json.loads(answer) if is_json else values.unpack(answer)

    assert answered({"n": 1}) == {"status": "success", "n": 1, "request_id": "r1"}
    assert answered([1, 2]) == {"status": "success", "result": [1, 2], "request_id": "r1"}
    assert answered(None) == {"status": "success", "result": None, "request_id": "r1"}


def test_a_result_may_say_its_own_status_as_answers_of_today_do() -> None:
    assert json.loads(plain.success({"status": "error", "error": "no"}, {}, is_json=True))["status"] == "error"


def test_no_request_id_is_made_up() -> None:
    assert json.loads(plain.success(1, {}, is_json=True)) == {"status": "success", "result": 1}


@pytest.mark.parametrize("is_json", [True, False])
def test_a_failure_has_message_code_and_error(is_json: bool) -> None:
    answer = plain.failure(NotFound("no task 7"), {"request_id": 4}, is_json=is_json)
    assert (json.loads(answer) if is_json else values.unpack(answer)) == {
        "status": "error", "message": "no task 7", "error": "no task 7", "code": "not_found", "request_id": 4,
    }  # fmt: skip


def test_json_answers_hold_what_json_has_no_form_for() -> None:
    value = {"when": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "id": uuid.UUID(int=1), "raw": b"ab\xff", "set": {1}}
    assert json.loads(plain.success(value, {}, is_json=True)) == {
        "status": "success", "when": "2026-01-01T00:00:00+00:00", "id": str(uuid.UUID(int=1)), "raw": "ab\ufffd", "set": [1],
    }  # fmt: skip


def test_a_failure_with_half_characters_can_be_sent_either_way() -> None:
    for is_json in (True, False):
        assert plain.failure(NotFound("file \udcff"), {}, is_json=is_json)
