"""What is kept of an error: alike ones get one place, texts stay short, secrets stay out."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.observe import reports
from agentkit.observe.reports import ErrorGroup


def raised(function: Any, *args: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:
        function(*args)
    return caught.value


@pytest.mark.parametrize(
    ("word", "severity"),
    [("error", "error"), ("CRITICAL", "critical"), ("warn", "warning"), (" Fatal ", "critical"), ("high", "error"),
     ("medium", "warning"), ("low", "info"), ("debug", "info"), ("exception", "error")],
)  # fmt: skip
def test_severities_of_older_agents_are_understood(word: str, severity: str) -> None:
    assert reports.severity_of(word) == (severity, "")


@pytest.mark.parametrize("word", ["catastrophic", "", 7, None])
def test_an_unknown_severity_counts_as_error_and_says_so(word: object) -> None:
    severity, note = reports.severity_of(word)
    assert (severity, "taken as error" in note) == ("error", True)


def test_messages_that_differ_in_numbers_are_of_one_kind() -> None:
    first = reports.template(
        "host 17 of 0x7fe1 (550e8400-e29b-41d4-a716-446655440000) is away since 3.5 s, run deadbeef42"
    )
    assert first == reports.template(
        "host 4 of 0x1 (123e4567-e89b-12d3-a456-426614174000) is away since 81.25 s, run 00c0ffee17"
    )
    assert first != reports.template("host 4 is gone")


def test_a_raise_is_found_in_the_authors_own_code() -> None:
    def loads() -> None:
        json.loads("{")

    exc = raised(loads)
    line = loads.__code__.co_firstlineno + 1
    assert reports.where_of(exc).endswith(f"test_reports.py:{line}")
    assert reports.kind_of(exc) == "json.decoder.JSONDecodeError"
    assert "JSONDecodeError" in reports.trace_of(exc)


def test_an_exception_that_was_never_raised_is_nowhere() -> None:
    assert reports.where_of(ValueError("x")) == ""


def test_a_deep_recursion_leaves_a_short_traceback() -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1) + 1

    trace = reports.trace_of(raised(deeper, 0))
    assert len(trace) <= reports.MAX_TRACE
    assert "RecursionError" in trace


def test_secrets_are_hidden_by_value_by_name_and_in_urls() -> None:
    hide = ["hunter22"]
    context = reports.context_of(
        {"password": "a", "api_key": 5, "Authorization": ["b"], "note": "with hunter22 in it", "nested": {"x": "hunter22"},
         "url": "amqp://user:pw@host/"},
        hide,
    )  # fmt: skip
    assert context["password"] == context["api_key"] == context["Authorization"] == "***"
    assert (context["note"], context["url"]) == ("with *** in it", "amqp://***@host/")

    def fails() -> None:
        raise ValueError("hunter22")

    text = repr(context) + reports.trace_of(raised(fails), hide)
    assert "hunter22" not in text.replace('raise ValueError("hunter22")', "")


def test_a_secret_at_the_edge_of_a_long_text_is_hidden_too() -> None:
    text = "x" * (reports.MAX_MESSAGE - 4) + "hunter22"
    assert "hunt" not in reports.shown(text, reports.MAX_MESSAGE, ["hunter22"])


def test_what_steers_a_terminal_or_can_not_be_sent_is_taken_out() -> None:
    assert reports.shown("a\x1b[2Jb\ud800c\td\n", 99) == "a?[2Jb?c\td\n"


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


def test_a_context_of_anything_is_short_and_can_be_sent() -> None:
    context = reports.context_of(
        {"rude": Rude(), "list": list(range(10**6)), "bytes": b"x" * 10**6, "huge": 10**6000, "nan": float("nan"),
         "tuple": (Rude(),), "none": None, "text": "y" * 10**6, **{f"f{n}": n for n in range(100)}}
    )  # fmt: skip
    assert len(context) == reports.MAX_FIELDS
    assert context["none"] is None
    assert max(len(str(value)) for value in context.values()) <= reports.MAX_VALUE
    assert msgpack.unpackb(msgpack.packb(context)) == context == json.loads(json.dumps(context))


@given(st.text(), st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.none())))
def test_any_report_crosses_the_wire_and_stays_as_it_is(message: str, context: dict[str, Any]) -> None:
    group = ErrorGroup(
        severity="error",
        kind="report",
        where=reports.shown(reports.template(message), reports.MAX_WHERE),
        message=reports.shown(message, reports.MAX_MESSAGE),
        count=3,
        first_s=1.0,
        last_s=2.0,
        context=reports.context_of(context),
    )
    assert ErrorGroup.from_wire(msgpack.unpackb(msgpack.packb(group.to_wire()))) == group


@pytest.mark.parametrize(
    "wrong",
    [{"count": 0}, {"count": -5}, {"count": 2**60}, {"count": "many"}, {"first_s": float("inf")}, {"last_s": None},
     {"context": 5}],
)  # fmt: skip
def test_a_group_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    good = ErrorGroup(severity="error", kind="k", where="w", message="m", count=1).to_wire()
    with pytest.raises((TypeError, ValueError)):
        ErrorGroup.from_wire(good | wrong)


def test_a_group_from_the_wire_is_bounded_again() -> None:
    big = "x" * 10**6
    wire = {"severity": "fatal", "kind": big, "where": big, "message": big, "count": 1, "first_s": 9.0, "last_s": 1.0,
            "context": {f"{n}": big for n in range(1000)}, "trace": big}  # fmt: skip
    group = ErrorGroup.from_wire(wire)
    assert (group.severity, group.last_s) == ("critical", 9.0)
    assert len(str(group.to_wire())) < reports.MAX_TRACE + (reports.MAX_FIELDS + 8) * (reports.MAX_VALUE + 200)


def test_a_fingerprint_is_the_same_everywhere_and_tells_agents_apart() -> None:
    assert reports.fingerprint("m/a", "ValueError", "a.py:3") == "bf1bbcc48afbbc68"
    assert reports.fingerprint("m/b", "ValueError", "a.py:3") != reports.fingerprint("m/a", "ValueError", "a.py:3")
