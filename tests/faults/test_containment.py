"""Agents that take more than their share: held to it, reported, and everybody else goes on; in cgroups, and where there are none."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agentkit.client import BlockingClient
from startup.node.limits import cgroups
from startup.node.limits.bounds import VARIABLE, choose
from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch, is_alive, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = '''
    from __future__ import annotations
    import asyncio, os, signal, subprocess, sys, time
    from agentkit import BaseAgent, rpc

    class Neighbour(BaseAgent):
        """Only answers."""
        @rpc
        async def greet(self) -> str:
            return "hello"

    class Culprit(BaseAgent):
        """Does what it is asked to."""
        @rpc
        async def pid(self) -> int:
            return os.getpid()

        @rpc(timeout=120)
        def hog(self, mib: int) -> int:
            held = []
            for _ in range(mib):
                held.append(bytearray(os.urandom(1)) * (1 << 20))
                time.sleep(0.001)
            time.sleep(60)
            return len(held)

        @rpc(timeout=60)
        def hog_below(self, mib: int) -> str:
            """A child of it does; what it says of its end."""
            code = f"import time; held = b'x' * ({mib} << 20); time.sleep(60)"
            return str(subprocess.run([sys.executable, "-c", code]).returncode)

        @rpc(timeout=60)
        def bomb(self, most: int) -> str:
            """Forks until it is refused; nothing of the bomb lives longer than a minute."""
            for number in range(most):
                try:
                    if not os.fork():
                        signal.alarm(60)
                        time.sleep(60)
                        os._exit(0)
                except OSError as exc:
                    return f"refused after {number}: {exc.strerror}"
            return "never refused"

        @rpc(timeout=60)
        def burn(self, file: str) -> None:
            """CPU, until `file` is there."""
            while not os.path.exists(file):
                sum(range(10_000))

        @rpc
        def cpus(self) -> list[list[int]]:
            """Its own, and those of what it starts."""
            code = "import os; print(*os.sched_getaffinity(0))"
            told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout
            return [sorted(os.sched_getaffinity(0)), [int(word) for word in told.split()]]

        @rpc(timeout=60)
        def leak(self) -> str:
            held = []
            try:
                while len(held) < 100_000:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError as exc:
                return exc.strerror
            finally:
                for fd in held:
                    os.close(fd)
            return "never refused"

        @rpc
        def daemonise(self) -> int:
            """A process that nothing but its cgroup tells whose it is: other session, other parent, empty environment."""
            code = "import os, sys; os.setsid(); (os.fork() and os._exit(0)); print(os.getpid(), flush=True); " \\
                "os.execve('/bin/sleep', ['sleep', '300'], {})"
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={}) as child:
                return int(child.stdout.readline())

        @rpc
        async def turn_stubborn(self) -> None:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for _ in range(3):
                code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n" \\
                    "for _ in range(200): time.sleep(0.05); os.fork() and time.sleep(300)"
                subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
'''


def has_cgroups() -> bool:
    found, _ = choose(f"{cgroups.PREFIX}probe.{os.getpid()}")
    if found is not None:
        for base in found.bases():
            base.rmdir()
    return found is not None


#: A machine without writable cgroups still tests what it would do.
BACKENDS = ["cgroups", "rlimits"] if has_cgroups() else ["rlimits"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, fleet: Scratch) -> str:
    if request.param == "rlimits":
        fleet.more_environment[VARIABLE] = "rlimits"
    return str(request.param)


@pytest.fixture
def in_cgroups() -> None:
    """For what only they can do. CI's machine has them."""
    if "cgroups" not in BACKENDS:
        pytest.skip(f"no cgroup is writable here: {choose('agentkit.why')[1]}")


@pytest.fixture
def fleet(fleet: Scratch) -> Scratch:
    fleet.python("contained.py", AGENTS)
    return fleet


def culprit(**limits: object) -> dict[str, object]:
    return {
        "agent": "contained:Culprit",
        "resources": {"limits": limits},
        "restart": {"delay": "10ms"},
        "shutdown": {"grace": "1s"},
    }


def start(fleet: Scratch, **limits: object) -> None:
    fleet.write({"Culprit": culprit(**limits), "Neighbour": {"agent": "contained:Neighbour"}})
    fleet.up()


@contextmanager
def neighbour_goes_on(fleet: Scratch) -> Iterator[None]:
    """Its calls are answered all the while, at least once more at the end, by the process that did before."""
    pid = fleet.rows()["Neighbour"].pid
    over, failed, answered = threading.Event(), [], []

    def call() -> None:
        with BlockingClient(node=str(fleet.place(fleet.machines[0]).control)) as client:
            while True:
                is_last = over.is_set()
                try:
                    answered.append(client.call("Neighbour", "greet", timeout=PATIENCE_S))
                except Exception as exc:
                    failed.append(repr(exc))
                if is_last:
                    return
                over.wait(0.02)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
    finally:
        over.set()
        caller.join()
    assert not failed
    assert set(answered) == {"hello"}
    assert fleet.rows()["Neighbour"].pid == pid


def ask(fleet: Scratch, method: str, **arguments: object) -> None:
    """Without waiting for the answer of an agent that is about to be killed."""

    def call() -> None:
        with suppress(Exception):
            fleet.call("Culprit", method, **arguments)

    threading.Thread(target=call, daemon=True).start()


def errors(fleet: Scratch) -> str:
    return fleet.run("errors", "--json").out


def cages(fleet: Scratch) -> list[Path]:
    """Folders of cgroups that this fleet's node has made."""
    bases = (fleet.place(fleet.machines[0]).run / "cgroups").read_text().split()
    return [folder for base in map(Path, bases) if base.is_dir() for folder in base.iterdir() if folder.is_dir()]


def test_a_memory_hog_is_restarted_with_limit_and_use_as_the_reason(fleet: Scratch, backend: str) -> None:
    start(fleet, memory="96Mi")
    before = fleet.rows()["Culprit"]
    with neighbour_goes_on(fleet):
        ask(fleet, "hog", mib=150)
        row = fleet.wait(lambda rows: rows["Culprit"].restarts == 1 and rows["Culprit"].phase is Phase.READY)["Culprit"]
    assert row.pid != before.pid
    assert row.last_error.startswith("memory limit 96 MiB, used "), row
    assert int(row.last_error.split()[-2]) >= 96
    until(lambda: "memory limit 96 MiB, used" in errors(fleet))


def test_what_a_hog_starts_counts_as_its_own(fleet: Scratch, in_cgroups: None) -> None:
    start(fleet, memory="96Mi")
    with neighbour_goes_on(fleet):
        ask(fleet, "hog_below", mib=150)
        row = fleet.wait(lambda rows: rows["Culprit"].restarts == 1 and rows["Culprit"].phase is Phase.READY)["Culprit"]
    assert row.last_error.startswith("memory limit 96 MiB, used ")


def test_a_fork_bomb_is_refused_processes_and_reported(fleet: Scratch, in_cgroups: None) -> None:
    start(fleet, pids=64)
    with neighbour_goes_on(fleet):
        assert fleet.call("Culprit", "bomb", most=300).endswith("Resource temporarily unavailable")
        assert fleet.call("Culprit", "pid") == fleet.rows()["Culprit"].pid  # it still answers
        until(lambda: "pids limit 64 reached" in errors(fleet))
        row = fleet.wait(lambda rows: "pids limit 64 reached" in rows["Culprit"].last_error)["Culprit"]
        pids = [pid for folder in cages(fleet) if folder.name.startswith("Culprit") for pid in cgroups.members(folder)]
        assert len(pids) > 40
        assert fleet.run("stop", "Culprit").code == 0
    assert not any(map(is_alive, pids))
    assert row.restarts == 0


def test_a_fork_bomb_that_nothing_refuses_is_found_and_ended(fleet: Scratch) -> None:
    fleet.more_environment[VARIABLE] = "rlimits"
    start(fleet, pids=64)
    with neighbour_goes_on(fleet):
        ask(fleet, "bomb", most=100)
        row = fleet.wait(lambda rows: rows["Culprit"].restarts == 1 and rows["Culprit"].phase is Phase.READY)["Culprit"]
    assert re.match(r"pids limit 64, has \d+ processes and threads", row.last_error)


def test_a_leak_of_descriptors_ends_at_the_limit_and_hurts_nobody_else(fleet: Scratch) -> None:
    start(fleet)
    with neighbour_goes_on(fleet):
        assert fleet.call("Culprit", "leak") == "Too many open files"
        assert fleet.call("Culprit", "pid") == fleet.rows()["Culprit"].pid


def test_an_agent_that_ignores_sigterm_and_forks_is_stopped_with_all_it_started(fleet: Scratch, backend: str) -> None:
    start(fleet)
    fleet.call("Culprit", "turn_stubborn")
    with neighbour_goes_on(fleet):
        assert fleet.run("stop", "Culprit").code == 0
    if backend == "cgroups":
        assert not [folder for folder in cages(fleet) if folder.name.startswith("Culprit")]
    # whatever else is left of it fails the fixture


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_what_cleared_its_environment_and_daemonised_is_held_by_the_cgroup(
    fleet: Scratch, in_cgroups: None, how: str
) -> None:
    start(fleet)
    before = fleet.rows()["Culprit"]
    pid = fleet.call("Culprit", "daemonise")
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    assert not Path(f"/proc/{pid}/environ").read_bytes()
    with neighbour_goes_on(fleet):
        if how == "stopped":
            assert fleet.run("stop", "Culprit").code == 0
        else:
            os.kill(before.pid or 0, 9)
            fleet.wait_restarted("Culprit", before)
    assert not is_alive(pid)


def test_what_a_dead_node_left_in_cgroups_is_ended_by_the_next(fleet: Scratch, in_cgroups: None) -> None:
    start(fleet)
    stray = fleet.call("Culprit", "daemonise")
    held = [folder for folder in cages(fleet) if folder.name.startswith("Culprit")]
    rows = fleet.rows()
    for pid in (fleet.node_pid(), fleet.zygote_pid(), rows["Culprit"].pid, rows["Neighbour"].pid):
        os.kill(int(pid or 0), 9)
    until(lambda: not any(is_alive(int(row.pid or 0)) for row in rows.values()))
    assert is_alive(stray)
    fleet.up()
    until(lambda: not is_alive(stray))
    until(lambda: not any(folder.exists() for folder in held))


def test_down_ends_what_a_dead_node_left_in_cgroups(fleet: Scratch, in_cgroups: None) -> None:
    start(fleet)
    stray = fleet.call("Culprit", "daemonise")
    held = [folder for folder in cages(fleet) if folder.name.startswith("Culprit")]
    rows = fleet.rows()
    pids = [fleet.zygote_pid(), fleet.node_pid(), *(int(row.pid or 0) for row in rows.values())]
    for pid in pids:
        os.kill(pid, 9)
    until(lambda: not any(map(is_alive, pids)))
    assert is_alive(stray)
    assert fleet.run("down").code == 0
    assert not is_alive(stray)
    assert not any(folder.exists() or folder.parent.exists() for folder in held)


def test_an_adopted_agent_is_still_held(fleet: Scratch, in_cgroups: None) -> None:
    start(fleet, memory="96Mi")
    node, before = fleet.node_pid(), fleet.rows()["Culprit"]
    os.kill(node, 9)
    fleet.wait_for_another_node(node)
    assert fleet.wait_phase(Phase.READY, "Culprit")["Culprit"].pid == before.pid
    ask(fleet, "hog", mib=150)
    row = fleet.wait(lambda rows: rows["Culprit"].restarts == 1 and rows["Culprit"].phase is Phase.READY)["Culprit"]
    assert row.last_error.startswith("memory limit 96 MiB, used ")


def test_the_node_says_how_it_holds_its_agents(fleet: Scratch, backend: str) -> None:
    start(fleet)
    told = fleet.ask("status")["node"]["limits"]
    assert told["backend"].startswith("cgroup v" if backend == "cgroups" else "rlimits")
    if backend == "cgroups":
        bases = [folder.parent for folder in cages(fleet)]
        assert bases
        assert fleet.run("down").code == 0
        assert not any(base.exists() for base in bases)


def test_agents_and_what_they_start_run_on_the_cpus_of_their_class(fleet: Scratch) -> None:
    cpu = max(os.sched_getaffinity(0))
    fleet.write({"Culprit": culprit()}, pools={"core": {"cpu_affinity": [cpu]}})
    fleet.up()
    assert fleet.call("Culprit", "cpus") == [[cpu], [cpu]]


def test_a_fleet_that_does_not_fit_is_refused_with_its_sums(fleet: Scratch) -> None:
    many = {"agent": "contained:Neighbour", "replicas": 3, "resources": {"requests": {"memory": "1Gi"}}}
    fleet.write({"Many": many}, pools={"core": {"memory": "3Gi", "reserve": "512Mi"}})
    for command in ("validate", "up"):
        result = fleet.run(command, "fleet.yaml")
        assert result.code == 2
        assert "fleet.yaml:" in result.out + result.err
        assert "request 3,072 MiB" in result.out + result.err
        assert "at most 2,560 MiB" in result.out + result.err
    fleet.write({"Culprit": culprit() | {"resources": {"cpu_affinity": [4095]}}})
    result = fleet.run("up", "fleet.yaml")
    assert (result.code, "shall run on CPU 4095" in result.err) == (2, True)


def test_an_agent_gets_no_more_cpu_than_its_limit(fleet: Scratch, in_cgroups: None) -> None:
    start(fleet, cpu=0.2)
    enough = fleet.folder / "enough"
    with neighbour_goes_on(fleet):
        ask(fleet, "burn", file=str(enough))
        bases = (fleet.place("m").run / "cgroups").read_text().split()
        stats = [path for base in bases for path in Path(base).glob("Culprit*/cpu.stat")]
        until(lambda: any(cgroups.number(path, "nr_throttled") > 3 for path in stats))
        enough.touch()
    assert fleet.call("Culprit", "pid") == fleet.rows()["Culprit"].pid
