"""One look per turn: what was decided is done, whatever one action does to the others."""

from __future__ import annotations

import asyncio
from random import Random

from agentkit.names import MachineName
from startup.node.table import ClusterTable
from startup.node.turns import Turns
from startup.plan.actions import Action, Fork
from startup.plan.reconcile import Reconciler
from tests.startup.plan.builders import agent, revision


class Clumsy:
    """Trips over the first fork that it is given."""

    def __init__(self) -> None:
        self.forked: list[str] = []
        self.has_tripped = False

    def perform(self, action: Action) -> None:
        if isinstance(action, Fork):
            if not self.has_tripped:
                self.has_tripped = True
                raise RuntimeError("no luck")
            self.forked.append(str(action.id.name))


async def test_an_action_that_can_not_be_done_does_not_take_the_others_with_it() -> None:
    core = Reconciler(MachineName("m"), Random(1))
    turns = Turns(core, ClusterTable(), on_finished=lambda: None)
    turns.performer = clumsy = Clumsy()
    core.desire(revision(agent("A"), agent("B"), agent("C")), turns.now_s())
    turns.soon()
    for _ in range(10):
        await asyncio.sleep(0)
    turns.close()
    assert clumsy.has_tripped
    assert len(clumsy.forked) == 2
