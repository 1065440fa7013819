"""The keys in which two specs of an agent, or two fleets, differ: in the file's words, and never with a secret. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

from agentkit.observe.reports import is_secret_name, shown
from startup.spec.fleet import FOLLOWED, AgentSpec, AgentTarget, Dependency, Fleet, ProgramTarget, SecretRef

#: Characters of a value that are kept: a text that is longer is told by its beginning.
MAX_VALUE: Final = 200
#: In the place of what must not be shown.
HIDDEN: Final = "(hidden)"
#: A key that is not there.
NOTHING: Final = "-"

#: What a key is called in the fleet file, where that is not its name without the unit.
_WORDS: Final = {
    "klass": "class",
    "health_port": "health_check_port",
    "start_timeout_s": "start.timeout",
    "shutdown_grace_s": "shutdown.grace",
    "trace_sample": "trace.sample",
    "memory_limit_bytes": "limits.memory",
    "memory_request_bytes": "requests.memory",
    "cpu_limit": "limits.cpu",
    "tcp_port": "tcp",
    "http_url": "http",
    "log_regex": "log",
    "externals": "external",
}
#: Of an agent: who it is, and where its entry stands.
_AGENT_UNTOLD: Final = frozenset({"id", "source"})
#: Of a fleet: what is told otherwise, and what it never changes by.
_FLEET_UNTOLD: Final = frozenset({"agents", "cluster"})
#: These are never shown: a reference tells where a secret is, and the address of a webhook may hold one.
_NEVER: Final = re.compile(r"^secrets\.|^on_error\b.*\.url$")
#: `--token=x`, `--token x` and `?token=x`.
_ARGUMENT: Final = re.compile(r"^--?[\w-]*$|^--?[\w-]*=")
_QUERY: Final = re.compile(r"([?&][^=&\s]*?)([\w-]+)=([^&\s]+)")
_MISSING: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """One key, as people read it."""

    key: str
    old: str
    new: str
    is_followed: bool = False  #: a running process goes on as it is: the node acts on it, or the next start

    def to_wire(self) -> dict[str, Any]:
        return {"key": self.key, "old": self.old, "new": self.new}


def agent_keys(old: AgentSpec, new: AgentSpec) -> tuple[KeyChange, ...]:
    """In the order of the spec; ids are not compared."""
    return tuple(_compared(_of_agent(old), _of_agent(new)))


def fleet_keys(old: Fleet, new: Fleet) -> tuple[KeyChange, ...]:
    """Everything of the fleet but its agents."""
    return tuple(_compared(_of_fleet(old), _of_fleet(new)))


def _compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[KeyChange]:
    for key in dict.fromkeys((*old, *new)):  # in the order of the old, then what is new
        before, after = old.get(key, _MISSING), new.get(key, _MISSING)
        if before == after and type(before) is type(after):
            continue
        hides = _hides(key)
        first, second = (_text(key, value, hides=hides) for value in (before, after))
        yield KeyChange(key=_called(key), old=first, new=second, is_followed=key.partition(".")[0] in FOLLOWED)


def _of_agent(spec: AgentSpec) -> dict[str, Any]:
    return _flat({it.name: getattr(spec, it.name) for it in fields(spec) if it.name not in _AGENT_UNTOLD})


def _of_fleet(fleet: Fleet) -> dict[str, Any]:
    facts = {it.name: getattr(fleet, it.name) for it in fields(fleet) if it.name not in _FLEET_UNTOLD}
    for name in ("machines", "externals"):
        facts[name] = {
            it.name: {f.name: getattr(it, f.name) for f in fields(it) if f.name != "name"} for it in facts[name]
        }
    return _flat(facts)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings and values as one level, keys joined by dots; what is empty is left out."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        key = f"{prefix}{name}"
        value = _plain(value)
        if isinstance(value, Mapping):
            found |= _flat(value, f"{key}.")
        elif isinstance(value, list | tuple):
            each = [_plain(it) for it in value]
            if any(isinstance(it, Mapping | list | tuple) for it in each):
                found |= _flat({str(n): it for n, it in enumerate(each)}, f"{key}.")
            elif each:
                found[key] = each
        elif value not in (None, ""):
            found[key] = value
    return found


def _plain(value: Any) -> Any:
    match value:
        case AgentTarget(module=module, script=script, cls=cls):
            return ":".join(filter(None, (module or script, cls)))
        case ProgramTarget(argv=argv, script=script):
            return list(argv) if script is None else " ".join([script, *argv])
        case Dependency(name=name, required=required, condition=condition):
            # whom a name means changes with their number, not with this agent
            words = [condition] * (condition != "healthy") + ["optional"] * (not required)
            return f"{name} ({', '.join(words)})" if words else name
        case SecretRef(file=file, env=env, as_env=as_env):
            return f"{file} {env} {as_env}"  # compared, and not shown
    if is_dataclass(value) and not isinstance(value, type):
        return {it.name: getattr(value, it.name) for it in fields(value)}
    return value


def _called(key: str) -> str:
    """`restart.max_delay_s` is `restart.max_delay` in the file."""
    head, dot, rest = key.partition(".")
    if head in ("config", "env", "secrets"):
        return _cut(_printable(key))
    if head == "policy":
        return _called(rest)
    parts = [_WORDS.get(part) or part.removesuffix("_s").removesuffix("_bytes") for part in (head, *rest.split("."))]
    return ".".join(parts if dot else parts[:1])


def _hides(key: str) -> bool:
    return _NEVER.search(key) is not None or is_secret_name(key)


def _text(key: str, value: Any, *, hides: bool) -> str:
    if value is _MISSING:
        return NOTHING
    if hides:
        return HIDDEN
    name = key.rpartition(".")[2]
    is_ours = not key.startswith(("config.", "env."))
    if isinstance(value, bool):
        return "true" if value else "false"
    if is_ours and isinstance(value, int | float):
        if name.endswith("_s"):
            return _duration(value)
        if name.endswith("_bytes"):
            return _size(int(value))
    if isinstance(value, list):
        return _cut("[" + ", ".join(_arguments(value)) + "]")
    if isinstance(value, str):
        return _cut(_masked(_printable(value)))
    return _cut(str(value))


def _printable(text: str) -> str:
    """Quoted where a reader would not see what it is."""
    return text if text and text == text.strip() and text.isprintable() else json.dumps(text)


def _arguments(words: list[Any]) -> Iterator[str]:
    is_next_hidden = False
    for word in map(str, words):
        name = word.partition("=")[0]
        names_secret = _ARGUMENT.match(word) is not None and is_secret_name(name)
        if is_next_hidden and not word.startswith("-"):
            yield HIDDEN
        elif names_secret and "=" in word:
            yield f"{name}={HIDDEN}"
        else:
            yield _masked(_printable(word))
        is_next_hidden = names_secret and "=" not in word


def _masked(text: str) -> str:
    return _QUERY.sub(lambda it: f"{it[1]}{it[2]}={HIDDEN}" if is_secret_name(it[2]) else it[0], text)


def _cut(text: str) -> str:
    return shown(text, MAX_VALUE)


def _duration(seconds: float) -> str:
    if seconds and seconds < 1:
        return f"{seconds * 1000:g}ms"
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def _size(bytes_: int) -> str:
    for unit, size in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if bytes_ and bytes_ % size == 0:
            return f"{bytes_ // size}{unit}"
    return str(bytes_)
