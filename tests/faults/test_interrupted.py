"""Deaths in the middle of something: of node, zygote or both while a fleet comes up or goes down. What was begun is finished."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch, is_alive, kill
from tests.startup.cli.launched import Result

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = '''
    from __future__ import annotations
    import asyncio
    from agentkit import AgentConfig, BaseAgent, rpc

    def tell(line: str) -> None:
        with open("told", "a") as file:
            file.write(line + "\\n")

    class Link(BaseAgent):
        """Takes its time to start and to stop, and needs the one before it for both."""
        class Config(AgentConfig):
            calls: str | None = None

        async def on_start(self) -> None:
            tell(f"starts {self.name}")
            await asyncio.sleep(0.05)
            if self.config.calls:
                await self.call(self.config.calls, "greet", timeout=10)

        @rpc
        async def greet(self) -> str:
            return self.name

        async def on_stop(self) -> None:
            await asyncio.sleep(0.05)
            tell(f"stopped {self.name}")
'''
LENGTH = 10
NAMES = [f"L{n}" for n in range(LENGTH)]


@pytest.fixture
def chain(fleet: Scratch) -> Scratch:
    """Ten agents in a row, 50 ms each."""
    fleet.python("links.py", AGENTS)
    policy = {"delay": "10ms", "max_attempts": 3}
    agents = {NAMES[0]: {"agent": "links:Link", "restart": policy}}
    for before, name in pairwise(NAMES):
        agents[name] = {"agent": "links:Link", "restart": policy, "dependencies": [before], "config": {"calls": before}}
    fleet.write(agents)
    return fleet


def up_until(chain: Scratch, name: str) -> subprocess.Popen[str]:
    """An `up` under way: `name` is starting."""
    process = chain.popen("up", "fleet.yaml", "--json")
    chain.wait(lambda rows: rows[name].pid is not None)
    return process


def ended(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=PATIENCE_S)
    return Result(process.returncode, out, err)


def starts(chain: Scratch) -> Counter[str]:
    return Counter(line.partition(" ")[2] for line in chain.told() if line.startswith("starts "))


def test_up_is_finished_by_the_next_node_when_its_node_is_killed(chain: Scratch) -> None:
    process = up_until(chain, NAMES[4])
    kill(chain.node_pid())
    result = ended(process)
    assert result.code == 0, result.err
    assert result.json["ready"] == LENGTH
    assert starts(chain) == dict.fromkeys(NAMES, 1)  # nobody was started twice, or again


def test_up_is_finished_with_the_next_zygote_when_its_zygote_is_killed(chain: Scratch) -> None:
    process = up_until(chain, NAMES[4])
    kill(chain.zygote_pid())
    result = ended(process)
    assert result.code == 0, result.err
    assert result.json["ready"] == LENGTH
    assert all(count == 1 for name, count in starts(chain).items() if name != NAMES[4]), starts(chain)


def test_up_that_lost_node_and_zygote_is_finished_by_the_next_up(chain: Scratch) -> None:
    process = up_until(chain, NAMES[4])
    kill(chain.zygote_pid(), chain.node_pid())
    chain.up()
    rows = chain.wait_phase(Phase.READY, *NAMES)
    # L4 may have failed meanwhile: it looks a name up for the first time, and there was nobody to ask
    assert all(count == 1 for name, count in starts(chain).items() if name != NAMES[4]), starts(chain)
    assert len({row.pid for row in rows.values()}) == LENGTH
    # the first one finds the node that the second has started: the same fleet is up, or it sees first that it was overtaken
    result = ended(process)
    assert result.code == 0 or (result.code == 1 and "overtaken" in result.err), result.err


def test_up_with_kills_at_any_instant_ends_with_every_agent_once(chain: Scratch) -> None:
    """Seeded: the same instants each time, as far as the machine allows."""
    random_ = random.Random(2)
    process = chain.popen("up", "fleet.yaml", "--json")
    for name in NAMES[1::3]:
        chain.wait(lambda rows, name=name: rows[name].phase in (Phase.STARTING, Phase.READY))
        victim: Callable[[], int] = random_.choice([chain.node_pid, chain.zygote_pid])
        kill(victim())
    result = ended(process)
    assert result.code == 0, result.err + chain.node_log()[-2000:]
    assert result.json["ready"] == LENGTH
    pids = [agent["pid"] for agent in result.json["agents"]]
    assert len(set(pids)) == LENGTH
    assert chain.run("down").code == 0  # and the fixture finds whoever was started and forgotten


@pytest.mark.parametrize("who", ["node", "zygote", "both"])
def test_down_leaves_nothing_though_somebody_dies_meanwhile(chain: Scratch, who: str) -> None:
    chain.up()
    pids = {"node": [chain.node_pid()], "zygote": [chain.zygote_pid()], "both": [chain.zygote_pid(), chain.node_pid()]}
    process = chain.popen("down", "--json")
    chain.wait(lambda rows: rows[NAMES[6]].phase is Phase.STOPPED)
    kill(*pids[who])
    result = ended(process)
    assert result.code == 0, result.err


def test_a_node_that_is_stuck_is_killed_by_down_with_all_that_is_its(fleet: Scratch) -> None:
    fleet.write({"A": {}, "B": {"dependencies": ["A"]}})
    fleet.up()
    agents = [row.pid for row in fleet.rows().values()]
    os.kill(fleet.node_pid(), signal.SIGSTOP)
    result = fleet.run("down", "--timeout", "1")
    assert result.code == 0, result.err
    assert "the node of m does not answer" in result.err
    assert "ended 4 processes" in result.out
    assert not any(pid and is_alive(pid) for pid in agents)
    assert fleet.up()["ready"] == 2


def test_a_node_that_is_stuck_does_not_keep_its_agents_from_each_other(fleet: Scratch) -> None:
    fleet.write({"A": {}})
    (agent,) = fleet.up()["agents"]
    node = fleet.node_pid()
    row = fleet.rows()["A"]
    os.kill(node, signal.SIGSTOP)
    try:
        assert fleet.call_directly(row, "pid") == agent["pid"]
        result = fleet.run("call", "A", "pid", "--timeout", "300ms")
        assert result.code == 4, "nobody knows whether there is an A"
        assert f"(pid {node}) does not answer" in result.err
        assert "no_such_agent" not in result.err
    finally:
        os.kill(node, signal.SIGCONT)
    assert fleet.call("A", "pid") == agent["pid"]
