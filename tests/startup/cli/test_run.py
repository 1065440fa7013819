"""`agentkit run`: the operator's process in an agent's slot."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from agentkit.names import AgentId
from startup.cli.cluster import Watch
from startup.control import UnixDoor
from startup.plan.phase import Phase
from tests.startup.cli.launched import PATIENCE_S, Launched

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def fleet() -> Iterator[Launched]:
    with Launched() as launched:
        launched.write({"Base": {}, "Top": {"dependencies": ["Base"]}})
        launched.up()
        yield launched


def wait_for_pid(fleet: Launched, name: str, *, other_than: int, equal: int | None = None) -> int:
    id = AgentId.parse(f"m/{name}")
    with Watch({"m": UnixDoor(str(fleet.place("m").control))}) as watch:

        def is_there(rows: object) -> bool:
            row = watch.rows.get(id)
            right = row is not None and row.phase is Phase.READY and row.pid != other_than
            return right and (equal is None or watch.rows[id].pid == equal)

        assert watch.until(is_there, PATIENCE_S), watch.rows[id]
        return int(watch.rows[id].pid or 0)


def test_the_terminal_serves_the_slot_and_gives_it_back(fleet: Launched) -> None:
    own = fleet.pids()["Top"]
    assert own is not None
    process = fleet.popen("run", "Top")
    wait_for_pid(fleet, "Top", other_than=own, equal=process.pid)
    assert fleet.run("call", "Top", "pid").out.strip() == str(process.pid)
    with pytest.raises(ProcessLookupError):
        os.kill(own, 0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err
    assert "runs here now" in err
    assert "started with hello" in out + err
    wait_for_pid(fleet, "Top", other_than=process.pid)
    assert fleet.run("call", "Top", "echo", "text=a").out == "a\n"


def test_a_terminal_that_is_killed_gives_the_slot_back_too(fleet: Launched) -> None:
    process = fleet.popen("run", "Base")
    wait_for_pid(fleet, "Base", other_than=fleet.pids()["Base"] or 0, equal=process.pid)
    process.kill()
    process.communicate()
    wait_for_pid(fleet, "Base", other_than=process.pid)


def test_who_gives_up_waiting_leaves_the_slot_as_it_was(fleet: Launched) -> None:
    assert fleet.run("stop", "Base").code == 0
    process = fleet.popen("run", "Top")  # waits for Base
    id = AgentId.parse("m/Top")
    with Watch({"m": UnixDoor(str(fleet.place("m").control))}) as watch:
        assert watch.until(lambda rows: id in rows and rows[id].phase is not Phase.READY, PATIENCE_S)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert fleet.run("start", "Top").code == 0
    assert fleet.pids()["Top"] not in (None, process.pid)


def test_an_agent_that_shall_not_run_is_not_lent(fleet: Launched) -> None:
    assert fleet.run("stop", "Top").code == 0
    result = fleet.run("run", "Top")
    assert result.code == 1
    assert "stopped by operator" in result.err
