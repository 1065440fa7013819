"""kill -9 of whoever is there, at seeded random: in the end every agent is up once, and nobody is left that should not be."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from itertools import pairwise

import pytest

from startup.node import procinfo
from startup.plan.phase import Phase
from tests.faults.scratch import Scratch, kill, until
from tests.faults.test_interrupted import AGENTS, NAMES

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: Who is killed at once. Never node and zygote: then an operator has to come, which is another test.
VICTIMS = (("node",), ("zygote",), ("agent",), ("agent",) * 3, ("node", "agent"), ("zygote", "agent"))


def storm(seed: int, kills: int) -> str:
    """How it went, in a line; AssertionError when it went wrong."""
    chosen = random.Random(seed)
    began_s = time.monotonic()
    with Scratch() as fleet:
        fleet.python("links.py", AGENTS)
        policy = {"delay": "10ms", "max_attempts": 10 * kills}
        agents = {NAMES[0]: {"agent": "links:Link", "restart": policy}}
        for before, name in pairwise(NAMES):
            config = {"calls": before}
            agents[name] = {"agent": "links:Link", "restart": policy, "dependencies": [before], "config": config}
        fleet.write(agents)
        fleet.up()
        history = []
        for _ in range(kills):
            victims = chosen.choice(VICTIMS)
            history.append("+".join(victims))
            zygote = fleet.zygote_pid()  # waits for one: who is killed has come back before
            pids = {"node": fleet.node_pid(), "zygote": zygote}
            alive = [row.pid for row in fleet.rows().values() if row.pid]
            for victim in victims:
                with suppress(ProcessLookupError):
                    kill(pids.get(victim) or chosen.choice(alive))
            time.sleep(chosen.choice([0, 0.01, 0.05, 0.2]))  # the storm's own rhythm, nothing is waited for
        rows = fleet.wait_phase(Phase.READY, *NAMES)
        own = {row.pid for row in rows.values()}
        assert len(own) == len(NAMES)
        node = str(fleet.place("m").control)
        # a process whose fork was under way when the zygote died finds out by itself that nobody knows it
        until(lambda: {found.pid for found in procinfo.all_stats() if is_of(found.pid, node)} <= own, within_s=30)
        assert fleet.call(NAMES[-1], "greet") == NAMES[-1]
        restarts = sum(row.restarts for row in rows.values())
    return f"{seed:>5} {restarts:>9} {time.monotonic() - began_s:>6.1f} s  {' '.join(history)}"


def is_of(pid: int, node: str) -> bool:
    return procinfo.environ(pid).get("AGENTKIT_NODE") == node


@pytest.mark.soak
def test_kills_at_random_leave_every_agent_up_once(times: int) -> None:
    print("\n seed  restarts    took  killed")
    for seed in range(5, 5 + times):
        print(storm(seed, kills=6 if times == 1 else 15), flush=True)
