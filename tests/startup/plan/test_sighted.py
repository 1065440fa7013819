from __future__ import annotations

from startup.plan.phase import Health, Phase
from startup.plan.sighted import sighted
from tests.agentkit.directory.test_entries import entry

FAR = entry("pc/a", 5, endpoints={"inbox": "tcp://10.0.0.2:1"}, methods={"timeouts_s": {"slow": 60.0}, "traits": {}})


def test_an_agent_that_passes_takes_calls() -> None:
    seen = sighted(FAR)
    assert (seen.phase, seen.health, seen.incarnation) == (Phase.READY, Health.OK, 5)
    assert (seen.endpoints, seen.timeouts_s) == ({"inbox": "tcp://10.0.0.2:1"}, {"slow": 60.0})


def test_a_sleeper_takes_calls() -> None:
    assert sighted(entry("pc/a", 5, phase="hibernated")).phase is Phase.HIBERNATED
