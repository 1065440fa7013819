"""Modules are really imported here, in real children."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from startup.spec.fleet import AgentTarget, ProgramTarget
from startup.spec.inspect import look
from startup.spec.modules import look_at
from startup.spec.verdict import Order
from tests.startup.spec.projects import AGENT, agents, loaded, of, one, write

pytestmark = pytest.mark.process

PROGRAM = "import time\ntime.sleep(1000)\n"


def test_a_class_that_is_there_and_a_config_that_fits_are_no_problem(tmp_path: Path) -> None:
    write(tmp_path, {"things/work.py": AGENT})
    found = loaded(
        tmp_path,
        agents("A: {agent: 'things.work:Worker', config: {size: 3}}\nB: {script_path: things/work.py}"),
        inspect=True,
    )
    assert not found.problems
    assert found.fleet is not None
    assert found.fleet.agents[1].target == AgentTarget(script="things/work.py", cls="Worker")


def test_a_config_that_the_agents_model_rejects_is_an_error_at_its_key(tmp_path: Path) -> None:
    write(tmp_path, {"work.py": AGENT})
    found = loaded(
        tmp_path,
        agents("A: {agent: 'work:Worker'}\nB: {agent: 'work:Worker', config: {size: big, sizes: 1}}"),
        inspect=True,
    )
    assert [(problem.at, problem.place.rpartition(":")[2]) for problem in of(found, "config")] == [
        ("agent_groups.core.B.config.size", "6"),
        ("agent_groups.core.B.config.sizes", "6"),
    ]


def test_a_missing_module_or_script_is_an_error(tmp_path: Path) -> None:
    found = of(
        loaded(
            tmp_path,
            agents("A: {agent: 'nowhere.work:Worker'}\nB: {script_path: nowhere.py, required: false}"),
            inspect=True,
        ),
        "module",
    )
    assert [(problem.severity, problem.at) for problem in found] == [
        ("error", "agent_groups.core.A.agent"),
        ("error", "agent_groups.core.B.script_path"),
    ]
    assert str(tmp_path / "nowhere.py") in found[1].found


def test_a_broken_script_is_an_error_with_its_line_and_a_warning_where_the_agent_is_optional(tmp_path: Path) -> None:
    write(tmp_path, {"broken.py": "x = 1\ndef f(:\n"})
    found = loaded(
        tmp_path, agents("A: {script_path: broken.py}\nB: {script_path: broken.py, required: false}"), inspect=True
    )
    first, second = of(found, "module")
    assert (first.severity, second.severity) == ("error", "warning")
    assert f"{tmp_path / 'broken.py'}:2 does not compile" in first.found
    assert "skipped" in second.fix
    assert found.fleet is not None
    assert [bool(spec.problem) for spec in found.fleet.agents] == [False, True]


def test_a_module_that_raises_at_import_is_an_error_that_says_where(tmp_path: Path) -> None:
    write(tmp_path, {"bad.py": "from agentkit import BaseAgent\n\nimport no_such_thing\nclass A(BaseAgent): pass\n"})
    problem = one(loaded(tmp_path, agents("A: {script_path: bad.py}"), inspect=True), "module")
    assert "bad.py:3 importing it raises ModuleNotFoundError: No module named 'no_such_thing'" in problem.found


def test_a_class_that_is_no_agent_is_an_error_that_names_those_there(tmp_path: Path) -> None:
    write(tmp_path, {"work.py": AGENT + "\nclass Plain: pass\n"})
    problem = one(loaded(tmp_path, agents("A: {agent: 'work:Plain'}"), inspect=True), "module")
    assert problem.found == "Plain in work is no agent"
    assert "Worker" in problem.want


def test_a_class_that_is_not_there_suggests_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, {"work.py": AGENT})
    assert (
        one(loaded(tmp_path, agents("A: {agent: 'work:Wroker'}"), inspect=True), "module").fix
        == "did you mean `Worker`?"
    )


def test_several_agents_in_a_script_are_an_error_that_lists_them(tmp_path: Path) -> None:
    write(tmp_path, {"work.py": AGENT + "\nclass Second(BaseAgent): pass\n"})
    found = loaded(tmp_path, agents("A: {script_path: work.py}\nB: {script_path: 'work.py:Second'}"), inspect=True)
    assert "Worker, Second" in one(found, "module").found


def test_an_imported_agent_is_not_defined_there(tmp_path: Path) -> None:
    write(tmp_path, {"work.py": AGENT, "other.py": "from work import Worker\n\nclass Other(Worker): pass\n"})
    found = loaded(tmp_path, agents("A: {script_path: other.py}"), inspect=True)
    assert found.fleet is not None
    assert found.fleet.agents[0].target == AgentTarget(script="other.py", cls="Other")


def test_a_script_without_an_agent_is_an_ordinary_program_and_is_not_run_to_find_out(tmp_path: Path) -> None:
    write(tmp_path, {"serve.py": "import threading\nclass T(threading.Thread): pass\n" + PROGRAM})
    found = loaded(tmp_path, agents("A: {script_path: serve.py, port: 10110}"), inspect=True)
    assert found.fleet is not None
    (spec,) = found.fleet.agents
    assert spec.target == ProgramTarget(script="serve.py")
    assert (spec.sockets, spec.ready.tcp_port, spec.health_port) == ("self", 10110, None)
    assert one(found, "programs").severity == "note"


def test_what_a_module_prints_and_exits_with_does_no_harm(tmp_path: Path) -> None:
    write(tmp_path, {
        "loud.py": "print('hello')\n" + AGENT,
        "exits.py": AGENT + "raise SystemExit(3)\n",
        "dies.py": AGENT + "import os\nos._exit(9)\n",
    })  # fmt: skip
    text = "A: {script_path: exits.py}\nB: {script_path: dies.py}\nC: {script_path: loud.py}\nD: {script_path: loud.py, config: {size: 2}}"
    first, second = of(loaded(tmp_path, agents(text), inspect=True), "module")
    assert "importing it exits" in first.found
    assert "ends the interpreter" in second.found


def test_what_takes_too_long_is_not_checked_and_leaves_no_process(tmp_path: Path) -> None:
    write(tmp_path, {"slow.py": AGENT + PROGRAM, "work.py": AGENT})
    slow = Order(project_root=str(tmp_path), script=str(tmp_path / "slow.py"))
    found = look_at({slow: [{}]}, timeout_s=1.0, cache=tmp_path / "cache")
    assert found[slow].kind == "not-checked"
    assert "1 s" in found[slow].message


def test_what_can_not_be_looked_at_here_is_a_note_and_never_silence(tmp_path: Path) -> None:
    text = "security: none\nmachines: {far: {host: '${H:-203.0.113.5}', node_port: 10001}}\n" + agents(
        "A: {agent: 'm:C'}\nB: {script_path: x.py}"
    )
    problem = one(loaded(tmp_path, text, inspect=True), "not-checked")
    assert problem.severity == "note"
    assert problem.found == "not checked here: the code of A, B: far is another machine"


def test_another_interpreter_is_not_judged_by_this_one(tmp_path: Path) -> None:
    write(tmp_path, {"work.py": AGENT})
    text = "machines: {a: {python: /opt/other/bin/python}}\n" + agents("A: {agent: 'work:Worker'}")
    assert "/opt/other/bin/python" in one(loaded(tmp_path, text, inspect=True), "not-checked").found


def test_a_good_verdict_is_remembered_until_the_file_or_the_config_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"work.py": AGENT})
    order = Order(project_root=str(tmp_path), script=str(tmp_path / "work.py"))
    cache = tmp_path / "cache"
    assert look_at({order: [{}]}, cache=cache)[order].kind == "agent"
    with monkeypatch.context() as patched:
        patched.setattr("startup.spec.modules._Child", None)  # no child could be made
        assert look_at({order: [{}]}, cache=cache)[order].cls == "Worker"
    assert look_at({order: [{"config": {"size": "x"}}]}, cache=cache)[order].errors
    write(tmp_path, {"work.py": "x = 1\n"})
    assert look_at({order: [{}]}, cache=cache)[order].kind == "program"


def test_a_bad_verdict_is_not_remembered(tmp_path: Path) -> None:
    write(tmp_path, {"bad.py": "import helper\n" + AGENT})
    order = Order(project_root=str(tmp_path), script=str(tmp_path / "bad.py"))
    assert look_at({order: [{}]}, cache=tmp_path / "cache")[order].kind == "unimportable"
    write(tmp_path, {"helper.py": ""})
    assert look_at({order: [{}]}, cache=tmp_path / "cache")[order].kind == "agent"


def test_many_modules_are_looked_at_and_a_shared_one_once(tmp_path: Path) -> None:
    write(tmp_path, {f"m{number}.py": AGENT for number in range(12)})
    text = "\n".join(
        f"A{number}: {{agent: 'm{number % 12}:Worker', config: {{size: {number}}}}}" for number in range(40)
    )
    found = loaded(tmp_path, "port_ranges: {core: 10100-10299}\n" + agents(text), inspect=True)
    assert {problem.check for problem in found.problems} == {"preload"}


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"bin/run": "#!/bin/sh\n"})
    (tmp_path / "bin/run").chmod(0o755)
    text = "A: {command: [no-such-program-at-all]}\nB: {command: [sleep, 5]}\nC: {command: [./bin/run]}\nD: {command: [./bin/nope]}"
    found = of(loaded(tmp_path, agents(text), inspect=True, environ={"PATH": os.environ["PATH"]}), "module")
    assert [problem.at for problem in found] == ["agent_groups.core.A.command", "agent_groups.core.D.command"]


def test_looking_never_raises(tmp_path: Path) -> None:
    (tmp_path / "zero.py").write_bytes(b"x = 1\0")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "dir.py").mkdir()
    for name in ("zero.py", "latin.py"):
        assert look(Order(project_root=str(tmp_path), script=str(tmp_path / name)), []).kind == "broken"
    assert look(Order(project_root=str(tmp_path), script=str(tmp_path / "dir.py")), []).kind == "missing"


SUBSCRIBERS = """
from __future__ import annotations
from typing import TYPE_CHECKING
from agentkit import BaseAgent, Event, rpc, subscribe
if TYPE_CHECKING:
    from nowhere import Thing

class Made(Event, topic="inspected.made"):
    x: int

class Strange:
    pass

class Worker(BaseAgent):
    {method}
"""


@pytest.mark.parametrize(
    ("method", "line", "told"),
    [
        ("@subscribe('inspected..made')\n    async def on_it(self, event: Made) -> None: ...", 15, "inspected..made"),
        ("@subscribe('inspected.*')\n    async def on_it(self) -> None: ...", 14, "(self, event)"),
        ("@subscribe('inspected.*')\n    async def on_it(self, *, event: Made) -> None: ...", 14, "(self, event)"),
        ("@subscribe('other.*')\n    async def on_it(self, event: Made) -> None: ...", 15, "inspected.made"),
        ("@subscribe('inspected.*')\n    async def on_it(self, event: Thing) -> None: ...", 15, "Thing"),
        ("@subscribe('inspected.*')\n    async def on_it(self, event: Strange) -> None: ...", 15, "a class of events"),
    ],
)
def test_a_method_that_can_not_take_events_is_an_error_with_its_line(
    tmp_path: Path, method: str, line: int, told: str
) -> None:
    write(tmp_path, {"work.py": SUBSCRIBERS.replace("{method}", method)})
    for _ in range(2):
        (problem,) = of(loaded(tmp_path, agents("A: {agent: 'work:Worker'}"), inspect=True), "module")
        assert problem.severity == "error"
        assert f"{tmp_path / 'work.py'}:{line}" in problem.found
        assert told in problem.found


def test_an_optional_agent_whose_class_can_not_work_is_skipped_with_a_warning(tmp_path: Path) -> None:
    wrong = "@subscribe('other.*')\n    async def on_it(self, event: Made) -> None: ..."
    write(tmp_path, {"work.py": SUBSCRIBERS.replace("{method}", wrong)})
    found = loaded(tmp_path, agents("A: {agent: 'work:Worker', required: false}"), inspect=True)
    assert one(found, "module").severity == "warning"
    assert found.fleet is not None
    assert "@subscribe" in found.fleet.agents[0].problem


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("@rpc\n    async def f(self, thing: Thing) -> None: ...", "Thing"),
        ("@subscribe('nobody.*')\n    async def f(self, event: Event) -> None: ...", "nobody.*"),
    ],
)
def test_what_will_fail_once_it_is_used_is_a_warning(tmp_path: Path, method: str, told: str) -> None:
    write(tmp_path, {"work.py": SUBSCRIBERS.replace("{method}", method)})
    for _ in range(2):
        problem = one(loaded(tmp_path, agents("A: {agent: 'work:Worker'}"), inspect=True), "class")
        assert problem.severity == "warning"
        assert f"{tmp_path / 'work.py'}:15" in problem.found
        assert told in problem.found
