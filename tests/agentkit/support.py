"""What the tests of the core share: a raw caller, an inbox whose requests can be looked at, processes on one listener."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq

from agentkit.client import Client
from agentkit.errors import CallError
from agentkit.names import AgentId, AgentName, Incarnation, MachineName
from agentkit.transport import context
from agentkit.transport.inbox import Inbox
from agentkit.transport.peer import Identity, Inbound
from agentkit.transport.reader import Reader
from agentkit.wire import codec, values
from agentkit.wire import envelope as ak
from tests.measured import unmeasured

PATIENCE_S = 20.0
#: How much later than its deadline a call may end.
LATE_S = 0.1
_TURN_S = 0.005
ROOT = Path(__file__).parents[2]


def identity(name: str = "Callee", incarnation: int = 0) -> Identity:
    return Identity(AgentId(MachineName("test"), AgentName(name)), Incarnation(incarnation))


async def eventually(is_so: Callable[[], Any], within_s: float = PATIENCE_S) -> None:
    """Wait until `is_so()`; AssertionError when it never is."""
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.002)


class Recorder:
    """A Receiver that keeps what it is given; the test answers."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[Inbound] = asyncio.Queue()
        self.abandoned: list[Inbound] = []
        self.on_request: Callable[[Inbound], None] = self.requests.put_nowait

    def request(self, inbound: Inbound) -> None:
        self.on_request(inbound)

    def abandon(self, inbound: Inbound) -> None:
        self.abandoned.append(inbound)

    async def next(self) -> Inbound:
        async with asyncio.timeout(PATIENCE_S):
            return await self.requests.get()


@asynccontextmanager
async def an_inbox(**options: Any) -> AsyncIterator[tuple[Inbox, Recorder, str]]:
    recorder = Recorder()
    options.setdefault("me", identity(incarnation=7))
    inbox = Inbox(receiver=recorder, **options)
    try:
        yield inbox, recorder, inbox.bind("tcp://127.0.0.1:*")
    finally:
        if not inbox._sock.closed:
            inbox.close()


def echoes(inbox: Inbox, recorder: Recorder) -> None:
    """Let the inbox answer each request with its own arguments, at once."""
    recorder.on_request = lambda inbound: inbox.answer(inbound, values.unpack(inbound.body))


class Raw:
    """A caller that sends what it likes."""

    def __init__(self, endpoint: str, kind: int = zmq.DEALER, *, rcvhwm: int = 1_000) -> None:
        self.sock = context.socket(kind, max_frame_bytes=-1)
        self.sock.rcvhwm = rcvhwm
        self.sock.connect(endpoint)
        self.received: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self._reader = Reader(self.sock, self.received.put_nowait)

    def send(self, *frames: bytes | ak.Message) -> None:
        self.sock.send_multipart([f if isinstance(f, bytes) else codec.encode(f) for f in frames])
        self._reader.poke()

    async def frames(self) -> list[bytes]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.received.get()

    async def message(self) -> Any:
        return codec.decode((await self.frames())[0])

    async def nothing_comes(self, for_s: float = 0.05) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.received.get(), for_s)
            return False
        return True

    async def hello(self, **fields: Any) -> Any:
        """Introduce itself; the answer."""
        told = {"version": 1, "name": "raw", "instance": "test/raw", "incarnation": 0} | fields
        self.send(ak.Hello(**told))
        return await self.message()

    def request(self, id: int, method: str = "m", arguments: Any = None, budget_ms: int = 5000) -> None:
        self.send(ak.Request(id, method, budget_ms, 0, {}), values.pack(arguments or {}))

    def close(self) -> None:
        self._reader.close()
        self.sock.close(linger=0)


@contextlib.contextmanager
def raw(endpoint: str, kind: int = zmq.DEALER, *, rcvhwm: int = 1_000) -> Iterator[Raw]:
    """`rcvhwm`: messages that libzmq takes in for it, whether it reads or not."""
    caller = Raw(endpoint, kind, rcvhwm=rcvhwm)
    try:
        yield caller
    finally:
        caller.close()


class Listener(contextlib.AbstractContextManager["Listener"]):
    """A listening socket as a node would make it, for agents to adopt."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.sock.setblocking(False)
        self.endpoint = f"tcp://127.0.0.1:{self.sock.getsockname()[1]}"

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


class Told:
    """A notify socket, and what was sent to it."""

    def __init__(self, folder: Path, *, rcvbuf: int = 0) -> None:
        self.path = str(folder / "notify.sock")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.sock.setblocking(False)
        self.messages: list[dict[str, str]] = []

    def read(self) -> list[dict[str, str]]:
        """Everything that was told so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                lines = self.sock.recv(65536).decode().splitlines()
                self.messages.append(dict(line.split("=", 1) for line in lines))
        return self.messages

    def find(self, **wanted: str) -> dict[str, str] | None:
        """The last message with these fields."""
        return next((m for m in reversed(self.read()) if wanted.items() <= m.items()), None)

    async def wait(self, within_s: float = PATIENCE_S, **wanted: str) -> dict[str, str]:
        await eventually(lambda: self.find(**wanted), within_s)
        found = self.find(**wanted)
        assert found is not None
        return found

    def close(self) -> None:
        self.sock.close()


class Nursery:
    """Real agents (tests.agentkit.worker.Worker) that share one listener."""

    def __init__(self, *, measured: bool = True) -> None:
        self.listener = Listener()
        self._folder = tempfile.TemporaryDirectory(prefix="agentkit-")
        self.folder = Path(self._folder.name)
        self.told = Told(self.folder)
        self.endpoint = self.listener.endpoint
        self._alive: set[int] = set()
        fd = self.listener.sock.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.agentkit.nursery", str(fd)],
            cwd=ROOT, pass_fds=(fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=open(self.folder / "log", "w"),  # noqa: SIM115 - the process keeps it
            env=os.environ if measured else unmeasured(os.environ),
        )  # fmt: skip

    def _ask(self, command: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def fork(self, incarnation: int = 1, *, config: dict[str, Any] | None = None, **environ: str) -> int:
        """Another agent on the listener; its pid. It may not be ready yet."""
        environ = {
            "AGENT_NAME": "Worker", "AGENT_MACHINE": "test", "AGENTKIT_INCARNATION": str(incarnation),
            "NOTIFY_SOCKET": self.told.path, "AGENTKIT_DATA_DIR": str(self.folder), "AGENTKIT_LOG_FORMAT": "json",
            "AGENT_CONFIG": json.dumps(config or {}),
        } | environ  # fmt: skip
        pid = self._ask(f"fork {json.dumps(environ)}")
        self._alive.add(pid)
        return pid

    async def ready(self, incarnation: int = 1) -> None:
        await self.told.wait(READY="1", X_AGENTKIT_INCARNATION=str(incarnation))

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)

    def exit_code(self, pid: int) -> int:
        """Wait for it to end."""
        code = self._ask(f"wait {pid}")
        self._alive.discard(pid)
        return code

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        for pid in tuple(self._alive):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
            self.exit_code(pid)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.told.close()
        self.listener.sock.close()
        self._folder.cleanup()


async def outcome(call: Any) -> Any:
    """What a call ends with: its result, or its error."""
    try:
        return await call
    except CallError as error:
        return error


async def in_time(calls: Iterable[Awaitable[Any]], timeout_s: float) -> list[Any]:
    """What each call ends with, its result or its error; AssertionError when one ends more than 100 ms after its deadline.

    Only time in which this loop had its turns counts: on a busy machine everything is late, and that is nobody's fault."""
    loop = asyncio.get_running_loop()
    turns: list[float] = []

    async def count_turns() -> None:
        while True:
            await asyncio.sleep(_TURN_S)
            turns.append(loop.time())

    async def one(call: Awaitable[Any]) -> tuple[Any, float, float]:
        due_s = loop.time() + timeout_s
        return await outcome(call), due_s, loop.time()

    counting = asyncio.create_task(count_turns())
    try:
        async with asyncio.timeout(timeout_s + PATIENCE_S):
            found = await asyncio.gather(*map(one, calls))
    finally:
        counting.cancel()
        await asyncio.wait((counting,))
    late_s = [sum(due_s < turn_s < ended_s for turn_s in turns) * _TURN_S for _, due_s, ended_s in found]
    assert max(late_s) <= LATE_S, f"a call ended {max(late_s):.3f} s after its deadline"
    return [end for end, _, _ in found]


async def _left(endpoint: str) -> dict[str, int]:
    async with Client(peers={"Worker": endpoint}) as client:
        # the first large answer starts a thread of pyzmq's that has sockets of its own, for the rest of the process's life
        await client.call("Worker", "blob", {"size": 200_000}, timeout=PATIENCE_S)
        found: dict[str, int] = await client.call("Worker", "left", timeout=PATIENCE_S)
        return found


@asynccontextmanager
async def nothing_left_at(endpoint: str) -> AsyncIterator[None]:
    """Of what happens inside, nothing remains in the Worker there (or in the one that came after it): no request, caller, task, socket."""
    before = after = await _left(endpoint)
    yield
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while (after := await _left(endpoint)) != before:
                await asyncio.sleep(0.02)
    assert after == before, f"{after}, and before {before}"
