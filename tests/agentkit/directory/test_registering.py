"""What is told to Consul, whatever it has and whatever is wanted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentkit.directory.registering import Deregister, Feed, Register, Standing, Step, Wanted, done, found_of, steps
from agentkit.names import AgentId
from tests.agentkit.directory.test_entries import entry, service

IDS = [entry(f"m/a{number}").id for number in range(6)]
STATUS = st.sampled_from(["passing", "warning"])
WANTED = st.dictionaries(st.sampled_from(IDS), st.tuples(st.integers(1, 3), STATUS), max_size=6).map(
    lambda told: {id: Wanted(entry(str(id), number), status) for id, (number, status) in told.items()}
)
STANDING = st.dictionaries(st.sampled_from(IDS), st.tuples(st.integers(1, 3), STATUS), max_size=6).map(
    lambda told: {id: Standing(entry(str(id), number).digest, status) for id, (number, status) in told.items()}
)


def after(standing: dict[AgentId, Standing], todo: list[Step]) -> dict[AgentId, Standing]:
    for step in todo:
        standing = done(standing, step)
    return standing


@given(WANTED, STANDING, st.booleans())
def test_after_the_steps_stands_what_is_wanted_and_nothing_is_left_to_do(
    wanted: dict[AgentId, Wanted], standing: dict[AgentId, Standing], feed: bool
) -> None:
    reached = after(standing, steps(wanted, standing, feed=feed))
    assert reached == {id: Standing(want.entry.digest, want.status) for id, want in wanted.items()}
    assert steps(wanted, reached) == []


@given(WANTED, STANDING)
def test_nobody_is_told_of_twice_and_who_leaves_is_told_first(
    wanted: dict[AgentId, Wanted], standing: dict[AgentId, Standing]
) -> None:
    todo = steps(wanted, standing, feed=True)
    registered = [step.id for step in todo if isinstance(step, Register)]
    assert len(set(registered)) == len(registered)
    kinds = [isinstance(step, Deregister) for step in todo]
    assert kinds == sorted(kinds, reverse=True)
    fed = {step.id for step in todo if isinstance(step, Feed)}
    assert fed | set(registered) == wanted.keys()


def test_what_stands_and_is_wanted_costs_one_feed_and_only_when_it_is_due() -> None:
    wanted = {id: Wanted(entry(str(id)), "passing") for id in IDS}
    standing = {id: Standing(want.entry.digest, "passing") for id, want in wanted.items()}  # type: ignore[arg-type]
    assert steps(wanted, standing) == []  # type: ignore[arg-type]
    assert steps(wanted, standing, feed=True) == [Feed(id, "passing") for id in IDS]  # type: ignore[arg-type]


def test_an_id_that_is_somebody_elses_is_left_alone() -> None:
    wanted = {IDS[0]: Wanted(entry("m/a0"), "passing")}
    theirs = {
        "m/a0": {"Service": "other", "Meta": {}},
        "m/a1": service(entry("m/a1")),
        "n/a": service(entry("n/a")),
        "x": {},
    }
    found = found_of(theirs, "c", "m")
    assert found.taken == {"m/a0"}
    assert set(found.standing) == {IDS[1]}
    assert steps(wanted, found.standing, taken=found.taken) == [Deregister(IDS[1])]
