"""What Consul's KV store says over the fleet file's `config:`. Pure.

    PREFIX/Agent/key        = 5          {"key": 5} for every slot of Agent, on all machines
    PREFIX/Agent/limits/max = "x"        {"limits": {"max": "x"}}
    PREFIX/Agent            = {"a": 1}   the same as PREFIX/Agent/a = 1

A value is JSON; what is no JSON is text, so that `hello` needs no quotes. Maps are merged, longer keys win over shorter ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from agentkit.names import is_name
from agentkit.settings import merged

#: Agent name -> config.
Overrides: TypeAlias = dict[str, dict[str, Any]]

#: Keys that are looked at, bytes of a value, depth of a key.
MAX_KEYS: Final = 10_000
MAX_VALUE_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 16


class Read(NamedTuple):
    overrides: Overrides
    problems: tuple[str, ...]  #: one line for each key that is left out


def read(items: Iterable[tuple[str, bytes]], prefix: str) -> Read:
    """`items`: whole keys and their values. A key that can't be used is left out; the others count."""
    overrides: Overrides = {}
    problems: list[str] = []
    for number, (key, value) in enumerate(sorted(items)):
        if number >= MAX_KEYS:
            problems.append(f"{prefix}: got more than {MAX_KEYS:,} keys; those from {key} on are left out")
            break
        try:
            path = _path(key, prefix)
            if path:
                agent, *rest = path
                overrides[agent] = _laid(overrides.get(agent, {}), rest, _value(value))
        except ValueError as exc:
            problems.append(f"{key}: {exc}")
    return Read(overrides, tuple(problems))


def _path(key: str, prefix: str) -> list[str]:
    """Empty: a folder's own key, which means nothing."""
    below = key.removeprefix(prefix).strip("/")
    if not below or key.endswith("/"):
        return []
    path = below.split("/")
    if len(path) > MAX_DEPTH:
        raise ValueError(f"got {len(path)} levels, want {MAX_DEPTH} at most")
    if not is_name(path[0]):
        raise ValueError(f"got {path[0][:80]!r} for an agent, want a letter, then letters, digits, _ . or -")
    return path


def _value(value: bytes) -> Any:
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"got {len(value):,} bytes, want {MAX_VALUE_BYTES:,} at most")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise ValueError("got something that is not UTF-8, want JSON or text") from None
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text


def _no_number(text: str) -> Any:
    raise ValueError(text)  # NaN and Infinity are no JSON


def _laid(config: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    if not path:
        if not isinstance(value, dict):
            raise ValueError(f"got {str(value)[:80]!r}, want a JSON object, as this is an agent's whole config")
        return merged(config, value)
    below: Any = value
    for name in reversed(path):
        below = {name: below}
    at: Any = config
    for depth, name in enumerate(path[:-1]):
        at = at.get(name, {})
        if not isinstance(at, Mapping):
            raise ValueError(  # noqa: TRY004 - all that is wrong with a key is told alike
                f"got a key below {'/'.join(path[: depth + 1])}, which has a value of its own; want one or the other"
            )
    return merged(config, below)
