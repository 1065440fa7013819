"""`${VAR}`, `${VAR:-default}`, `$$` and integer sums, filled in once from the operator's environment.

What comes out of a variable is a value and nothing else: it is not looked at again for `$`, it can't open a mapping or a
list, and it is never evaluated. Text that stood without quotes may turn into a number or a bool, as if it had been typed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from startup.spec.problem import Problem
from startup.spec.source import Items, Place, Plain, Table, scalar
from startup.spec.units import summed

#: The variable that `--port-offset` sets; a value made from it is not shifted a second time.
PORT_OFFSET: Final = "PORT_OFFSET"

_REFERENCE: Final = re.compile(r"\$\$|\$\{([^}]*)\}?")
_INSIDE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
#: Natural numbers and references joined by `+`, at least two of them.
_SUM: Final = re.compile(r"\s*(?:\d+|\$\{[^}+]*\})(?:\s*\+\s*(?:\d+|\$\{[^}+]*\}))+\s*")
_IPV4: Final = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")


@dataclass(frozen=True, slots=True)
class Expanded:
    """`text` with its references filled in, and what there is to say about them."""

    text: str
    used: frozenset[str] = frozenset()  #: variables it names
    unset: tuple[str, ...] = ()  #: those without value and default; "0" or "" stands for them
    malformed: tuple[str, ...] = ()  #: references that can't be read


def is_sum(text: str) -> bool:
    """Whether `text` is a sum such as `${PORT_OFFSET:-0}+7200`."""
    return "${" in text and _SUM.fullmatch(text) is not None


def expand(text: str, environ: Mapping[str, str], *, missing: str = "") -> Expanded:
    """Fill in every reference once, left to right; `missing` stands for what is unset."""
    used: set[str] = set()
    unset: list[str] = []
    malformed: list[str] = []

    def replace(match: re.Match[str]) -> str:
        whole = match[0]
        if whole == "$$":
            return "$"
        inside = _INSIDE.fullmatch(match[1])
        if inside is None or not whole.endswith("}") or "${" in match[1]:
            malformed.append(whole)
            return whole
        name, default = inside[1], inside[2]
        used.add(name)
        value = environ.get(name)
        if default is not None:
            return value or default  # as in a shell: `:-` also replaces an empty value
        if value is None:
            unset.append(name)
            return missing
        return value

    filled = _REFERENCE.sub(replace, text)
    return Expanded(filled, frozenset(used), tuple(unset), tuple(malformed))


def interpolate(table: Table, environ: Mapping[str, str], problems: list[Problem]) -> None:
    """Fill in every text below `table`, in place. Literal IP addresses are noticed here, as only here they are literal."""
    walk = _Walk(environ, problems)
    walk.table(table, ())
    walk.finish()


class _Walk:
    def __init__(self, environ: Mapping[str, str], problems: list[Problem]) -> None:
        self._environ = environ
        self._problems = problems
        self._zeros: dict[str, list[tuple[Place, str]]] = {}  # unset names in sums -> where

    def finish(self) -> None:
        """Each unset variable that counts as 0 is one warning, however many ports are made from it."""
        for name, spots in self._zeros.items():
            place, at = spots[0]
            where = (
                f", here and in {len(spots) - 1} more place{'s' if len(spots) > 2 else ''}" if len(spots) > 1 else ""
            )
            found = f"${{{name}}} is not set and counts as 0{where}"
            self._add("warning", "unset-variable", place, at, found, "", f"write ${{{name}:-0}} if that is meant")

    def table(self, table: Table, path: tuple[str, ...]) -> None:
        for key, value in table.items():
            filled, used = self._value(value, (*path, key), table.places[key])
            table[key] = filled
            if PORT_OFFSET in used:
                table.shifted.add(key)

    def _value(self, value: Any, path: tuple[str, ...], place: Place) -> tuple[Any, frozenset[str]]:
        if isinstance(value, Table):
            self.table(value, path)
        elif isinstance(value, Items):
            for index, item in enumerate(value):
                value[index], _ = self._value(item, (*path, str(index)), value.places[index])
        elif isinstance(value, str):
            if "$" in value:
                return self._text(value, path, place)
            self._literal_address(value, path, place)
        return value, frozenset()

    def _text(self, text: str, path: tuple[str, ...], place: Place) -> tuple[Any, frozenset[str]]:
        as_sum = is_sum(text) and not _stays_text(path)
        expanded = expand(text, self._environ, missing="0" if as_sum else "")
        at = ".".join(path)
        for reference in expanded.malformed:
            self._add(
                "error",
                "interpolation",
                place,
                at,
                f"`{reference}`",
                "${NAME} or ${NAME:-default}",
                "write $$ for a literal $",
            )
        for name in expanded.unset:
            if as_sum:
                self._zeros.setdefault(name, []).append((place, at))
            else:
                fix = f"set it, or write ${{{name}:-default}}"
                self._add("error", "unset-variable", place, at, f"${{{name}}} is not set", "a value", fix)
        if not as_sum or expanded.malformed:
            return (scalar(expanded.text) if isinstance(text, Plain) else expanded.text), expanded.used
        total = summed(expanded.text)
        if total is None:
            self._add("error", "interpolation", place, at, f"`{expanded.text}`", "a sum of natural numbers")
            return None, expanded.used
        return total, expanded.used

    def _literal_address(self, text: str, path: tuple[str, ...], place: Place) -> None:
        for match in _IPV4.finditer(text):
            try:
                address = ipaddress.IPv4Address(match[0])
            except ValueError:
                continue
            if not (address.is_loopback or address.is_unspecified):
                fix = f"write ${{NAME:-{address}}} and set NAME where it differs"
                found = f"the address {address} written out"
                self._add("warning", "literal-address", place, ".".join(path), found, "a variable", fix)

    def _add(self, severity: Any, check: str, place: Place, at: str, found: str, want: str, fix: str = "") -> None:
        self._problems.append(
            Problem(severity=severity, check=check, place=str(place), at=at, found=found, want=want, fix=fix)
        )


def _stays_text(path: tuple[str, ...]) -> bool:
    """Environment variables and arguments are text; a phone number is no sum."""
    return "config" not in path and ("env" in path or "command" in path)
