"""What `validate` reports: one thing that is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, Final, Literal

Severity = Literal["error", "warning", "note"]

#: Worst first, as they are shown.
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """error: nothing is started; warning: started all the same; note: something the reader should know."""

    severity: Severity = "error"
    check: str  #: which check found it, for scripts: "cycle", "port-clash", "unknown-key", ...
    place: str  #: "file:line", or the file alone
    at: str  #: the key, dotted: "agent_groups.core.TaskManager.port"; may be empty
    found: str
    want: str = ""
    fix: str = ""

    def __str__(self) -> str:
        head = f"{self.place}: {self.at}: {self.found}" if self.at else f"{self.place}: {self.found}"
        return head + (f"; want {self.want}" if self.want else "") + (f"; {self.fix}" if self.fix else "")

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)


def nearest(wrong: str, known: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """The known names most like `wrong`, best first; capitals do not count."""
    by_folded: dict[str, str] = {}
    for name in known:
        by_folded.setdefault(name.casefold(), name)
    return tuple(by_folded[near] for near in get_close_matches(wrong.casefold(), by_folded, n=limit, cutoff=0.6))


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`did you mean A or B?`, or nothing."""
    near = nearest(wrong, known)
    return f"did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""
