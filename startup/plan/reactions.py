"""The rules of `on_error`, without I/O: what agents reported goes in, what has to be done comes out. Times are monotonic seconds.

A rule counts the reports of its severity or worse within its window. When they are enough it acts, and begins to count anew. Then it
rests as long as its window: at once for restart and quarantine, which concern the agent; for a webhook only the same kind of error
rests, so that another one is told."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from agentkit.names import AgentId
from agentkit.observe.reports import PROCESS, rank
from startup.spec.fleet import ErrorRule

#: Arrivals remembered for one rule; more are counted with the oldest of them.
MAX_ARRIVALS: Final = 256
#: Kinds of error whose rest is remembered for one rule.
MAX_RESTS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Reports of one kind that have just been stored."""

    id: AgentId
    incarnation: int  #: that of the process which reported
    group: str  #: fingerprint of the kind
    severity: str
    kind: str
    message: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """`rule` shall be acted on."""

    rule: ErrorRule
    seen: Seen
    count: int  #: reports within the window that led to it

    @property
    def why(self) -> str:
        """For people, in `status`."""
        many = f"{self.count} errors within {self.rule.within_s:g} s, the last: " if self.count > 1 else ""
        return f"{many}{self.seen.severity}: {self.seen.message}"


@dataclass(slots=True)
class _State:
    """How far one rule of one agent has come."""

    arrivals: deque[list[float]] = field(default_factory=deque)  #: [at_s, count]
    rests: OrderedDict[str, float] = field(default_factory=OrderedDict)  #: what -> until when


_Key: TypeAlias = tuple[AgentId, ErrorRule]


class Reactions:
    """Remembers what counts towards each rule. Nothing is kept of rules that nobody has any more."""

    def __init__(self) -> None:
        self._states: dict[_Key, _State] = {}

    def consider(self, rules: tuple[ErrorRule, ...], seen: Seen, now_s: float) -> list[Reaction]:
        """What is to be done about `seen`, in the order of the rules; nothing of the kind twice."""
        found: dict[str, Reaction] = {}
        for rule in rules:
            if rank(seen.severity) < rank(rule.severity) or (rule.do == "restart" and seen.kind == PROCESS):
                continue  # a process that ended has been restarted already
            count = _counted(self._states.setdefault((seen.id, rule), _State()), rule, seen, now_s)
            if count:
                found.setdefault(f"{rule.do} {rule.url}", Reaction(rule=rule, seen=seen, count=count))
        if any(reaction.rule.do == "quarantine" for reaction in found.values()):
            return [reaction for reaction in found.values() if reaction.rule.do != "restart"]
        return list(found.values())

    def keep(self, rules: Mapping[AgentId, tuple[ErrorRule, ...]]) -> None:
        """These are the rules from now on; what was counted for others is forgotten."""
        self._states = {key: state for key, state in self._states.items() if key[1] in rules.get(key[0], ())}


def _counted(state: _State, rule: ErrorRule, seen: Seen, now_s: float) -> int:
    """How many there were when the rule has to act, else 0."""
    arrivals, since_s = state.arrivals, now_s - rule.within_s
    while arrivals and arrivals[0][0] <= since_s:
        arrivals.popleft()
    arrivals.append([now_s, seen.count])
    if len(arrivals) > MAX_ARRIVALS:
        oldest = arrivals.popleft()
        arrivals[0][1] += oldest[1]
    count = int(sum(much for _, much in arrivals))
    what = seen.group if rule.do == "webhook" else ""
    if count < rule.after or state.rests.get(what, now_s) > now_s:
        return 0
    arrivals.clear()
    state.rests[what] = now_s + rule.within_s
    state.rests.move_to_end(what)
    if len(state.rests) > MAX_RESTS:
        state.rests.popitem(last=False)
    return count
