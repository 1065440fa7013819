"""A slot that falls asleep, sleeps and wakes, without I/O. Its agent's process ends meanwhile; its sockets stay.

    ready -> (falling asleep) -> hibernated              it asked, was allowed to, said BYE to all and went with EXIT_ASLEEP
             (falling asleep) -> ready                   somebody called first, or it could not save: it says so
             (falling asleep) -> (failure)               it went in another way: a crash like any
    hibernated -> waiting -> forked -> ... -> ready      the first connection, a timer, an operator, an event

While it falls asleep it stays `ready` for everybody else: it can still be called, and nobody who depends on it need know. That it
is asleep is known by its exit code alone; what it said before only adds to that, so it does not matter which node heard it.
The two ends are `ending.exited` and `transitions.ready`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from startup.plan.actions import LieDown, OpenListeners
from startup.plan.phase import Phase
from startup.plan.process import Leaving, Outcome, Process
from startup.plan.sleep_record import Sleep
from startup.plan.transitions import taken_up
from startup.spec.fleet import AgentSpec, AgentTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What an agent says that wants to sleep."""

    calls: int = 0  #: it served since it was forked
    memory_mb: float = 0.0
    wake_in_s: float | None = None  #: a timer of its is due then
    is_asked: bool = False  #: an operator wants it: that it was woken for nothing does not count
    patterns: tuple[str, ...] = ()  #: events of these wake it


class Refusal(NamedTuple):
    """Why it has to stay awake, and when asking again may help, in seconds (None: not by waiting)."""

    why: str
    retry_s: float | None = None


def can_sleep(spec: AgentSpec) -> str:
    """Why a process of `spec` can't sleep and be woken; "" when it can."""
    if not isinstance(spec.target, AgentTarget) or not spec.ready.notify:
        return "it is a program, not an agent: nothing can tell it to"
    if spec.sockets != "adopt":
        return "it binds its own port (`sockets: self`), so nobody would hear who knocks"
    if spec.kind == "task":
        return "it is a task: it ends when its work is done"
    return ""


def asks(p: Process, wish: Wish, now_s: float, wall_s: float) -> Process | Refusal:
    """Its agent wants to sleep: the slot that falls asleep, or why it must not. Asked again, the last wish counts."""
    if why := can_sleep(p.spec):
        return Refusal(why)
    if p.swap is not None:
        return Refusal("another process takes its place", 1.0)
    if p.phase is not Phase.READY or p.leaving not in (Leaving.NO, Leaving.SLEEP):
        return Refusal(f"it is {p.leaving.value or p.phase.value}", 1.0)
    if p.offered is not None:
        return Refusal("it is being told another config", 1.0)
    known = p.sleep or Sleep()
    ready_s = p.stamps.ready_s if p.stamps.ready_s is not None else p.since_s
    left_s = ready_s + known.awake_for_s(p.spec.hibernate.after_s, wish.calls) - now_s
    if left_s > 0 and not wish.is_asked:
        return Refusal(known.judged(wish.calls).why_awake, left_s)
    sleep = replace(
        known,
        since_wall_s=wall_s,
        wake_wall_s=None if wish.wake_in_s is None else wall_s + wish.wake_in_s,
        due_s=None if wish.wake_in_s is None else now_s + wish.wake_in_s,
        given_back_mb=wish.memory_mb,
        veto="",
        patterns=wish.patterns,
    )
    return replace(p, leaving=Leaving.SLEEP, sleep=replace(sleep, useless=known.judged(wish.calls).useless))


def stays_awake(p: Process, why: str) -> Process:
    """It was falling asleep, or was told to, and does not."""
    if p.phase is not Phase.READY:
        return p
    sleep = replace(p.sleep or Sleep(), since_wall_s=None, wake_wall_s=None, due_s=None, veto=why, patterns=())
    return replace(p, leaving=Leaving.NO if p.leaving is Leaving.SLEEP else p.leaving, sleep=sleep)


def woken(p: Process, why: str, now_s: float) -> Outcome:
    """Something wants it: it starts as it did the first time, when what it requires is there."""
    if p.phase is not Phase.HIBERNATED:
        return p, []
    sleep = (p.sleep or Sleep()).woken(why, now_s, now_s - p.since_s, p.spec.hibernate.after_s)
    return replace(taken_up(p, now_s), sleep=sleep), [OpenListeners(p.id)]


def revised(p: Process, spec: AgentSpec, now_s: float) -> Outcome:
    """The fleet has another spec for a sleeper: it counts from its next wake on, but for the ports, which are listened on now.
    Who shall not sleep any more is woken."""
    before, after = p.spec, spec
    p = replace(p, spec=spec, digest="")
    depth = after.hibernate.depth
    if can_sleep(after) or (depth != before.hibernate.depth and depth != "deep"):
        return woken(p, "its file: it is not to sleep any more", now_s)
    if (before.port, before.health_port) != (after.port, after.health_port):
        return p, [OpenListeners(p.id), LieDown(p.id)]
    return p, []


def found_again(p: Process, now_s: float, wall_s: float) -> Outcome:
    """A new node finds that it sleeps: its sockets are watched, or opened again where they went with the machine or with everybody
    who had them."""
    sleep = p.sleep or Sleep()
    due_s = None if sleep.wake_wall_s is None else now_s + max(0.0, sleep.wake_wall_s - wall_s)
    p = replace(
        p, phase=Phase.HIBERNATED, pid=None, leaving=Leaving.NO, swap=None, deadline_s=due_s, sleep=replace(sleep, due_s=due_s),
        waiting_for=(), because="",
    )  # fmt: skip
    return p, [OpenListeners(p.id), LieDown(p.id)]
