"""A file taken apart: its settings, and one Entry per agent, wherever it stood. The older shapes end here too (legacy.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from startup.spec.model import AgentSettings
from startup.spec.problem import Problem, did_you_mean
from startup.spec.source import Place, Table

#: An entry has exactly one of these: it says what to run.
TARGET_KEYS: Final = ("agent", "script_path", "command")
AGENT_KEYS: Final = frozenset(info.alias or name for name, info in AgentSettings.model_fields.items())


@dataclass(slots=True, kw_only=True)
class Entry:
    """One agent as written."""

    group: str
    name: str
    keys: Table
    at: str  #: "agent_groups.core.TaskManager"
    place: Place
    group_class: str | None = None
    older: bool = False  #: from an older shape: port ranges are no law for it

    def place_of(self, *path: str | int) -> Place:
        """Of a key, or of the entry itself where it has no such key."""
        return self.keys.place_of(*path) if path and path[0] in self.keys else self.place


@dataclass(slots=True, kw_only=True)
class Draft:
    """`settings` are the top-level keys without `agent_groups`."""

    settings: Table
    entries: list[Entry] = field(default_factory=list)


def drafted(document: Table, problems: list[Problem]) -> Draft:
    """Take an ordinary document apart; what is no agent is a problem."""
    settings = Table(document.place)
    for key in document:
        if key != "agent_groups":
            settings.take(key, document)
    draft = Draft(settings=settings)
    groups = document.get("agent_groups")
    if not isinstance(groups, Table):
        place = document.place_of("agent_groups")
        found = "no agents" if groups is None else f"{groups!r}"
        problems.append(
            Problem(check="no-agents", place=str(place), at="agent_groups", found=found, want="groups of agents")
        )
        return draft
    for group, members in groups.items():
        at = f"agent_groups.{group}"
        if isinstance(members, Table):
            _group(draft, group, members, at, problems)
        else:
            found = "nothing in the group" if members is None else f"{members!r}"
            fix = "remove the group" if members is None else ""
            problems.append(
                Problem(
                    check="no-agent",
                    place=str(groups.places[group]),
                    at=at,
                    found=found,
                    want="agents: NAME: {...}",
                    fix=fix,
                )
            )
    if not draft.entries and not problems:
        place = document.place_of("agent_groups")
        problems.append(
            Problem(check="no-agents", place=str(place), at="agent_groups", found="no agents", want="at least one")
        )
    return draft


def _group(draft: Draft, group: str, members: Table, at: str, problems: list[Problem]) -> None:
    group_class = members.get("class") if isinstance(members.get("class"), str) else None
    for name, keys in members.items():
        if name == "class" and group_class is not None:
            continue
        place = members.places[name]
        if isinstance(keys, Table) and any(target in keys for target in TARGET_KEYS):
            entry = Entry(group=group, name=name, keys=keys, at=f"{at}.{name}", place=place, group_class=group_class)
            draft.entries.append(entry)
        else:
            problems.append(_no_agent(name, keys, f"{at}.{name}", place))


def _no_agent(name: str, keys: object, at: str, place: Place) -> Problem:
    want = "one of `agent`, `script_path`, `command`: what to run"
    if not isinstance(keys, Table):
        found = "nothing in the entry" if keys is None else f"{keys!r}"
        return Problem(check="no-agent", place=str(place), at=at, found=found, want="an agent: " + want)
    inner = [key for key, value in keys.items() if isinstance(value, Table) and any(t in value for t in TARGET_KEYS)]
    if inner:
        found = f"`{name}` is a group inside a group (it holds {', '.join(inner[:3])})"
        fix = f"move `{name}` up, directly below `agent_groups`"
        return Problem(check="no-agent", place=str(place), at=at, found=found, want="agents", fix=fix)
    hints = (did_you_mean(key, TARGET_KEYS) for key in keys if key not in AGENT_KEYS)
    fix = next((f"`{key}`: {hint}" for key, hint in zip(keys, hints, strict=False) if hint), "")
    return Problem(check="no-agent", place=str(place), at=at, found="an entry that is no agent", want=want, fix=fix)
