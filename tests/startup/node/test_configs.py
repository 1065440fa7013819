"""Another config for agents that run: told by a revision, or by Consul's KV store, without a restart where the class has `on_config`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agentkit.client import BlockingClient
from startup.plan.phase import Phase
from startup.spec.fleet import AgentSpec, AgentTarget, ConsulAccess
from tests.consul.fixtures import consul_server
from tests.consul.server import Server
from tests.faults.consul_pair import eventually
from tests.startup.node.cluster import Nodes, kill, nodes
from tests.startup.plan.builders import agent

__all__ = ["consul_server"]
pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(240)]

SPEAKER = """
import os
from agentkit import AgentConfig, BaseAgent, rpc

class Plain(BaseAgent):
    class Config(AgentConfig):
        words: str = "hello"
        times: int = 1

    async def on_start(self):
        self.started_with = self.config.words

    @rpc(idempotent=True)
    async def said(self) -> list:
        return [os.getpid(), self.started_with, self.config.words, self.config.times]

class Speaker(Plain):
    async def on_config(self, config):
        if config.words == "bad":
            raise ValueError("not this one")
"""


class Said(NamedTuple):
    pid: int
    started_with: str
    words: str
    times: int


@pytest.fixture
def cluster() -> Iterator[Nodes]:
    with nodes("m") as found:
        (found.folder / "speaker.py").write_text(SPEAKER)
        yield found


def speaker(name: str = "A", cls: str = "Speaker", **config: object) -> AgentSpec:
    port = 21500 + ord(name) - ord("A")
    return agent(f"m/{name}", target=AgentTarget(module="speaker", cls=cls), port=port, config=config)


def said(cluster: Nodes, name: str = "A") -> Said:
    with BlockingClient(node=str(cluster.places().control)) as client:
        return Said(*client.call(name, "said"))


def log_of(cluster: Nodes, name: str) -> str:
    path: Path = cluster.places().log(name)
    return path.read_text()


def test_a_changed_config_is_told_without_a_restart_and_stays_with_the_process_when_the_node_dies(
    cluster: Nodes,
) -> None:
    cluster.up(speaker(words="one"), speaker("B", words="one"))
    cluster.wait_phase(Phase.READY)
    first = said(cluster)
    cluster.up(speaker(words="two"), speaker("B", words="one"))
    eventually(lambda: said(cluster).words == "two")
    assert said(cluster) == first._replace(words="two")
    pid = cluster.node_pid()
    kill(pid)
    eventually(lambda: cluster.node_pid() != pid)
    cluster.up(speaker(words="two"), speaker("B", words="two"))  # and the next node knows what it runs with
    eventually(lambda: said(cluster, "B").words == "two")
    assert said(cluster) == first._replace(words="two")
    assert cluster.row("m/A").restarts == 0


def test_a_config_that_the_agent_refuses_comes_about_by_a_restart_and_the_reason_is_told(cluster: Nodes) -> None:
    cluster.up(speaker(words="one"), speaker("B", cls="Plain", words="one"))
    cluster.wait_phase(Phase.READY)
    first, plain = said(cluster), said(cluster, "B")
    cluster.up(speaker(words="bad"), speaker("B", cls="Plain", words="two"))
    eventually(lambda: said(cluster).words == "bad")
    assert said(cluster).pid != first.pid
    assert "on_config raised ValueError: not this one" in cluster.node_log()
    eventually(lambda: said(cluster, "B").words == "two")  # without `on_config` it is restarted anyway
    assert said(cluster, "B").pid != plain.pid


def test_what_consul_says_counts_at_the_start_and_when_it_changes_and_a_wrong_word_is_refused(
    cluster: Nodes, consul_server: Server
) -> None:
    consul_server.put("/v1/kv/conf/A/words", b"ahoy")
    access = ConsulAccess(address=consul_server.address, config_prefix="conf")
    cluster.up(speaker(words="one", times=2), speaker("B", cls="Plain"), registry="consul", consul=access)
    cluster.wait_phase(Phase.READY)
    first, plain = said(cluster), said(cluster, "B")
    assert first[1:] == ("ahoy", "ahoy", 2)
    consul_server.put("/v1/kv/conf/A/times", b"3")
    eventually(lambda: said(cluster).times == 3)
    consul_server.put("/v1/kv/conf/A/times", b"many")
    eventually(lambda: "config.times: got 'many'" in cluster.node_log())
    assert "config refused: config.times: got 'many'" in log_of(cluster, "A")
    assert said(cluster) == first._replace(times=3)
    consul_server.put("/v1/kv/conf/B/words", b"later")
    consul_server.ask("DELETE", "/v1/kv/conf/A/times")
    eventually(lambda: said(cluster).times == 2)
    assert said(cluster, "B") == plain  # no `on_config`: it counts from the next start on
    consul_server.put("/v1/kv/conf/A/words", b"[1]")
    consul_server.stop()
    cluster.ask(operation="restart", agents=["A", "B"])
    cluster.wait(lambda rows: rows["m/B"].phase is Phase.READY and rows["m/B"].pid != plain.pid)
    eventually(lambda: said(cluster, "B").words == "later")  # Consul is away: what was known counts
    eventually(lambda: said(cluster).pid != first.pid)
    assert said(cluster).words in ("one", "ahoy")  # a wrong word there does not keep it from starting
