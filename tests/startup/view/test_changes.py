from __future__ import annotations

from dataclasses import replace

import pytest

from agentkit.names import AgentId
from startup.plan.changes import changes
from startup.spec.fleet import AgentSpec, MeshSpec, SecretRef
from startup.view.changes import change_lines, heading
from tests.startup.plan.builders import agent, aid, revision
from tests.startup.view import golden


def slots(name: str, number: int, **keys: object) -> list[AgentSpec]:
    spec = agent(name, **keys)
    return [replace(spec, id=AgentId(spec.machine, spec.name, slot)) for slot in range(number)]


OLD = replace(
    revision(
        agent("main_pc/TaskManager", config={"db_path": "tasks.db", "api_token": "one"}, env={"LOG": "debug"}),
        agent("main_pc/Old"),
        agent("main_pc/Vision"),
        agent("main_pc/Resting"),
        *slots("main_pc/Worker", 4),
        *[agent(f"main_pc/Agent{n:02}", watchdog_s=30.0) for n in range(84)],
        number=7,
        stopped=("main_pc/Resting",),
    ),
    scaled={"main_pc/Worker": 4},
)
NEW = revision(
    agent(
        "main_pc/TaskManager", config={"db_path": "/srv/a/long/way/down/to/the/folder/of/jobs.db", "api_token": "two"},
        secrets={"KEY": SecretRef(file="/run/key")}, env={},
    ),
    agent("main_pc/New"), agent("pc2/Vision", port=7100), agent("main_pc/Resting"), *slots("main_pc/Worker", 2),
    *[agent(f"main_pc/Agent{n:02}", watchdog_s=45.0) for n in range(80)],
    *[agent(f"main_pc/Agent{n:02}", watchdog_s=30.0) for n in range(80, 84)],
    mesh=MeshSpec(suspect_s=5.0),
)  # fmt: skip


@pytest.mark.parametrize("width", [80, 200])
def test_a_diff_names_agents_and_keys_and_folds_what_changes_alike(width: int) -> None:
    lines = [heading("reference", 7, "configs/startup_config.yaml", width=width)]
    lines += change_lines(changes(OLD, NEW), width=width)
    golden.check(f"changes_{width}.txt", lines, width=width)


def test_nothing_is_said_in_a_line() -> None:
    assert list(change_lines(changes(OLD, OLD), width=80)) == ["nothing changes: 92 agents stay as they are"]
    one = revision(agent("A"))
    assert list(change_lines(changes(one, one), width=80)) == ["nothing changes: 1 agent stays as it is"]


def test_slots_that_change_alike_are_one_name() -> None:
    found = changes(revision(*slots("A", 4)), revision(*slots("A", 4, config={"x": 1})))
    assert next(iter(change_lines(found, width=80))) == "  ~ m/A#0-3  replaced"


def test_colour_is_for_terminals_only() -> None:
    found = changes(OLD, NEW)
    plain = list(change_lines(found, width=80))
    painted = list(change_lines(found, width=80, colour=True))
    assert not any("\x1b" in line for line in plain)
    assert any("\x1b" in line for line in painted)
    assert aid("main_pc/New").instance in "".join(painted)
