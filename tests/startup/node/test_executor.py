"""What a node knows of processes that it has ordered and not been told of yet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any, cast

from agentkit.names import Incarnation, MachineName
from startup.node.executor import Executor
from startup.node.paths import Places
from startup.node.store import Incarnations
from startup.node.table import ClusterTable
from startup.node.turns import Turns
from startup.node.zygote.keeper import ZygoteKeeper
from startup.plan.reconcile import Reconciler
from tests.startup.cli.launched import free_port
from tests.startup.plan.builders import agent, aid, revision


class Silent:
    """A zygote that has forked, and whose word of it is still on its way."""

    def __init__(self) -> None:
        self.ordered = asyncio.Event()

    async def fork(self, *_: Any, **__: Any) -> Any:
        self.ordered.set()
        await asyncio.Event().wait()


async def test_a_process_may_speak_before_the_word_of_its_fork_is_read(tmp_path: Path) -> None:
    places = Places("c", "m", run=tmp_path / "run", state=tmp_path / "state")
    places.prepare()
    core = Reconciler(MachineName("m"), Random(1))
    turns = Turns(core, ClusterTable(), on_finished=lambda: None)
    zygote = Silent()
    executor = Executor(turns, places, Incarnations(places), cast("ZygoteKeeper", zygote), nofile=64, random=Random(1))
    turns.performer = executor
    core.desire(revision(agent("A", port=free_port())), turns.now_s())
    turns.soon()
    await zygote.ordered.wait()
    incarnation = core.processes[aid("A")].incarnation
    assert not executor.running
    assert executor.is_wanted(incarnation)
    assert not executor.is_wanted(Incarnation(incarnation - 1))
    turns.close()
    await executor.close()
