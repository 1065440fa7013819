"""Each entry of a file with its defaults merged in, its machine and its class known: what comes before ports and names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from agentkit.names import AgentId, AgentName, MachineName
from startup.spec.draft import Entry
from startup.spec.fields import Model
from startup.spec.model import AgentSettings, FileModel
from startup.spec.parse import Parsed
from startup.spec.problem import Problem, did_you_mean
from startup.spec.verdict import Order

#: Its agents may use forbidden ports, and it has no range unless the file gives it one.
GATEWAY: Final = "gateway"
FALLBACK_CLASS: Final = "standard"

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry with its machine, merged settings and class known: what comes before ports and names."""

    entry: Entry
    settings: AgentSettings
    machine: MachineName
    klass: str
    klass_is_explicit: bool

    def id(self, slot: int = 0) -> AgentId:
        return AgentId(self.machine, AgentName(self.entry.name), slot)


def project_root_of(parsed: Parsed, path: Path) -> Path:
    """Absolute; a relative one counts from the file that says it."""
    where = parsed.settings.places.get("project_root")
    base = (Path(where.file) if where else path).resolve().parent
    return (base / Path(parsed.file.project_root).expanduser()).resolve()


def order_of(settings: AgentSettings, project_root: Path) -> Order | None:
    """What has to be looked at before the agent's target is known; None for commands."""
    if settings.agent is not None:
        module, _, cls = settings.agent.partition(":")
        return Order(project_root=str(project_root), module=module, cls=cls)
    if settings.script_path is not None:
        script, its_class = split_script(settings.script_path)
        path = (project_root / Path(script).expanduser()).resolve()
        return Order(project_root=str(project_root), script=str(path), cls=its_class)
    return None


def split_script(text: str) -> tuple[str, str | None]:
    """`a/b.py:Class` as (`a/b.py`, `Class`); the class may be missing."""
    path, colon, cls = text.rpartition(":")
    return (path, cls) if colon and cls.isidentifier() else (text, None)


def members_of(parsed: Parsed, problems: list[Problem]) -> tuple[Member, ...]:
    """Each entry with defaults merged in, on a machine that exists, in a class that exists."""
    return tuple(member for entry, own in parsed.agents if (member := _member(parsed.file, entry, own, problems)))


def _member(file: FileModel, entry: Entry, own: AgentSettings, problems: list[Problem]) -> Member | None:
    settings = overlaid(own, file.defaults)
    machine = settings.machine or (next(iter(file.machines)) if len(file.machines) == 1 else "")
    if machine not in file.machines:
        known = ", ".join(file.machines)
        problems.append(
            Problem(
                check="unknown-machine", place=str(entry.place_of("machine")), at=f"{entry.at}.machine",
                found=f"the machine `{machine}`" if machine else "no machine", want=f"one of `machines`: {known}",
                fix=did_you_mean(machine, file.machines) if machine else "",
            )
        )  # fmt: skip
        return None
    explicit = settings.class_ or entry.group_class
    known_classes = (*file.port_ranges, GATEWAY)
    if explicit is not None and explicit not in known_classes:
        problems.append(
            Problem(
                check="unknown-class", place=str(entry.place_of("class")), at=f"{entry.at}.class", found=f"the class `{explicit}`",
                want=f"one of {', '.join(known_classes)}",
                fix=did_you_mean(explicit, known_classes) or "or give it a range in `port_ranges`",
            )
        )  # fmt: skip
        explicit = None
    klass = explicit or (entry.group if entry.group in file.port_ranges else FALLBACK_CLASS)
    return Member(
        entry=entry, settings=settings, machine=MachineName(machine), klass=klass, klass_is_explicit=explicit is not None
    )  # fmt: skip


def overlaid(own: M, default: M) -> M:
    """`own`, with what it does not say taken from `default`: models key by key, mappings entry by entry."""
    if not default.model_fields_set:
        return own
    values: dict[str, Any] = {}
    for name in default.model_fields_set - own.model_fields_set:
        values[name] = getattr(default, name)
    for name in default.model_fields_set & own.model_fields_set:
        mine, theirs = getattr(own, name), getattr(default, name)
        if isinstance(mine, Model) and type(mine) is type(theirs):
            values[name] = overlaid(mine, theirs)
        elif isinstance(mine, dict) and isinstance(theirs, dict):
            values[name] = {**theirs, **mine}
    return own.model_copy(update=values)
