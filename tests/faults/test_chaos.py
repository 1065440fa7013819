"""`agentkit chaos`: faults over a running fleet under load, and what has to hold while and after them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from startup.plan.phase import Phase
from tests.faults.scratch import Scratch, is_alive, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = '''
    from __future__ import annotations
    import os
    from agentkit import BaseAgent, rpc

    class Keeps(BaseAgent):
        """Counts its lives in its folder, so that one that lost it would be seen."""
        async def on_start(self) -> None:
            with open(self.data_dir / "lives", "a") as file:
                file.write(f"{os.getpid()}\\n")

        @rpc(idempotent=True)
        async def lives(self) -> int:
            return len((self.data_dir / "lives").read_text().splitlines())

        @rpc
        async def once(self) -> int:
            return os.getpid()
'''

#: Agents of the fleet.
NAMES = ("A", "B", "C", "D", "E", "F")


def scratch(*machines: str) -> Scratch:
    made = Scratch(machines=machines)
    made.python("keeping.py", AGENTS)
    # 100 kills are many for six agents: the pause between restarts must not grow to half a minute
    restart = {"delay": "10ms", "max_delay": "100ms", "max_attempts": 1000}
    made.write({
        name: {
            "agent": "keeping:Keeps", "machine": machines[number % len(machines)], "restart": restart,
            "dependencies": ["A"] if number else [],
        }
        for number, name in enumerate(NAMES)
    }, mesh={"suspect": "300ms", "unreachable": "1s"})  # fmt: skip
    return made


@pytest.fixture
def fleet() -> Iterator[Scratch]:
    with scratch("m") as made:
        made.up()
        yield made


def plan(fleet: Scratch, **keys: Any) -> str:
    path = fleet.folder / "plan.yaml"
    path.write_text(json.dumps(keys))
    return str(path)


def chaos(fleet: Scratch, *words: str, **keys: Any) -> Any:
    """The document of a plan that has to hold."""
    fleet.patience_s = 900.0
    result = fleet.run("chaos", plan(fleet, **keys), "--yes", "--json", *words)
    assert result.code == 0, result.out + result.err
    return result.json


PROBES = [{"call": f"{name}.lives", "every": "20ms", "timeout": "20s"} for name in NAMES]


def kills(fleet: Scratch, seed: int, count: int, within_s: float) -> Mapping[str, Any]:
    """Agents most of all, sometimes a zygote or a node; nothing is lost."""
    share = {"agent": 0.6, "zygote": 0.2, "node": 0.2}
    faults = [{"kill": {kind: "*", "every": f"{within_s / (count * part):.3f}s"}} for kind, part in share.items()]
    before = fleet.rows()
    found = chaos(
        fleet, seed=seed, duration=f"{within_s:g}s", settle="60s", faults=faults, probe=PROBES,
        expect={"failed_calls": 0, "ready_within": "10s"},
    )  # fmt: skip
    done = [fault for fault in found["faults"] if not fault["missed"]]
    assert len(done) >= count * 0.8, found["faults"]
    assert {fault["fault"].split()[1] for fault in done} == {"agent", "zygote", "node"}
    assert all(probe["ok"] > 0 for probe in found["probes"])
    # nothing is lost of what agents keep: each life found the one before
    after = fleet.wait_phase(Phase.READY, *NAMES)
    for name in NAMES:
        lives = fleet.call(name, "lives")
        killed = sum(fault["fault"].startswith("kill agent") and fault["fault"].endswith(name) for fault in done)
        # a process that was forked in a zygote's or node's last instant has lived, too, and may not have been counted
        assert lives >= 1 + killed, name
        assert after[name].endpoints == before[name].endpoints
    return found


def test_fifteen_kills_of_agents_zygotes_and_nodes_under_load_lose_nothing(fleet: Scratch) -> None:
    kills(fleet, seed=6, count=15, within_s=7.5)


@pytest.mark.soak(only=True)
@pytest.mark.timeout(1200)
def test_a_hundred_kills_in_five_minutes_lose_nothing(fleet: Scratch) -> None:
    kills(fleet, seed=66, count=100, within_s=300.0)


def test_what_is_stopped_goes_on_again_whoever_dies_meanwhile(fleet: Scratch) -> None:
    faults = [
        {"stop": {"agent": "B", "at": "100ms", "for": "1500ms"}},
        {"stop": {"zygote": "m", "at": "100ms", "for": "1500ms"}},
        {"kill": {"node": "m", "at": "400ms"}},
    ]
    before = fleet.rows()
    found = chaos(
        fleet, duration="1s", faults=faults, probe=PROBES[2:3], expect={"failed_calls": 0, "ready_within": "20s"}
    )
    assert [fault["missed"] for fault in found["faults"]] == ["", "", ""]
    after = fleet.wait_phase(Phase.READY, *NAMES)
    assert {name: row.pid for name, row in after.items()} == {name: row.pid for name, row in before.items()}


def test_a_limit_that_is_broken_is_told_and_the_command_fails(fleet: Scratch) -> None:
    words = plan(
        fleet, duration="200ms", faults=[{"kill": {"agent": "B", "at": "100ms"}}], expect={"ready_within": "1ms"}
    )
    result = fleet.run("chaos", words, "--yes")
    assert result.code == 1
    assert "BROKEN: kill agent m/B" in result.out
    assert "within 1 ms" in result.out


def test_without_a_yes_without_a_plan_and_without_an_idempotent_method_nothing_is_done(fleet: Scratch) -> None:
    before = fleet.rows()
    faults = [{"kill": {"agent": "*", "at": "1ms"}}, {"kill": {"node": "m", "at": "1ms"}}]
    assert fleet.run("chaos", plan(fleet, duration="1s", faults=faults)).code == 2
    once = fleet.run("chaos", plan(fleet, duration="1s", faults=faults, probe=[{"call": "A.once"}]), "--yes")
    assert once.code == 2
    assert "an idempotent method of A" in once.err
    shown = fleet.run("chaos", plan(fleet, duration="1s", faults=faults), "--dry-run")
    assert "kill node m" in shown.out
    assert {name: row.pid for name, row in fleet.rows().items()} == {name: row.pid for name, row in before.items()}


def test_two_nodes_that_are_cut_off_find_each_other_again_though_the_operator_has_gone() -> None:
    with scratch("a", "b") as fleet:
        fleet.up()
        before = {name: row.pid for name, row in fleet.rows("a").items()}
        faults = [{"partition": {"between": ["a", "b"], "at": "1ms", "for": "3s"}}]
        command = fleet.popen("chaos", plan(fleet, duration="1s", faults=faults), "--yes")
        until(lambda: fleet.ask("status", "a")["peers"]["b"] in ("unreachable", "absent"))
        command.kill()
        command.communicate()
        until(lambda: [fleet.ask("status", here)["peers"][there] for here, there in ("ab", "ba")] == ["alive", "alive"])
        rows = fleet.wait(lambda rows: sum(row.phase is Phase.READY for row in rows.values()) == len(NAMES))
        assert {name: row.pid for name, row in rows.items()} == before
        slow = [{"delay": {"between": ["a", "b"], "at": "1ms", "for": "500ms", "by": "50ms"}}]
        chaos(fleet, duration="1s", faults=slow, probe=PROBES[1:2], expect={"failed_calls": 0})


def test_ctrl_c_heals_what_was_done(fleet: Scratch) -> None:
    pid = fleet.rows()["B"].pid
    assert pid is not None
    command = fleet.popen(
        "chaos", plan(fleet, duration="1s", faults=[{"stop": {"agent": "B", "at": "1ms", "for": "10m"}}]), "--yes"
    )
    until(lambda: state(pid) == "T")
    command.send_signal(signal.SIGINT)
    command.communicate()
    assert command.returncode == 130
    until(lambda: state(pid) != "T")
    assert is_alive(pid)


def state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
