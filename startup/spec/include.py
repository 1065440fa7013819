"""One file and what it includes, read, filled in from the environment, and merged into one Table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from startup.spec.interpolate import interpolate
from startup.spec.problem import Problem
from startup.spec.source import Items, Table, read

#: How deep mappings of a section are merged: the names on the last level may stand in one file only.
_DEPTH: Final[Mapping[str, int]] = {"agent_groups": 2, "machines": 1, "external": 1, "port_ranges": 1, "defaults": 1}
#: Lists that are strung together.
_JOINED: Final = frozenset({"preload", "forbidden_ports"})


def read_merged(path: Path, environ: Mapping[str, str], problems: list[Problem]) -> Table | None:
    """The file with its includes in it (those of included files too). Each file is read once; None: no use going on."""
    return _read(path, environ, problems, {path.resolve(): str(path)})


def _read(path: Path, environ: Mapping[str, str], problems: list[Problem], seen: dict[Path, str]) -> Table | None:
    table = read(path, problems)
    if table is None:
        return None
    interpolate(table, environ, problems)
    names = table.get("include")
    if not isinstance(names, Items):
        return table
    for index, name in enumerate(names):
        if not isinstance(name, str):
            continue  # the model says what is wrong with it
        place = str(names.places[index])
        other_path = path.parent / Path(name).expanduser()
        if other_path.resolve() in seen:
            problems.append(
                Problem(
                    check="include",
                    place=place,
                    at="include",
                    found=f"{name} is included already",
                    want="each file once",
                )
            )
            continue
        if not other_path.is_file():
            problems.append(
                Problem(
                    check="include",
                    place=place,
                    at="include",
                    found=f"{name}: there is no such file",
                    want="a path relative to this file",
                )
            )
            continue
        seen[other_path.resolve()] = str(other_path)
        other = _read(other_path, environ, problems, seen)
        if other is not None:
            _merge_file(table, other, problems)
    return table


def _merge_file(into: Table, other: Table, problems: list[Problem]) -> None:
    for key in other:
        if key != "include":
            _merge_key(into, other, key, _DEPTH.get(key, 0), key, problems)


def _merge_key(into: Table, other: Table, key: str, depth: int, at: str, problems: list[Problem]) -> None:
    mine: Any = into.get(key)
    theirs: Any = other[key]
    if key not in into or mine is None:
        into.take(key, other)
    elif depth and isinstance(mine, Table) and isinstance(theirs, Table):
        for inner in theirs:
            _merge_key(mine, theirs, inner, depth - 1, f"{at}.{inner}", problems)
    elif key in _JOINED and isinstance(mine, Items) and isinstance(theirs, Items):
        mine.extend(theirs)
        mine.places.extend(theirs.places)
    elif isinstance(mine, Table | Items) or mine != theirs:
        problems.append(
            Problem(
                check="include-clash",
                place=str(other.places[key]),
                at=at,
                found=f"`{key}` stands in {into.places[key]} and in {other.places[key]}",
                want="it in one of the two files",
                fix="remove or rename one of them",
            )
        )
