"""An agent as a process: its command line, signals, exit codes, what it tells whoever started it, and that it always ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentkit import Client
from tests.agentkit.support import PATIENCE_S, ROOT, Told, eventually

pytestmark = pytest.mark.process

HEADER = """
import asyncio, os, signal, sys, threading, time
from agentkit import AgentConfig, BaseAgent, every, health_check, rpc
"""


class Process:
    """One agent file, run as `python agent.py`."""

    def __init__(self, folder: Path, source: str, *arguments: str, name: str = "agent.py", **environ: str) -> None:
        self.folder = folder
        self.told = Told(folder)
        (folder / name).write_text(HEADER + textwrap.dedent(source))
        inherited = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME") or k.startswith("COVERAGE")}
        self.process = subprocess.Popen(
            [sys.executable, str(folder / name), *arguments],
            cwd=ROOT,
            env=inherited
            | {
                "PYTHONPATH": str(ROOT),
                "NOTIFY_SOCKET": self.told.path,
                "AGENTKIT_DATA_DIR": str(folder / "data"),
                "AGENTKIT_LOG_FORMAT": "json",
            }
            | environ,
            stdout=open(folder / "out", "w"),  # noqa: SIM115 - the process keeps it
            stderr=subprocess.STDOUT,
        )

    @property
    def output(self) -> str:
        return (self.folder / "out").read_text()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Log lines with this message."""
        found = [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]
        return [line for line in found if line["message"] == event]

    async def ready(self) -> None:
        await eventually(lambda: self.told.find(READY="1") or self.process.poll() is not None)
        assert self.process.poll() is None, self.output
        await eventually(lambda: self.lines("agent.ready"))  # written just after READY is told

    async def exit_code(self, within_s: float = PATIENCE_S) -> int:
        await eventually(lambda: self.process.poll() is not None, within_s)
        assert self.process.returncode is not None
        return self.process.returncode

    @property
    def failure(self) -> str:
        """The reason that it gave for not coming up."""
        return next(m["X_AGENTKIT_FAILED"] for m in self.told.read() if "X_AGENTKIT_FAILED" in m)

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.lines('agent.ready')[0]['port']}"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.told.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    started: list[Process] = []

    def start(source: str, *arguments: str, **options: Any) -> Process:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Process(folder, source, *arguments, **options))
        return started[-1]

    yield start
    for process in started:
        process.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


GREETER = """
class Greeter(BaseAgent):
    '''Greets.'''
    class Config(AgentConfig):
        word: str = "hello"
    @rpc(timeout="7s")
    async def greet(self, name: str) -> str:
        return f"{self.config.word} {name}"
    async def on_stop(self) -> None:
        print("on_stop ran", flush=True)

if __name__ == "__main__":
    Greeter.main()
"""


async def test_an_agents_own_file_serves_on_its_ports_until_sigterm(run: Any) -> None:
    port, health_port = free_port(), free_port()
    process = run(GREETER, "--port", str(port), "--health-port", str(health_port), "--config", '{"word": "hi"}')
    await process.ready()
    async with Client(peers={"G": f"tcp://127.0.0.1:{port}"}) as client:
        assert await client.peer("G").greet(name="you") == "hi you"
    body = await asyncio.to_thread(
        lambda: urllib.request.urlopen(f"http://127.0.0.1:{health_port}/ready", timeout=5).read()
    )
    assert json.loads(body)
    process.process.send_signal(signal.SIGTERM)
    assert await process.exit_code() == 0
    assert "on_stop ran" in process.output
    assert process.told.find(STOPPING="1")


async def test_ready_tells_identity_timeouts_and_health(run: Any) -> None:
    process = run(GREETER, "--name", "Other", AGENT_MACHINE="pc2", AGENTKIT_INCARNATION="12")
    await process.ready()
    ready = process.told.find(READY="1")
    assert ready is not None
    assert (ready["X_AGENTKIT_ID"], ready["X_AGENTKIT_INCARNATION"]) == ("pc2/Other", "12")
    assert json.loads(ready["X_AGENTKIT_TIMEOUTS"]) == {"greet": 7.0}
    assert (ready["X_AGENTKIT_HEALTH"], ready["X_AGENTKIT_REASON"]) == ("ok", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_end_it_with_exit_code_0_even_in_the_middle_of_its_start(run: Any, number: int) -> None:
    process = run(
        """
        class Slow(BaseAgent):
            async def on_start(self) -> None:
                print("starting", flush=True)
                await asyncio.sleep(60)
            async def on_stop(self) -> None:
                print("on_stop ran", flush=True)
        Slow.main()
        """
    )
    await eventually(lambda: "starting" in process.output)
    process.process.send_signal(number)
    assert await process.exit_code() == 0
    assert "on_stop ran" in process.output


async def test_an_agent_that_is_told_twice_stops_once(run: Any) -> None:
    process = run(GREETER)
    await process.ready()
    for _ in range(3):
        process.process.send_signal(signal.SIGINT)
    assert await process.exit_code() == 0
    assert process.output.count("on_stop ran") == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("async def on_start(self): raise ValueError('no\\n  database')", "on_start raised ValueError: no;   database"),
        ("async def on_start(self): sys.exit('no licence')", "on_start raised SystemExit: no licence"),
        ("async def on_start(self): raise asyncio.CancelledError", "the start failed: CancelledError: "),
        ("def __init__(self): raise ValueError('no database')", "__init__ raised ValueError: no database"),
        ("def __init__(self): sys.exit(3)", "__init__ raised SystemExit: 3"),
        (
            "@health_check\n    def model(self): raise RuntimeError('no model')",
            "not healthy: check model failed: RuntimeError: no model",
        ),
        ("async def run(self): raise ValueError('broke')", "run raised ValueError: broke"),
        ("async def run(self): sys.exit(4)", "run raised SystemExit: 4"),
    ],
)
async def test_a_failed_start_tells_its_reason_logs_the_traceback_and_exits_1(
    run: Any, source: str, reason: str
) -> None:
    process = run(f"class Broken(BaseAgent):\n    {source}\nBroken.main()\n")
    assert await process.exit_code() == 1
    failed = await process.told.wait(X_AGENTKIT_FAILED=reason)
    assert list(failed) == ["X_AGENTKIT_FAILED"]
    assert "Traceback" in process.output
    assert "agent.py" in process.output


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        ((), {"PORT": "99999"}, "PORT: got 99999"),
        ((), {"AGENT_CONFIG": '{"wrd": 1}'}, "config.wrd: got 1, want Extra inputs are not permitted"),
        ((), {"AGENT_HOST": "0.0.0.0"}, "AGENT_HOST: got '0.0.0.0', want a loopback address"),
        ((), {"AGENTKIT_SECRETS": '{"T": {"env": "MISSING"}}'}, "secrets.T: got '$MISSING, which is not set'"),
        (("--config", "/no/such/file"), {}, "--config: got '/no/such/file'"),
        (("--peer", "nowhere"), {}, "--peer: got 'nowhere', want NAME=tcp://HOST:PORT"),
    ],
)
async def test_a_wrong_setting_is_named_and_exits_not_0(
    run: Any, arguments: tuple[str, ...], environ: dict[str, str], says: str
) -> None:
    process = run(GREETER, *arguments, **environ)
    assert await process.exit_code() in (1, 2)
    assert says in process.output.replace("\\u0027", "'")


async def test_a_port_that_is_taken_is_named(run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = run(GREETER, "--port", str(taken.getsockname()[1]))
        assert await process.exit_code() in (1, 2)
        assert process.failure.startswith(f"PORT: got '127.0.0.1:{taken.getsockname()[1]}: Address already")


async def test_a_data_folder_that_can_t_be_made_is_told(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = run(GREETER, AGENTKIT_DATA_DIR=str(tmp_path / "file/data"))
    assert await process.exit_code() == 1
    assert "NotADirectoryError" in process.failure


async def test_a_task_is_done_when_its_run_returns_and_a_service_is_not(run: Any) -> None:
    source = """
        class Once(BaseAgent):
            async def run(self) -> None:
                print("run returns", flush=True)
            async def on_stop(self) -> None:
                print("on_stop ran", flush=True)
        Once.main()
        """
    task, service = run(source, AGENTKIT_KIND="task"), run(source)
    assert await task.exit_code() == 0
    assert "on_stop ran" in task.output
    await service.ready()
    await eventually(lambda: "run returns" in service.output)
    assert service.process.poll() is None


async def test_its_threads_do_not_keep_a_stopped_agent_alive(run: Any) -> None:
    process = run(
        """
        class Threads(BaseAgent):
            async def on_start(self) -> None:
                threading.Thread(target=time.sleep, args=(600,)).start()
                self.background = asyncio.create_task(asyncio.to_thread(time.sleep, 600))
                self.caller = threading.Thread(target=self.ask).start()
            def ask(self):
                while True:
                    try:
                        self.blocking.call("Threads", "hang", timeout=600)
                    except Exception as exc:
                        print("ask:", type(exc).__name__, flush=True)
                        time.sleep(0.01)
            @every("10ms")
            def hangs(self) -> None:
                print("every began", flush=True)
                time.sleep(600)
            @health_check(interval="300ms", timeout="250ms")
            def check(self) -> None:
                if self.running:
                    time.sleep(600)
            @rpc
            def hang(self) -> None:
                time.sleep(600)
        Threads.main()
        """,
        AGENTKIT_GRACE_S="0.5",
    )
    await process.ready()
    await eventually(lambda: "every began" in process.output)
    process.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert await process.exit_code() == 0
    assert time.monotonic() - began < 60  # its threads hang for ten times as long


async def test_a_handler_that_exits_leaves_the_agent_serving(run: Any) -> None:
    process = run(
        """
        class Exits(BaseAgent):
            @rpc
            async def leave(self) -> None:
                sys.exit(3)
            @rpc
            async def answer(self) -> int:
                return 42
        Exits.main()
        """
    )
    await process.ready()
    async with Client(peers={"E": process.endpoint}) as client:
        with contextlib.suppress(Exception):
            await client.peer("E").leave()
        assert await client.peer("E").answer() == 42


async def test_the_watchdog_is_fed_while_the_loop_turns_and_starves_when_it_does_not(run: Any) -> None:
    process = run(
        """
        class Blocks(BaseAgent):
            async def run(self) -> None:
                await asyncio.sleep(0.5)
                print("blocking", flush=True)
                time.sleep(600)
        Blocks.main()
        """,
        WATCHDOG_USEC="300000",
    )
    await process.ready()
    await process.told.wait(WATCHDOG="1")
    await eventually(lambda: "blocking" in process.output)
    await asyncio.sleep(0.2)
    fed = len(process.told.read())
    await asyncio.sleep(0.5)
    assert len(process.told.read()) == fed
    process.process.send_signal(signal.SIGABRT)
    assert await process.exit_code() == -signal.SIGABRT
    assert "time.sleep(600)" in process.output or "in run" in process.output, "its stack is in the log"


async def test_counters_and_errors_are_told(run: Any) -> None:
    process = run(
        """
        class Counts(BaseAgent):
            @rpc
            async def good(self) -> None: ...
            @rpc
            async def bad(self) -> None:
                self.report_error("error", "it broke", thing=7)
                raise ValueError
        Counts.main()
        """
    )
    await process.ready()
    async with Client(peers={"C": process.endpoint}) as client:
        for _ in range(5):
            await client.peer("C").good()
        with contextlib.suppress(Exception):
            await client.peer("C").bad()
    await process.told.wait(X_AGENTKIT_ERROR="error: it broke")
    counted = await process.told.wait(X_AGENTKIT_REQUESTS="6")
    assert counted["X_AGENTKIT_ERRORS"] == "1"
    assert process.lines("it broke")[0]["thing"] == 7


async def test_health_that_changes_is_told_though_nobody_reads_for_a_while(run: Any) -> None:
    process = run(
        """
        class Ill(BaseAgent):
            @health_check(interval="30ms")
            async def check(self) -> None:
                if self.running and os.path.exists(self.data_dir / "ill"):
                    raise RuntimeError("ill")
            async def run(self) -> None:
                while self.running:
                    self.report_error("info", "fills the queue")
                    await asyncio.sleep(0.001)
        Ill.main()
        """
    )
    await process.ready()
    await asyncio.sleep(0.2)  # its queue of ten is full now
    (process.folder / "data/ill").touch()
    await asyncio.sleep(0.2)
    await process.told.wait(X_AGENTKIT_HEALTH="failing")
    assert process.told.find(X_AGENTKIT_HEALTH="degraded")


async def test_a_node_that_does_not_want_this_life_any_more_stops_it(run: Any) -> None:
    import tempfile

    from tests.agentkit.directory.test_mesh import a_node

    with tempfile.TemporaryDirectory(prefix="ak-") as folder:
        async with a_node(Path(folder) / "node.sock") as node:
            wanted = True
            node.answer = lambda operation, arguments: (
                ("ok", {}) if wanted else ("error", {"code": "gone", "message": "incarnation 3 is not wanted"})
            )
            process = run(GREETER, AGENTKIT_NODE=str(node.path), AGENTKIT_INCARNATION="3", AGENT_MACHINE="m1")
            await process.ready()
            await eventually(lambda: ("attach", {"id": "m1/Greeter", "incarnation": 3}) in node.asked)
            ready_again = [m for m in process.told.read() if "FDSTORE" in m]
            await eventually(lambda: any("FDSTORE" in m for m in process.told.read()))
            assert process.told.messages[-1]["FDNAME"] == "inbox-local" or ready_again
            wanted = False
            await node.stop()
            await node.start()
            assert await process.exit_code() == 0


async def test_secrets_show_up_nowhere(run: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2")
    process = run(
        """
        class Secret(BaseAgent):
            async def on_start(self) -> None:
                assert self.secrets["T"] == "hunter2"
                self.logger.info("me", agent=repr(self), settings=repr(self._wiring.settings))
                raise RuntimeError("fails with everything in its log")
        Secret.main()
        """,
        AGENTKIT_SECRETS=json.dumps({"T": {"file": str(tmp_path / "token")}}),
    )
    assert await process.exit_code() == 1
    assert "fails with everything" in process.output
    assert "hunter2" not in process.output.replace('== "hunter2"', "")


async def test_what_was_handed_down_is_not_handed_on(run: Any) -> None:
    process = run(
        """
        import subprocess
        os.environ.update(LISTEN_FDS="1", LISTEN_PID="1", LISTEN_FDNAMES="inbox-local")
        class Parent(BaseAgent):
            async def on_start(self) -> None:
                print("child sees", subprocess.check_output("env").count(b"LISTEN_"), flush=True)
        Parent.main()
        """
    )
    await process.ready()
    assert "child sees 0" in process.output


async def test_a_socket_that_systemd_binds_beyond_loopback_is_refused_without_keys(run: Any) -> None:
    process = run(
        """
        import socket
        listener = socket.create_server(("0.0.0.0", 0))
        os.dup2(listener.fileno(), 3)
        os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="inbox-local")
        class Exposed(BaseAgent): ...
        Exposed.main()
        """
    )
    assert await process.exit_code() in (1, 2)
    assert process.failure.startswith(
        "socket inbox-local: got '0.0.0.0', want a loopback address, as there are no keys"
    )


async def test_the_help_text_is_the_agents_own(run: Any) -> None:
    process = run(GREETER, "--help")
    assert await process.exit_code() == 0
    assert "Greets." in process.output
    assert "--health-port" in process.output
