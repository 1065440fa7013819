"""A changed config is told to a process that takes it; every other change, and a refused one, replaces the process."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

from agentkit.names import Incarnation
from startup.node.memory import Remembering, process_of
from startup.plan import process as proc
from startup.plan import reconfigure, transitions
from startup.plan.actions import Action, Configure, ForkBeside
from startup.plan.phase import Phase
from startup.plan.process import Process
from startup.plan.reconcile import Reconciler
from startup.spec.fleet import AgentSpec
from tests.startup.plan.builders import agent, aid, revision

A = aid("A")
FIRST = Incarnation(1)


class Slot:
    """One agent, ready, on a node whose clock stands still."""

    def __init__(self, *, takes_config: bool = True, **keys: Any) -> None:
        self.core = Reconciler("m", Random(0))
        self.number = 0
        self.up(**keys)
        self.on(lambda p: transitions.ordered(p, FIRST))
        self.on(lambda p: transitions.forked(p, 10, FIRST, 0.0))
        self.on(lambda p: transitions.ready(replace(p, takes_config=takes_config), 0.0))

    @property
    def p(self) -> Process:
        return self.core.processes[A]

    def up(self, **keys: Any) -> list[Action]:
        self.number += 1
        self.core.desire(revision(agent("A", **keys), number=self.number), 0.0)
        return self.core.step(0.0).actions

    def on(self, change: Any) -> list[Action]:
        self.core.on(A, change, 0.0)
        self.core.look_again(0.0)
        return self.core.step(0.0).actions

    def offered(self) -> AgentSpec:
        assert self.p.offered is not None
        return self.p.offered


def told(actions: list[Action]) -> bool:
    return actions == [Configure(A, FIRST)]


def replaced(actions: list[Action]) -> bool:
    return any(isinstance(action, ForkBeside) for action in actions)


def test_a_changed_config_is_told_once_and_counts_when_it_was_taken() -> None:
    slot = Slot(config={"a": 1})
    assert told(slot.up(config={"a": 2}))
    assert slot.up(config={"a": 2}) == []
    assert slot.p.spec.config == {"a": 1}
    assert slot.on(partial(reconfigure.taken, spec=slot.offered())) == []
    assert slot.p.spec.config == {"a": 2}
    assert (slot.p.offered, slot.p.incarnation, slot.p.swap) == (None, FIRST, None)


def test_a_config_that_was_refused_comes_about_by_a_successor_and_another_is_told_again() -> None:
    slot = Slot(config={"a": 1})
    slot.up(config={"a": 2})
    assert replaced(slot.on(lambda p: reconfigure.refused(p, slot.offered(), "no")))
    assert slot.p.last_error == "no"

    slot = Slot(config={"a": 1})
    slot.up(config={"a": 2})
    late = slot.offered()
    assert told(slot.up(config={"a": 3}))
    assert slot.on(lambda p: reconfigure.refused(p, late, "no")) == []  # of an offer that does not count any more
    assert slot.on(lambda p: reconfigure.taken(p, late)) == []
    assert slot.p.spec.config == {"a": 1}


def test_what_else_changes_or_a_class_without_the_hook_means_a_successor() -> None:
    assert replaced(Slot(config={"a": 1}).up(config={"a": 2}, env={"X": "1"}))
    assert replaced(Slot(config={"a": 1}, takes_config=False).up(config={"a": 2}))


def test_the_next_node_knows_what_its_process_runs_with() -> None:
    slot = Slot(config={"a": 1})
    facts = Remembering().of([slot.p])[str(A)]
    new = agent("A", config={"a": 2})
    assert reconfigure.is_possible(process_of(facts, new), new)
    other = agent("A", config={"a": 2}, env={"X": "1"})
    assert not reconfigure.is_possible(process_of(facts, other), other)
    assert not reconfigure.is_possible(process_of({**facts, "base": ""}, new), new)
    slot.up(config={"a": 2})
    slot.on(lambda p: reconfigure.taken(p, slot.offered()))
    facts = Remembering().of([slot.p])[str(A)]
    assert proc.runs(process_of(facts, new), new)
    assert process_of(facts, new).phase is Phase.READY
