"""Older shapes of start files, read as they are: groups of `{script_path, port}`, lists of `{name, script_path, ...}`.

Several such files become one cluster, a machine each, and a small ordinary file (the overlay) fills in what they leave
out. Whatever stands beside the agents is named in a warning: it is neither taken for an agent nor lost in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from startup.spec.draft import AGENT_KEYS, TARGET_KEYS, Draft, Entry, drafted
from startup.spec.members import split_script
from startup.spec.model import AgentSettings
from startup.spec.problem import Problem
from startup.spec.source import Items, Place, Table

#: Old word -> ours.
ALIASES: Final[Mapping[str, str]] = {
    "script": "script_path",
    "path": "script_path",
    "file_path": "script_path",
    "health_port": "health_check_port",
    "critical": "required",
}
#: Keys that older files use as we do: a bad value is an error. Any other of our keys counts only where its value fits.
_CORE: Final = frozenset({"script_path", "port", "health_check_port", "dependencies", "required", "config", "enabled"})
_SCRIPT_WORDS: Final = ("script_path", "script", "path", "file_path")
#: Folders above the file that are tried as project root.
_LEVELS_UP: Final = 6


def is_older(document: Table) -> bool:
    """Whether a file has an older shape: agents, but none of the keys that every file of ours has."""
    if document.get("version") == 1 or "cluster" in document or "machines" in document:
        return False
    return any(True for _ in _found(document))


def merged(
    overlay: Table | None, files: Mapping[str | None, Table], *, cluster: str | None, problems: list[Problem]
) -> Draft:
    """One Draft of older files by machine (None: the only machine there is), with an overlay that fills the gaps."""
    first = next(iter(files.values()))
    rest: list[Problem] = []  # an overlay without agents is fine: that is all that could be said of it
    draft = drafted(overlay, rest) if overlay is not None else Draft(settings=Table(first.place))
    additions, draft.entries = draft.entries + (_targetless(overlay) if overlay is not None else []), []
    for machine, document in files.items():
        reader = _Reader(machine)
        draft.entries += reader.entries(document)
        problems += reader.warnings(document)
    _fill(draft, additions, problems)
    settings = draft.settings
    if "version" not in settings:
        settings.put("version", 1, settings.place)
    if "cluster" not in settings:
        settings.put("cluster", cluster or _cluster_name(first.place.file), settings.place)
    if "project_root" not in settings:
        settings.put("project_root", str(_project_root(draft.entries, Path(first.place.file))), settings.place)
    _add_machines(settings, [name for name in files if name is not None])
    count = len(draft.entries)
    problems.append(
        Problem(
            severity="note", check="older-shape", place=str(first.place), at="",
            found=f"{count} agents in an older shape; cluster `{settings['cluster']}`, project_root {settings['project_root']}",
            fix="" if overlay is not None else "say it otherwise in a small file: agentkit validate FILE --machine NAME=OLD_FILE",
        )
    )  # fmt: skip
    return draft


def _add_machines(settings: Table, names: list[str]) -> None:
    machines = settings.get("machines")
    if not isinstance(machines, Table):
        if not names:
            return  # the model's own default: one machine, this one
        machines = Table(settings.place)
        settings.put("machines", machines, settings.place)
    for name in names:
        if name not in machines:
            machines.put(name, Table(settings.place), settings.place)


def _found(document: Table) -> Iterator[tuple[str, str, Any, Place, str]]:
    """(group, name, keys, place, at) of everything that is an agent by its looks."""
    groups = document.get("agent_groups")
    for group, members in groups.items() if isinstance(groups, Table) else ():
        if isinstance(members, Table):
            for name, keys in members.items():
                if _has_script(keys):
                    yield group, name, keys, members.places[name], f"agent_groups.{group}.{name}"
        elif isinstance(members, Items):
            yield from _listed(group, members, f"agent_groups.{group}")
    for key, value in document.items():
        if isinstance(value, Items):
            yield from _listed(key, value, key)


def _listed(group: str, members: Items, at: str) -> Iterator[tuple[str, str, Any, Place, str]]:
    for index, keys in enumerate(members):
        if _has_script(keys):
            yield group, str(keys.get("name") or ""), keys, members.places[index], f"{at}[{index}]"


def _has_script(keys: object) -> bool:
    return isinstance(keys, Table) and any(isinstance(keys.get(word), str) for word in (*_SCRIPT_WORDS, *TARGET_KEYS))


@dataclass(slots=True)
class _Reader:
    """One file. Collects what it does not use, to name each thing once."""

    machine: str | None
    unused: dict[str, list[Place]] = field(default_factory=dict)

    def entries(self, document: Table) -> list[Entry]:
        return [self._entry(*found) for found in _found(document)]

    def _entry(self, group: str, name: str, keys: Table, place: Place, at: str) -> Entry:
        ours = Table(keys.place)
        for key, value in keys.items():
            word = ALIASES.get(key, key)
            if key == "name" or value is None:
                continue
            if word in ours or (word != key and word in keys) or not _is_usable(word, value):
                self.unused.setdefault(key, []).append(keys.places[key])
                continue
            ours.put(word, value, keys.places[key])
            if key in keys.shifted:
                ours.shifted.add(word)
        if self.machine is not None and "machine" not in ours:
            ours.put("machine", self.machine, place)
        script = ours.get("script_path", "")
        return Entry(
            group=group, name=name or Path(split_script(str(script))[0]).stem, keys=ours, at=at, place=place, older=True
        )

    def warnings(self, document: Table) -> Iterator[Problem]:
        """After `entries`: keys of agents that mean nothing here, and blocks that hold no agents."""
        for key, places in self.unused.items():
            found = f"`{key}` of {len(places)} agent{'s' if len(places) > 1 else ''} is not used"
            yield _warning(places[0], key, found, "agentkit schema lists the keys that are")
        agents = {id(keys) for _, _, keys, _, _ in _found(document)}
        for at, place, what in _beside(document, agents):
            yield _warning(place, at, f"`{at}` {what} and is not used", "")


def _is_usable(word: str, value: object) -> bool:
    if word in _CORE:
        return True
    if word not in AGENT_KEYS:
        return False
    try:
        AgentSettings.model_validate({word: value})
    except ValidationError:
        return False
    return True


def _beside(document: Table, agents: set[int]) -> Iterator[tuple[str, Place, str]]:
    """(key, place, what it is) of all that stands beside the agents."""
    for key, value in document.items():
        if key == "agent_groups" and isinstance(value, Table):
            for group, members in value.items():
                yield from _beside_in_group(f"agent_groups.{group}", members, value.places[group], agents)
        elif isinstance(value, Items) and any(id(item) in agents for item in value):
            yield from _beside_in_group(key, value, document.places[key], agents)
        elif key not in ("version", "include", "project_root"):
            yield key, document.places[key], "is empty" if value is None else "is a block of settings"


def _beside_in_group(at: str, members: Any, place: Place, agents: set[int]) -> Iterator[tuple[str, Place, str]]:
    if isinstance(members, Table):
        for name, keys in members.items():
            if id(keys) not in agents:
                yield f"{at}.{name}", members.places[name], "is empty" if keys is None else "names no script"
    elif isinstance(members, Items):
        for index, keys in enumerate(members):
            if id(keys) not in agents:
                yield f"{at}[{index}]", members.places[index], "is empty" if keys is None else "names no script"
    else:
        yield at, place, "is empty" if members is None else "is no group of agents"


def _targetless(overlay: Table) -> list[Entry]:
    """Entries of an overlay that only add keys to an agent of an older file."""
    groups = overlay.get("agent_groups")
    return [
        Entry(group=group, name=name, keys=keys, at=f"agent_groups.{group}.{name}", place=members.places[name])
        for group, members in (groups.items() if isinstance(groups, Table) else ())
        if isinstance(members, Table)
        for name, keys in members.items()
        if isinstance(keys, Table) and not any(key in keys for key in TARGET_KEYS)
    ]


def _fill(draft: Draft, additions: list[Entry], problems: list[Problem]) -> None:
    """What the older file says stands; the overlay adds the keys that it leaves out, or whole agents."""
    for addition in additions:
        machine = addition.keys.get("machine")
        meant = [
            entry
            for entry in draft.entries
            if entry.older and entry.name == addition.name and machine in (None, entry.keys.get("machine", machine))
        ]
        for entry in meant:
            for key in addition.keys:
                if key not in entry.keys:
                    entry.keys.take(key, addition.keys)
        if not meant and any(key in addition.keys for key in TARGET_KEYS):
            draft.entries.append(addition)
        elif not meant:
            names = [entry.name for entry in draft.entries]
            found = f"`{addition.name}` adds to an agent that no older file has"
            problems.append(
                Problem(
                    check="overlay",
                    place=str(addition.place),
                    at=addition.at,
                    found=found,
                    want=f"one of {', '.join(names[:8])}",
                )
            )


def _cluster_name(file: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", Path(file).stem).lstrip("0123456789.-") or "fleet"


def _project_root(entries: list[Entry], file: Path) -> Path:
    """The folder at or above the file below which most of the scripts are; the file's own where none are."""
    scripts = [split_script(str(entry.keys.get("script_path", "")))[0] for entry in entries]
    folder = file.resolve().parent
    tried = [folder, *folder.parents][:_LEVELS_UP]
    return max(tried, key=lambda root: sum((root / script).is_file() for script in scripts if script))


def _warning(place: Place, at: str, found: str, fix: str) -> Problem:
    return Problem(severity="warning", check="not-used", place=str(place), at=at, found=found, fix=fix)
