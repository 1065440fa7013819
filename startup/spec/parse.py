"""A Draft checked against the models: what fits is kept, what does not becomes a Problem in plain words."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agentkit.names import is_name
from startup.spec.draft import Draft, Entry
from startup.spec.fields import Model
from startup.spec.model import AgentSettings, FileModel
from startup.spec.problem import Problem, did_you_mean
from startup.spec.source import Place, Table

#: pydantic's error type -> what is wanted; `{...}` are its own facts.
_WANTED: Final[Mapping[str, str]] = {
    "missing": "it to be there",
    "int_parsing": "an integer",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} of them",
    "union_tag_invalid": "text or a mapping",
}
#: Stands in for settings that are missing, so that the rest of the file is checked all the same.
_STAND_INS: Final[Mapping[str, Any]] = {"version": 1, "cluster": "unnamed"}

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """`settings` and each agent's settings hold what was right; keys with a problem have their defaults."""

    file: FileModel
    settings: Table
    agents: tuple[tuple[Entry, AgentSettings], ...]


def parsed(draft: Draft, problems: list[Problem]) -> Parsed:
    """Validate everything; with errors among `problems` the result is good for further checks only."""
    file = validated(FileModel, draft.settings, {"agent_groups": {}}, _STAND_INS, "", draft.settings.place, problems)
    agents = []
    for entry in draft.entries:
        for what, name in (("agent", entry.name), ("group", entry.group)):
            if not is_name(name):
                _bad_name(what, name, entry, problems)
        agents.append((entry, validated(AgentSettings, entry.keys, {}, {}, entry.at, entry.place, problems)))
        _one_target(entry, problems)
    return Parsed(file=file, settings=draft.settings, agents=tuple(agents))


def validated(
    model: type[M],
    table: Table,
    extra: Mapping[str, Any],
    stand_ins: Mapping[str, Any],
    at: str,
    place: Place,
    problems: list[Problem],
) -> M:
    try:
        return model.model_validate({**table, **extra})
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
    rest: Any = dict(table)
    for error in errors:
        problems.append(_problem(model, table, error, at, place))
        path, _ = _walked(model, table, error["loc"])
        # what misses a key goes as a whole
        _drop(rest, path[:-1] if error["type"] == "missing" else path)
    missing = {key: value for key, value in stand_ins.items() if key not in rest}
    try:
        return model.model_validate({**missing, **rest, **extra})
    except ValidationError as exc:  # what is left of a value may be wrong again: then the whole key goes
        wrong = {str(error["loc"][0]) for error in exc.errors(include_url=False) if error["loc"]}
        return model.model_validate({**missing, **{key: rest[key] for key in rest if key not in wrong}, **extra})


def _drop(value: Any, path: tuple[int | str, ...]) -> None:
    """Remove what is at `path` below `value`; mappings and lists on the way are replaced by copies, so that `table` stays."""
    if not path:
        return
    step, rest = path[0], path[1:]
    inside = isinstance(value, dict) and step in value
    if not rest or not inside or not isinstance(value[step], dict):
        if inside:
            del value[step]
        return
    value[step] = dict(value[step])
    _drop(value[step], rest)


def _problem(model: type[Model], table: Table, error: ErrorDetails, at: str, place: Place) -> Problem:
    path, known = _walked(model, table, error["loc"])
    where = ".".join(filter(None, (at, *map(str, path))))
    spot = table.place_of(*path) if path and path[0] in table else place
    kind, facts = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(path[-1])
        fix = did_you_mean(key, known) or f"known here: {', '.join(sorted(known))}"
        return Problem(check="unknown-key", place=str(spot), at=where, found=f"unknown key `{key}`", fix=fix)
    if kind == "missing":
        fix = "write `version: 1`" if path == ("version",) else ""
        return Problem(check="missing-key", place=str(spot), at=where, found="nothing", want=f"`{path[-1]}:`", fix=fix)
    want = (
        str(facts["want"])
        if "want" in facts
        else _WANTED.get(kind, "").format(**facts) or error["msg"].removeprefix("Input should be ")
    )
    return Problem(
        check="value",
        place=str(spot),
        at=where,
        found=facts.get("found") or _shown(error["input"]),
        want=want,
        fix=str(facts.get("fix", "")),
    )


def _walked(
    model: type[Model], table: Table, loc: tuple[int | str, ...]
) -> tuple[tuple[int | str, ...], frozenset[str]]:
    """`loc` without pydantic's own steps (tags of unions), and the keys that are known where it ends."""
    path: list[int | str] = []
    candidates: tuple[Any, ...] = (model,)
    known: frozenset[str] = frozenset()
    here: Any = table
    for number, step in enumerate(loc):
        inside = (isinstance(here, list) and isinstance(step, int)) or (isinstance(here, dict) and step in here)
        if not inside and number < len(loc) - 1:
            continue
        if not inside and step in ("text", "mapping", "[key]"):
            continue
        path.append(step)
        known = frozenset().union(*(_keys(candidate) for candidate in candidates))
        candidates = tuple(inner for candidate in candidates for inner in _descend(candidate, step))
        here = here[step] if inside else None
    return tuple(path), known


def _keys(candidate: Any) -> frozenset[str]:
    if isinstance(candidate, type) and issubclass(candidate, Model):
        return frozenset(info.alias or name for name, info in candidate.model_fields.items())
    return frozenset()


def _descend(candidate: Any, step: int | str) -> Iterator[Any]:
    """The types that a value below `candidate` may have."""
    if isinstance(candidate, type) and issubclass(candidate, Model):
        for name, info in candidate.model_fields.items():
            if step == (info.alias or name):
                yield from _alternatives(info.annotation)
    elif get_origin(candidate) in (dict, list):
        yield from _alternatives(get_args(candidate)[-1])


def _alternatives(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _alternatives(part)
    else:
        yield annotation


def _one_target(entry: Entry, problems: list[Problem]) -> None:
    present = [key for key in ("agent", "script_path", "command") if entry.keys.get(key) is not None]
    if len(present) > 1:
        found = " and ".join(f"`{key}`" for key in present)
        problems.append(
            Problem(
                check="no-agent",
                place=str(entry.place_of(present[1])),
                at=entry.at,
                found=found,
                want="one of them: what to run",
            )
        )


def _bad_name(what: str, name: str, entry: Entry, problems: list[Problem]) -> None:
    want = "letters, digits, `_`, `.` and `-`, starting with a letter or `_`, at most 100 characters"
    problems.append(
        Problem(check="name", place=str(entry.place), at=entry.at, found=f"{name!r} as the name of a {what}", want=want)
    )


def _shown(value: object) -> str:
    """A value short enough for a line."""
    text = "nothing" if value is None else f"`{value}`" if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
