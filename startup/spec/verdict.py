"""What is asked about a module or script that a fleet wants to run, and what was found. Plain values that travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypedDict

Kind = Literal[
    "agent",  # a BaseAgent is there
    "program",  # a script without one
    "several",  # a script with more than one
    "no-class",  # the class asked for is not there
    "no-agent",  # it is there and is no BaseAgent
    "missing",  # there is no such module or file
    "broken",  # it does not compile
    "unimportable",  # importing it raises, exits or crashes
    "faulty",  # the class is there, and can't work as it is declared
    "not-checked",  # it can't be looked at here, or took too long
]

#: What an optional agent is skipped for, with a warning; anything else that is wrong is an error of the file.
SKIPPABLE: Final[frozenset[Kind]] = frozenset({"broken", "unimportable", "faulty"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One module or script to look at: each is looked at once, however many agents share it."""

    project_root: str
    module: str | None = None
    script: str | None = None  #: absolute path
    cls: str | None = None

    def __str__(self) -> str:
        return (self.script or self.module or "") + (f":{self.cls}" if self.cls else "")


class Asked(TypedDict, total=False):
    """What one agent wants of the class."""

    config: Any  #: for its Config
    methods: Mapping[str, Any]  #: method -> what the file says of it (AgentSpec.policy)
    called: Sequence[str]  #: methods that the file names where others call it


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`errors`: number of the Asked -> [(dotted key of the agent, what was found, what is wanted)]."""

    kind: Kind
    cls: str | None = None  #: name of the BaseAgent found
    classes: Sequence[str] = ()  #: several, no-class, no-agent: the BaseAgents that are there
    message: str = ""  #: one line: why not
    line: int | None = None  #: of the file, where it does not compile or raises
    errors: Mapping[int, Sequence[tuple[str, str, str]]] = field(default_factory=dict)
    methods: Sequence[str] = ()  #: that can be called
    keeps_state: bool = False  #: it has a State
    doubts: Sequence[str] = ()  #: what is odd about the class, a line each: it runs all the same

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Verdict:
        errors = {int(number): [(k, f, w) for k, f, w in found] for number, found in data["errors"].items()}
        return cls(**{**data, "errors": errors})
