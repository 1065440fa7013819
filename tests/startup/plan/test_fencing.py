"""What a newer revision takes away, and what a moved agent waits for: pure."""

from __future__ import annotations

from random import Random

from startup.plan.actions import Fork
from startup.plan.desired import Desired
from startup.plan.fencing import Fencing, Limit, claims, moves_between
from startup.plan.phase import Phase
from startup.plan.reconcile import Reconciler
from startup.plan.row import AgentRow
from tests.startup.plan.builders import agent, aid, revision

B_HERE, B_THERE = aid("m/B"), aid("n/B")


def core(*agents: str, fencing: Fencing | None = None) -> Reconciler:
    """Machine m's, with a revision that wants these."""
    made = Reconciler("m", Random(1))
    made.fencing = fencing or Fencing()
    made.desire(revision(*map(agent, agents)), 1.0)
    return made


def forked(made: Reconciler, now_s: float = 2.0) -> list[str]:
    made.look_again(now_s)
    return [str(action.id) for action in made.step(now_s).actions if isinstance(action, Fork)]


def test_nothing_starts_while_it_is_held() -> None:
    made = core("m/A", fencing=Fencing(held="the others"))
    assert forked(made) == []
    assert made.processes[aid("m/A")].waiting_for == ("the others",)
    made.fencing.held = ""
    assert forked(made) == ["m/A"]


def test_a_newer_revision_takes_away_and_gives_nothing() -> None:
    made = core("m/A", "m/B")
    limit = Limit((7, "x"), "n", frozenset({aid("m/A"), aid("m/C")}))
    assert made.fencing.takes(limit, own=(6, "z"))
    assert forked(made) == ["m/A"]
    stopped = made.processes[B_HERE]
    assert (stopped.phase, stopped.reason) == (Phase.STOPPED, limit.why_not)
    made.fencing.revised((6, "z"))
    assert made.fencing.limit is limit
    made.fencing.revised((7, "x"))
    assert forked(made, 3.0) == ["m/B"]


def test_of_two_revisions_with_one_number_both_sides_take_the_same_for_newer() -> None:
    fencing = Fencing()
    assert not fencing.takes(Limit((7, "a"), "n", frozenset()), own=(7, "b"))
    assert fencing.takes(Limit((7, "b"), "n", frozenset()), own=(7, "a"))
    assert not fencing.takes(Limit((7, "a"), "o", frozenset()), own=(6, "c")), "an older one than is known already"


def test_what_has_moved_is_what_is_here_now_and_was_wanted_elsewhere_before() -> None:
    before = Desired(revision(agent("n/B"), agent("n/S"), agent("n/Stays"), stopped=("n/S",)))
    after = Desired(revision(agent("m/B"), agent("m/S"), agent("m/New"), agent("n/Stays"), agent("m/Stays")))
    assert moves_between(before, after, "m") == {B_HERE: B_THERE}
    assert moves_between(before, after, "n") == {}


def test_a_moved_agent_starts_when_its_machine_says_that_nothing_of_it_runs() -> None:
    made = core("m/B", fencing=Fencing(moves={B_HERE: B_THERE}))
    assert forked(made) == []
    assert made.processes[B_HERE].phase is Phase.SKIPPED, "n has never been heard"
    assert "--force-move" in made.processes[B_HERE].reason
    made.see_rows([AgentRow(id=B_THERE, phase=Phase.READY)], 3.0)
    made.step(3.0)
    assert made.processes[B_HERE].waiting_for == ("n/B to end there",)
    made.see_unreachable(frozenset({"n"}), 4.0)
    made.step(4.0)
    assert made.processes[B_HERE].phase is Phase.SKIPPED
    assert made.fencing.told(B_THERE, Phase.STOPPING) == []
    assert made.fencing.told(B_THERE, Phase.STOPPED) == [B_HERE]
    assert forked(made, 5.0) == ["m/B"]


def test_what_is_known_outlives_the_node() -> None:
    limit = Limit((7, "x"), "n", frozenset({aid("m/A")}))
    fencing = Fencing(limit=limit, moves={B_HERE: B_THERE})
    assert Fencing.from_wire(fencing.to_wire()) == fencing


def test_claims_are_what_a_revision_wants_on_a_machine() -> None:
    wanted = Desired(revision(agent("m/A"), agent("m/S"), agent("n/B"), stopped=("m/S",)))
    assert claims(wanted, "m") == ["m/A"]
    assert claims(Desired(revision(agent("m/A"), down=True)), "m") == []
