"""Which revision `rollback` means when it is given none."""

from __future__ import annotations

from dataclasses import replace

from startup.cli.rollback import before
from startup.plan.revision import Revision, Rollout
from startup.plan.rollback import rolled_back
from tests.startup.plan.builders import agent, revision


def revisions() -> list[Revision]:
    """1 and 2, then 3, which failed and became 4, which is what 2 was."""
    first, second = (revision(agent("A", config={"v": value}), number=value) for value in (1, 2))
    rollout = Rollout(base=2, base_digest=second.digest(), max_unavailable=1)
    third = replace(revision(agent("A", config={"v": 3}), number=3), rollout=rollout)
    fourth = replace(rolled_back(third, second, 0.0), note="revision 3 was rolled back: m/A did not become ready")
    return [first, second, third, fourth]


def test_what_was_rolled_back_is_not_what_one_goes_back_to() -> None:
    kept = revisions()
    assert before(reversed(kept), kept[-1]) == kept[0]
    assert before(reversed(kept[:2]), kept[1]) == kept[0]


def test_a_down_and_what_is_as_it_is_now_are_passed_over() -> None:
    first, second, *_ = revisions()
    down = replace(first, number=5, down=True)
    again = replace(second, number=6)
    assert before([again, down, second, first], again) == first
    assert before([again, second], again) is None
