"""Plain requests: what agents of today send over a REQ socket, turned into a method and arguments, and answers back.

One JSON or msgpack object after an empty frame. The verb stands in `action`, else `type`, else `command`. Pure: the inbox
finds the empty frame and sends the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from agentkit.errors import BadRequest, CallError
from agentkit.wire.values import Undecodable, clean_text, pack, to_plain, unpack

#: Where the verb may stand, first match wins.
VERB_KEYS: Final = ("action", "type", "command")
#: Keys about the message rather than for the handler.
META_KEYS: Final = frozenset({"source_agent", "request_id", "timestamp", "traceparent"})
#: An object under one of these, where it is the only other key, holds the arguments.
NESTED_KEYS: Final = ("payload", "data", "params")
#: Verbs that always work, also as bare text.
HEALTH_VERBS: Final = frozenset({"health_check", "health", "ping", "detailed_health"})


class Unreadable(BadRequest):
    """No plain request. What could be made out of it is used for the answer: its form, its `request_id`."""

    def __init__(self, message: str, *, is_json: bool = True, meta: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.is_json, self.meta = is_json, meta or {}


class PlainRequest(NamedTuple):
    """What a plain message asks for. `raw` is the whole object, for `handle_request`."""

    verb: str
    arguments: dict[str, Any]
    meta: dict[str, Any]
    raw: dict[str, Any]
    is_json: bool


def parse(body: bytes) -> PlainRequest:
    """Read one plain message; Unreadable says what a good one looks like."""
    message, is_json = _read(body)
    if isinstance(message, str) and message.lower() in HEALTH_VERBS:
        return PlainRequest(message.lower(), {}, {}, {"action": message}, is_json)
    if not isinstance(message, dict):
        raise Unreadable(
            f'a plain request is an object such as {{"action": "ping"}}, not a {type(message).__name__}',
            is_json=is_json,
        )
    verb_key = next((key for key in VERB_KEYS if isinstance(message.get(key), str)), None)
    if verb_key is None:
        raise Unreadable(
            'no verb: a plain request has a text under "action" (or "type", or "command")',
            is_json=is_json,
            meta={"request_id": message["request_id"]} if "request_id" in message else {},
        )
    meta: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for key, value in message.items():
        if key == verb_key:
            continue
        is_meta = isinstance(key, str) and (key in META_KEYS or key.startswith("_"))
        (meta if is_meta else arguments)[key] = value
    if len(arguments) == 1:
        (only,) = arguments
        if only in NESTED_KEYS and isinstance(arguments[only], dict):
            arguments = arguments[only]
    return PlainRequest(
        message[verb_key], {str(key): value for key, value in arguments.items()}, meta, message, is_json
    )


def success(result: Any, meta: Mapping[str, Any], *, is_json: bool) -> bytes:
    """The answer for a plain result: a dict is merged beside `status`, anything else stands under `result`."""
    answer = {"status": "success", **result} if isinstance(result, dict) else {"status": "success", "result": result}
    return _write(answer, meta, is_json)


def failure(error: CallError, meta: Mapping[str, Any], *, is_json: bool) -> bytes:
    """The answer for an error. `message` and `error` hold the same text: callers of today read either."""
    text = clean_text(error.message)
    answer = {"status": "error", "message": text, "code": error.code, "error": text}
    return _write(answer, meta, is_json)


def _read(body: bytes) -> tuple[Any, bool]:
    # An object in JSON begins with "{", which in msgpack is the integer 123: so the first byte decides.
    stripped = body.lstrip()
    if stripped[:1] in (b"{", b'"', b"["):
        try:
            return json.loads(body), True
        except (ValueError, RecursionError) as exc:
            raise Unreadable(f"not JSON: {exc}") from exc
    text = stripped.decode("ascii", "replace").strip()
    if text.lower() in HEALTH_VERBS:
        return text, True
    try:
        return unpack(body), False
    except Undecodable as exc:
        raise Unreadable("a plain request is one JSON or msgpack object") from exc


def _write(answer: dict[str, Any], meta: Mapping[str, Any], is_json: bool) -> bytes:
    if "request_id" in meta:
        answer["request_id"] = meta["request_id"]
    if not is_json:
        return pack(answer)
    return json.dumps(answer, default=_json_plain).encode()


def _json_plain(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    return to_plain(value)
