"""When an agent is idle, and what keeps it awake. Pure: signs and times in, a verdict out.

Activity is what an agent does for others: a call that it answered, an event that it handled, a block that kept it awake, a resource that
was loaded. What only looks at it is none: probes, scrapes, PINGs, `describe` and spans, the directory's news. Neither is what it does by
itself: `@every` methods, `run` and the calls that these make; while such a call waits for its answer the agent stays awake all the same.

Nobody is woken to decide this: activity only leaves a time behind, and one timer looks at it when sleep would be due at the earliest.
Whatever keeps the agent awake then is looked at again one `after` later, which is early enough: what ends meanwhile counts from its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

#: Short sleeps in a row, after which an agent waits longer before it sleeps again.
SHORT_SLEEPS: Final = 3
#: It waits at most so many times as long.
MOST_BACKOFF: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What an agent is doing at one moment; times on the monotonic clock."""

    active_s: float  #: when it last did something for somebody, or became ready
    serving: int = 0  #: requests that run or wait for their turn, open streams among them
    stuck: int = 0  #: threads of plain `def` handlers that run on past their deadline
    handling: int = 0  #: `@subscribe` methods that run
    calling: int = 0  #: calls of its own that have no answer yet, open streams among them
    leased: int = 0  #: raw sockets that are lent
    pinned: int = 0  #: resources in use
    blocks: tuple[str, ...] = ()  #: names of `keeps_awake` blocks that are open
    awake_until_s: float = 0.0  #: `stay_awake`


class Verdict(NamedTuple):
    """Whether it may fall asleep now."""

    may_sleep: bool
    look_again_s: float = 0.0  #: when, if it may not
    why: str = ""  #: what keeps it awake, in words; "": it was active a moment ago


def work_in(signs: Signs) -> str:
    """What the agent is in the middle of; "": nothing."""
    if signs.blocks:
        names = dict.fromkeys(signs.blocks)
        return f"busy with {', '.join(names)}"
    for count, one, many in (
        (signs.serving, "a call runs", "calls run"),
        (signs.stuck, "a thread runs past its deadline", "threads run past their deadlines"),
        (signs.handling, "an event is being handled", "events are being handled"),
        (signs.calling, "a call of its own has no answer yet", "calls of its own have no answer yet"),
        (signs.pinned, "a resource is in use", "resources are in use"),
        (signs.leased, "a raw socket is lent", "raw sockets are lent"),
    ):
        if count:
            return one if count == 1 else f"{count} {many}"
    return ""


def keeps_awake(signs: Signs, now_s: float) -> str:
    """What forbids to sleep now, however long the agent has been idle; "": nothing."""
    left_s = signs.awake_until_s - now_s
    return work_in(signs) or (f"stays awake for another {left_s:.0f} s" if left_s > 0 else "")


def decide(signs: Signs, after_s: float, now_s: float) -> Verdict:
    """May it sleep, `after_s` being how long it has to have been idle?"""
    due_s = max(signs.active_s + after_s, signs.awake_until_s)
    if work := work_in(signs):
        return Verdict(may_sleep=False, look_again_s=max(due_s, now_s + after_s), why=work)
    if now_s < due_s:
        return Verdict(may_sleep=False, look_again_s=due_s, why=keeps_awake(signs, now_s))
    return Verdict(may_sleep=True)


class IdleBackoff:
    """How long an agent has to be idle: its `after`, and longer while its sleep turns out to be short again and again.

    Somebody who calls a little less often than `after` would have the agent release and load everything each time."""

    def __init__(self, after_s: float) -> None:
        self._usual_s = after_s
        self._short = 0
        self.after_s = after_s

    def slept(self, for_s: float) -> None:
        """It was woken after so long."""
        if for_s >= self._usual_s:
            self._short, self.after_s = 0, self._usual_s
            return
        self._short += 1
        if self._short >= SHORT_SLEEPS:
            self.after_s = min(self.after_s * 2, self._usual_s * MOST_BACKOFF)
