"""The agents that ship, each running and called over its real socket."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentkit import BadRequest, NotFound, StartupError
from agentkit.testing import MemoryStore, Running, running
from agents.analytics import Analytics
from agents.member import Member
from agents.reporter import Reporter
from agents.system_monitor import SystemMonitor
from agents.task_manager import TaskManager

NOBODY = "tcp://127.0.0.1:1"  # no service listens on port 1


@pytest.fixture
async def tasks(tmp_path: Path) -> AsyncIterator[Running[TaskManager]]:
    async with running(TaskManager, config={"db_path": "my.db"}, data_dir=tmp_path) as agent:
        yield agent


async def test_a_task_goes_through_its_whole_life(tasks: Running[TaskManager], tmp_path: Path) -> None:
    peer = tasks.peer
    due = datetime(2030, 1, 1, tzinfo=UTC)
    task = await peer.create(title="Write", priority=4, tags=["work"], due=due)
    assert (task["status"], task["due"], task["tags"]) == ("open", due, ["work"])
    assert await peer.get(id=task["id"]) == task
    assert (await peer.update(id=task["id"], changes={"status": "started", "due": None}))["due"] is None
    assert (await peer.complete(id=task["id"]))["status"] == "done"
    assert (await peer.list(status="done"))["total"] == 1
    assert (await peer.stats())["by_status"] == {"open": 0, "started": 0, "done": 1}
    await peer.delete(id=task["id"])
    with pytest.raises(NotFound, match=f"no task {task['id']}"):
        await peer.get(id=task["id"])
    assert (tmp_path / "my.db").exists()


@pytest.mark.parametrize(
    ("method", "arguments", "named"),
    [
        ("create", {"title": ""}, "title"),
        ("create", {"title": "x", "priority": 6}, "priority"),
        ("create", {}, "title"),
        ("update", {"id": 1, "changes": {"completed": None}}, "changes.completed"),
        ("list", {"limit": 501}, "limit"),
        ("list", {"order": "size"}, "order"),
    ],
)
async def test_a_wrong_call_is_refused_and_the_argument_named(
    tasks: Running[TaskManager], method: str, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadRequest, match=named):
        await tasks.call(method, arguments)


async def test_events_are_recorded_one_by_one_and_in_bulk_and_reported(tmp_path: Path) -> None:
    async with running(Analytics, data_dir=tmp_path) as agent:
        await agent.peer.record(event={"name": "search", "user": "ann", "duration_ms": 5})
        many = [{"name": "search", "error": "timeout", "at": datetime.now(UTC) - timedelta(seconds=1)}] * 500
        assert await agent.peer.record_many(events=many) == 500
        usage = await agent.peer.usage(period="month")
        assert (sum(u["events"] for u in usage), sum(u["errors"] for u in usage)) == (501, 500)
        (error,) = await agent.peer.errors()
        assert (error["name"], error["error"], error["count"]) == ("search", "timeout", 500)
        with pytest.raises(BadRequest, match="period"):
            await agent.peer.usage(period="year")


async def test_what_happens_to_tasks_is_published_and_analytics_counts_it(
    tasks: Running[TaskManager], tmp_path: Path
) -> None:
    async with running(Analytics, config={"db_path": "analytics.db"}, data_dir=tmp_path) as analytics:
        task = await tasks.peer.create(title="Write", due=datetime(2030, 1, 1, tzinfo=UTC))
        await tasks.peer.update(id=task["id"], changes={"priority": 5})
        for _ in range(2):
            await tasks.peer.complete(id=task["id"])
        await tasks.peer.delete(id=task["id"])
        async with asyncio.timeout(10):
            while "task.deleted" not in (counted := await counts(analytics)):
                await asyncio.sleep(0.01)
    assert counted == {"task.created": 1, "task.updated": 3, "task.completed": 1, "task.deleted": 1}


async def counts(analytics: Running[Analytics]) -> dict[str, int]:
    """Name -> events, all of them published by TaskManager."""
    return {usage["name"]: usage["events"] for usage in await analytics.peer.usage(period="month")}


async def test_the_monitor_keeps_a_bounded_window_of_its_machine() -> None:
    async with running(SystemMonitor, config={"window": 3}) as agent:
        for _ in range(5):
            agent.agent.sample()
        now = await agent.peer.now()
        assert 0 <= now["cpu_percent"] <= 100
        history = await agent.peer.history(last=100)
        assert len(history) == 3
        assert history[-1]["at"] == now["at"]
        summary = await agent.peer.summary()
        assert (summary["machine"], summary["samples"]) == ("test", 3)
        assert summary["memory_percent"]["low"] <= summary["memory_percent"]["high"]


async def test_asking_the_monitor_often_makes_no_rates_over_no_time() -> None:
    async with running(SystemMonitor) as agent:
        assert await agent.peer.now() == await agent.peer.now()
        assert len(await agent.peer.history()) == 1
        agent.agent.last_reading = replace(agent.agent.last_reading, monotonic_s=0.0)
        await agent.peer.now()
        assert len(await agent.peer.history()) == 2


async def test_the_monitor_warns_above_its_limits() -> None:
    limits = {"cpu_warning_percent": 100, "memory_warning_percent": 0, "disk_warning_percent": 0}
    async with running(SystemMonitor, config=limits) as agent:
        warnings = (await agent.peer.summary())["warnings"]
        assert [warning.split(" at ")[0] for warning in warnings] == ["memory", "disk /"]


async def test_a_report_gathers_what_the_others_know(tasks: Running[TaskManager]) -> None:
    await tasks.peer.create(title="Late", due=datetime(2020, 1, 1, tzinfo=UTC))
    async with running(Analytics) as analytics, running(SystemMonitor) as monitor:
        await analytics.peer.record(event={"name": "login"})
        peers = {"TaskManager": tasks.endpoint, "Analytics": analytics.endpoint, "SystemMonitor": monitor.endpoint}
        async with running(Reporter, peers=peers) as reporter:
            report = await reporter.peer.report()
    assert (report["tasks"]["total"], report["tasks"]["overdue"], report["away"]) == (1, 1, [])
    assert [usage["name"] for usage in report["usage"]] == ["login"]
    assert [machine["machine"] for machine in report["machines"]] == ["test"]
    for part in ("1 tasks, 1 overdue", "| login | 1 | 0 |", "| test |"):
        assert part in report["markdown"]


async def test_a_report_without_one_of_them_says_who_is_away_and_why(tasks: Running[TaskManager]) -> None:
    config = {"monitors": ["NeverHeardOf"]}
    async with running(Reporter, config=config, peers={"TaskManager": tasks.endpoint, "Analytics": NOBODY}) as reporter:
        report = await reporter.peer.report()
    assert report["tasks"]["total"] == 0
    assert (report["usage"], report["machines"]) == (None, [])
    assert [away["agent"] for away in report["away"]] == ["Analytics", "NeverHeardOf"]
    assert "no agent called 'NeverHeardOf'" in report["markdown"]


async def test_a_reporter_remembers_its_last_report_when_it_starts_again(tasks: Running[TaskManager]) -> None:
    store = MemoryStore()
    reports = []
    for title in ("one", "two"):
        await tasks.peer.create(title=title)
        async with running(Reporter, peers={"TaskManager": tasks.endpoint}, state=store) as reporter:
            reports.append(await reporter.peer.report())
    assert [(report["number"], report["new_tasks"]) for report in reports] == [(1, None), (2, 1)]
    assert reports[1]["since"] == reports[0]["made"]
    assert "2 tasks, 0 overdue, +1 since" in reports[1]["markdown"]


async def test_a_member_calls_its_peers_before_it_is_ready_and_serves() -> None:
    async with running(Member, name="First") as first:
        peers = {"First": first.endpoint}
        calls = ["First", {"name": "Nobody", "required": False}]
        async with running(Member, name="Second", config={"calls": calls}, peers=peers) as second:
            who = await second.peer.whoami()
            assert who == {
                "name": "Second",
                "instance": "Second",
                "machine": "test",
                "pid": os.getpid(),
                "answered": ["test/First"],
                "silent": ["Nobody"],
            }
            for value in (None, b"\x00" * 64, "text", {"a": [1, 2.5, True]}):
                assert await second.peer.echo(value=value) == value
            assert await second.peer.work(ms=5) >= 5


async def test_a_member_whose_required_peer_is_away_does_not_come_up() -> None:
    with pytest.raises(StartupError, match="no agent called 'Nobody'"):
        async with running(Member, config={"calls": ["Nobody"]}):
            pass


async def test_storage_agents_are_healthy_only_while_their_database_can_be_read(tasks: Running[TaskManager]) -> None:
    async with httpx.AsyncClient() as http:
        health = (await http.get(f"{tasks.health_url}/health")).json()
    assert health["checks"]["database"]["status"] == "passed"


@pytest.mark.process
@pytest.mark.parametrize("script", ["task_manager", "analytics", "system_monitor", "reporter", "member"])
def test_each_agent_runs_from_its_own_file(script: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    # PYTHONPATH: also from a checkout whose agentkit is not installed
    env = os.environ | {"AGENTKIT_DATA_DIR": str(tmp_path), "AGENTKIT_LOG_FORMAT": "json", "PYTHONPATH": str(root)}
    command = [sys.executable, root / "agents" / f"{script}.py"]
    process = subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        said = json.loads(process.stderr.readline())
        assert said["message"] == "agent.ready", said
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
