"""Who of several instances gets the next call. Pure.

`two_choices` (the default) draws two and takes the less busy one: nearly as good as looking at all of them, and callers that know
nothing of each other do not all run to the same. `least_in_flight` looks at all. `round_robin` takes turns whatever they
do. `hash` gives a key to the same instance every time; when one comes or goes, only its own keys move.

What "busy" means is what this caller has under way there. A sleeper counts as four times as busy, but keeps its turns and its keys.
A degraded instance counts as four times as busy as it is, and gets a
quarter of the turns and keys; a failing one gets calls only where nobody else is ready."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from agentkit.directory.base import AgentRecord
from agentkit.errors import Unreachable
from agentkit.names import AgentId
from agentkit.resilience.policy import Balance

#: Phases in which a call may be sent because it will be served: now, or when the process is up (it waits in the backlog).
#: `stopping` too: a crashed or restarted agent is that for some ms, and one that is stopped for good sends the call away.
_COMING: Final = frozenset(
    {"waiting", "pending", "backoff", "forked", "importing", "starting", "hibernated", "draining", "stopping"}
)
#: Phases in which a call is served: by the process, or by the one that is forked for it.
TAKES_CALLS: Final = frozenset({"ready", "hibernated"})
#: A sleeper counts as so many times as busy as it is: it is woken when the others have work.
SLEEPER_PARTS: Final = 4
#: How much of a healthy instance's share a degraded one gets: one part in so many.
DEGRADED_PARTS: Final = 4


def candidates(name: str, records: tuple[AgentRecord, ...]) -> Sequence[AgentRecord]:
    """Those that may get a call: ready ones and sleepers, the failing only where there is nobody better; without one, those that
    are coming up. Unreachable when all of them are beyond help (failed, stopped, ...)."""
    ready = [record for record in records if record.phase in TAKES_CALLS]
    if ready:
        return [record for record in ready if record.health != "failing"] or ready
    coming = [record for record in records if record.phase in _COMING and record.endpoints]
    if not coming:
        phases = ", ".join(f"{record.id} is {record.phase}" for record in records)
        raise Unreachable(f"{name}: {phases}", details={"phases": {str(record.id): record.phase for record in records}})
    return coming


def choose(
    eligible: Sequence[AgentRecord],
    balance: Balance,
    *,
    in_flight: Callable[[AgentId], int],
    turn: int,
    draw: Callable[[], float],
    key: str = "",
) -> AgentRecord:
    """One of `eligible` (at least one). `turn`: a number that grows with each call; `draw`: random numbers from 0 to 1."""
    if len(eligible) == 1:
        return eligible[0]
    if balance == "hash":
        return max(eligible, key=lambda record: _claim(record, key))
    if balance == "round_robin":
        return _by_turn(eligible, turn)
    if balance == "two_choices" and len(eligible) > 2:
        first = int(draw() * len(eligible))
        second = int(draw() * (len(eligible) - 1))
        eligible = (eligible[first], eligible[second + (second >= first)])
    costs = [(in_flight(record.id) + 1) * _parts(record) * _rest(record) for record in eligible]
    least = min(costs)
    equals = [record for record, cost in zip(eligible, costs, strict=True) if cost == least]
    return equals[turn % len(equals)]


def _parts(record: AgentRecord) -> int:
    return 1 if record.health == "ok" else DEGRADED_PARTS


def _rest(record: AgentRecord) -> int:
    return SLEEPER_PARTS if record.phase == "hibernated" else 1


def _by_turn(eligible: Sequence[AgentRecord], turn: int) -> AgentRecord:
    healthy = [record for record in eligible if record.health == "ok"]
    if not healthy or len(healthy) == len(eligible):
        return eligible[turn % len(eligible)]
    turn %= len(healthy) * DEGRADED_PARTS + len(eligible) - len(healthy)
    if turn < len(healthy) * DEGRADED_PARTS:
        return healthy[turn % len(healthy)]
    others = [record for record in eligible if record.health != "ok"]
    return others[turn - len(healthy) * DEGRADED_PARTS]


def _claim(record: AgentRecord, key: str) -> float:
    """Rendezvous hashing: the instance with the greatest claim to a key gets it."""
    digest = blake2b(f"{record.id}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    position = (int.from_bytes(digest) + 1) / (2**64 + 2)
    return -1.0 / _parts(record) / math.log(position)
