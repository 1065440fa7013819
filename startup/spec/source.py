"""YAML files as plain values that still know where they came from.

A mapping becomes a Table and a list an Items: dict and list with the file and line of each key or item. So a subtree can
be moved (includes, older shapes) and its problems still point at the line somebody wrote. Only YAML's safe tags are
read; duplicate keys and unknown tags are problems, and reading goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from startup.spec.problem import Problem

#: More values than this in one file come from aliases that multiply (a fleet of 1,000 agents has 20,000).
MAX_VALUES: Final = 500_000

_PREFIX: Final = "tag:yaml.org,2002:"
_MERGE_TAG: Final = _PREFIX + "merge"


class Place(NamedTuple):
    """Where something stands; `str()` is what editors and terminals make a link of."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Table(dict[str, Any]):
    """A mapping; `places` has the place of each key, `shifted` the keys whose value already holds PORT_OFFSET."""

    __slots__ = ("place", "places", "shifted")

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.places: dict[str, Place] = {}
        self.shifted: set[str] = set()

    def put(self, key: str, value: Any, place: Place) -> None:
        self[key] = value
        self.places[key] = place

    def take(self, key: str, other: Table) -> None:
        """Have `key` as `other` has it, place and all."""
        self.put(key, other[key], other.places[key])
        if key in other.shifted:
            self.shifted.add(key)

    def place_of(self, *path: str | int) -> Place:
        """The place of the value at `path`, or of the deepest part of the path that exists."""
        here: Any = self
        found = self.place
        for step in path:
            if isinstance(here, Table) and step in here:
                found, here = here.places[str(step)], here[str(step)]
            elif isinstance(here, Items) and isinstance(step, int) and 0 <= step < len(here):
                found, here = here.places[step], here[step]
        return found


class Items(list[Any]):
    """A list; `places` has the place of each item."""

    __slots__ = ("places",)

    def __init__(self) -> None:
        super().__init__()
        self.places: list[Place] = []


class Plain(str):
    """Text that stood without quotes and holds `${`: once filled in it may turn out to be a number."""

    __slots__ = ()


def read(path: Path, problems: list[Problem]) -> Table | None:
    """The mapping in the file; None, with the reason among `problems`, when there is none to be had."""
    shown = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else f"not UTF-8 at byte {exc.start}"
        problems.append(
            Problem(check="file", place=shown, at="", found=f"can't be read: {why}", want="a YAML file in UTF-8")
        )
        return None
    return parse(text, shown, problems)


def parse(text: str, shown: str, problems: list[Problem]) -> Table | None:
    """`read` for text at hand; `shown` is the file's name in places."""
    try:
        root = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as exc:
        problems.append(_syntax(exc, shown, text))
        return None
    if not isinstance(root, yaml.MappingNode):
        problems.append(
            Problem(
                check="syntax",
                place=f"{shown}:1",
                at="",
                found="no mapping at the top level",
                want="keys such as `agent_groups:`",
            )
        )
        return None
    table = _Builder(shown, problems).build(root, ())
    return table if isinstance(table, Table) else None


def scalar(text: str) -> Any:
    """`text` as YAML reads it unquoted: an int, a float, a bool, or else the text itself."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    node = yaml.ScalarNode(tag, text)
    return _value(node) if node.tag in (_PREFIX + "int", _PREFIX + "float", _PREFIX + "bool") else text


_RESOLVER: Final = yaml.resolver.Resolver()
_CONSTRUCTOR: Final = yaml.constructor.SafeConstructor()


def _value(node: yaml.ScalarNode) -> Any:
    match node.tag.removeprefix(_PREFIX):
        case "int":
            return _CONSTRUCTOR.construct_yaml_int(node)
        case "float":
            return _CONSTRUCTOR.construct_yaml_float(node)
        case "bool":
            return _CONSTRUCTOR.construct_yaml_bool(node)
        case "null":
            return None
        case _:  # text; dates stay text, since no key wants a date
            return node.value


def _syntax(exc: yaml.YAMLError, shown: str, text: str) -> Problem:
    mark = getattr(exc, "problem_mark", None)
    what = getattr(exc, "problem", None) or str(exc).splitlines()[0]
    context = getattr(exc, "context", None)
    place = f"{shown}:{mark.line + 1}" if mark else shown
    found = f"no YAML: {what}" + (f" {context}" if context else "")
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    fix = "indent with spaces" if "\t" in line else "put quotes around text that holds ${...}" if "${" in line else ""
    return Problem(check="syntax", place=place, at="", found=found, want="YAML", fix=fix)


class _Builder:
    """Turns composed nodes into values. Aliases are built anew at each use, so that no two places share a Table."""

    def __init__(self, shown: str, problems: list[Problem]) -> None:
        self._shown = shown
        self._problems = problems
        self._open: set[int] = set()
        self._values = 0

    def build(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self._values += 1
        if id(node) in self._open or self._values > MAX_VALUES:
            if self._values <= MAX_VALUES or self._values == MAX_VALUES + 1:
                self._problem(node, path, "alias", "an alias that holds itself or multiplies without end", "a tree")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.add(id(node))
        try:
            return self._table(node, path) if isinstance(node, yaml.MappingNode) else self._items(node, path)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, path: tuple[str, ...]) -> Any:
        if not node.tag.startswith(_PREFIX):
            self._problem(
                node,
                path,
                "tag",
                f"the tag {node.tag}",
                "a plain value",
                "remove the tag; code is never loaded from YAML",
            )
            return None
        if _is_text_only(path):
            return node.value
        if not node.style and "${" in node.value:
            return Plain(node.value)
        return _value(node)

    def _items(self, node: yaml.Node, path: tuple[str, ...]) -> Items:
        items = Items()
        for child in node.value:
            items.append(self.build(child, (*path, "[]")))
            items.places.append(self._place(child))
        return items

    def _table(self, node: yaml.MappingNode, path: tuple[str, ...]) -> Table:
        table = Table(self._place(node))
        merged: list[Table] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                merged.extend(self._merged(value_node, path))
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "syntax", "a key that is no plain text", "text before the colon")
                continue
            key = str(key_node.value)
            if key in table:
                first = table.places[key]
                self._problem(
                    key_node, (*path, key), "duplicate-key", f"the key `{key}` a second time (first: {first})",
                    "each key once", "remove or rename one of them",
                )  # fmt: skip
                continue
            table.put(key, self.build(value_node, (*path, key)), self._place(key_node))
        for other in merged:
            for key in other:
                if key not in table:
                    table.take(key, other)
        return table

    def _merged(self, node: yaml.Node, path: tuple[str, ...]) -> Iterator[Table]:
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            built = self.build(source, path)
            if isinstance(built, Table):
                yield built
            else:
                self._problem(
                    source, path, "syntax", "`<<` with something that is no mapping", "`<<: *anchor` of a mapping"
                )

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._shown, node.start_mark.line + 1)

    def _problem(
        self, node: yaml.Node, path: tuple[str, ...], check: str, found: str, want: str, fix: str = ""
    ) -> None:
        at = ".".join(path)
        self._problems.append(
            Problem(check=check, place=str(self._place(node)), at=at, found=found, want=want, fix=fix)
        )


def _is_text_only(path: tuple[str, ...]) -> bool:
    """Environment variables and arguments are the text that was written: 007 stays 007."""
    if "config" in path:
        return False
    return len(path) >= 2 and (path[-2] == "env" or path[-2:] == ("command", "[]"))
