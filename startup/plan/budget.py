"""Who sleeps when the agents of a machine have more memory than they may have together. Pure;
startup/node/hibernation/memory_budget.py measures and acts.

Agents that nobody has called since the last look, and whose file lets them sleep, go by the memory that their sleep is worth, divided
by how much they are used: an idle giant before a small one, and before a giant that is called every minute. Whether it really may
sleep, only the agent knows: it refuses while a call runs, and is left alone for a while."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agentkit.names import AgentId, Incarnation
from agentkit.settings import Depth
from startup.plan.phase import Phase
from startup.plan.process import Leaving, Process
from startup.plan.sleep_transitions import can_sleep

#: Above the budget, so much of it is aimed at: who is just below it would be back above it with the next allocation.
TARGET: Final = 0.9
#: A request counts half as much after so long, in seconds.
HALF_LIFE_S: Final = 60.0
#: An agent that refused is asked again after so long, in seconds.
ASK_AGAIN_S: Final = 60.0
#: Whose sleep would give back less is let alone, in bytes.
MIN_GAIN_BYTES: Final = 2**20
#: So many of those that stay awake are named, those with the most memory first.
_NAMED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Of one slot, from look to look. Times are monotonic seconds."""

    incarnation: Incarnation
    looked_s: float
    memory_bytes: int  #: of its process and what that started
    requests: int = 0  #: that its process has served
    recent: float = 0.0  #: requests, older ones for less
    is_fresh: bool = True  #: it was called since the look before, or there was none
    asleep_bytes: int = 0  #: what this process still had when it last slept lightly
    refused: str = ""  #: why it did not sleep when it was asked to
    ask_again_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One that may be sent to sleep."""

    id: AgentId
    depth: Depth
    gain_bytes: int
    recent: float

    @property
    def worth(self) -> float:
        """Memory per recent use."""
        return self.gain_bytes / (self.recent + 1)


def looked(before: Use | None, p: Process, memory_bytes: int, now_s: float) -> Use:
    """What is known of a slot after one more look."""
    is_asleep = _is_asleep(p)
    if before is None:
        return Use(
            incarnation=p.incarnation, looked_s=now_s, memory_bytes=memory_bytes, requests=p.requests,
            asleep_bytes=memory_bytes if is_asleep else 0,
        )  # fmt: skip
    is_same = before.incarnation == p.incarnation
    # another process begins to count anew, but what its predecessor said may still stand there
    new = p.requests - before.requests if p.requests >= before.requests else p.requests
    recent = before.recent * 0.5 ** ((now_s - before.looked_s) / HALF_LIFE_S) + new
    return replace(
        before if is_same else Use(incarnation=p.incarnation, looked_s=now_s, memory_bytes=0),
        looked_s=now_s,
        memory_bytes=memory_bytes,
        requests=p.requests,
        recent=recent,
        is_fresh=new > 0 or not is_same,
        asleep_bytes=memory_bytes if is_asleep else before.asleep_bytes if is_same else 0,
    )


def refused(use: Use, why: str, now_s: float) -> Use:
    """It was asked, and stays awake."""
    return replace(use, refused=why, ask_again_s=now_s + ASK_AGAIN_S)


def candidate(p: Process, use: Use, now_s: float) -> Candidate | str:
    """One that may be sent to sleep, or why it can't be."""
    if why := can_sleep(p.spec):
        return why
    depth = p.spec.hibernate.depth
    if depth == "never":
        return "its file says `depth: never`"
    if p.phase is not Phase.READY or p.leaving is not Leaving.NO or p.swap is not None or p.offered is not None:
        return p.leaving.value or ("it is being changed" if p.phase is Phase.READY else f"it is {p.phase.value}")
    if _is_asleep(p):
        return "it sleeps lightly already"
    if now_s < use.ask_again_s:
        return use.refused
    if use.is_fresh:
        return "it was called a moment ago"
    gain_bytes = use.memory_bytes if depth == "deep" else use.memory_bytes - use.asleep_bytes
    if gain_bytes < MIN_GAIN_BYTES:
        return "its sleep gives next to nothing back"
    return Candidate(id=p.id, depth=depth, gain_bytes=gain_bytes, recent=use.recent)


def choose(used_bytes: int, budget_bytes: int, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Who goes, in that order, so that the rest is expected to be within TARGET of the budget; nobody while it is kept to."""
    if used_bytes <= budget_bytes:
        return []
    chosen: list[Candidate] = []
    left_bytes = used_bytes - int(budget_bytes * TARGET)
    for it in sorted(candidates, key=lambda it: (-it.worth, it.id)):
        if left_bytes <= 0:
            break
        chosen.append(it)
        left_bytes -= it.gain_bytes
    return chosen


def in_words(awake: Sequence[tuple[AgentId, int, str]]) -> str:
    """Those that stay awake with the most memory: `Indexer 812 MiB (its file says `depth: never`), ...`."""
    most = sorted(awake, key=lambda it: (-it[1], it[0]))[:_NAMED]
    return ", ".join(f"{id.instance} {size_bytes / 2**20:,.0f} MiB ({why})" for id, size_bytes, why in most)


def _is_asleep(p: Process) -> bool:
    return bool(p.light_sleep.get("is_asleep"))
