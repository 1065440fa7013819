"""The revision that undoes another one. Pure."""

from __future__ import annotations

from dataclasses import replace

from startup.plan.revision import Revision, Rollout
from startup.plan.rollout import Failure


def is_base(revision: Revision, rollout: Rollout) -> bool:
    """Whether it is the revision that `rollout` began with."""
    return revision.number == rollout.base and revision.digest() == rollout.base_digest


def rolled_back(revision: Revision, base: Revision, time_s: float) -> Revision:
    """What follows a rollout that failed: what `base` wants, under the next number. `time_s`: now, since the epoch.

    The same on every machine that has both, so that each can make it by itself. What operators stopped since then stays stopped."""
    assert revision.rollout is not None
    wish = base
    if revision.number != base.number + 1:  # somebody stopped or started agents in the middle of it
        wish = revision
    return replace(
        base,
        number=revision.number + 1,
        author=revision.author,
        time_s=time_s,
        stopped=wish.stopped & frozenset(base.fleet.ids()),
        unstarted=wish.unstarted,
        down=False,
        rollout=replace(revision.rollout, base=revision.number, base_digest=revision.digest(), on_failure="go on"),
        note=f"revision {revision.number} was rolled back",
    )


def because(revision: Revision, failure: Failure) -> Revision:
    """The same with the reason in its note."""
    return replace(revision, note=f"{revision.note}: {failure.id} did not become ready: {failure.reason}")
