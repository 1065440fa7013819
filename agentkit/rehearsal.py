"""Does before a fork what every agent does after it: one whole life, with loop, sockets and a call, which is over when it returns.

Much of Python is made on first use: schemas, compiled patterns, answers of `isinstance` on abstract classes, log levels, the cache of
attribute lookups. What a fork server has made its children share; what each child makes is its own memory (a page, and 2 us, for every
object that is first touched). An agent is 0.7 MB smaller with what is done by hand here, and 0.7 MB and a fifth of its CPU time less
again with the life that follows. The life takes 4 ms, once.

What must not survive into a fork (threads, an event loop, a ZeroMQ context) is ended before `rehearse` returns; startup.node.boot
counts the threads."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack, redirect_stderr
from functools import partial
from typing import Any, Final

from agentkit import main
from agentkit.agent.base import BaseAgent
from agentkit.agent.builtin import BUILTIN_METHODS
from agentkit.agent.decorators import rpc
from agentkit.agent.health_checks import Checks
from agentkit.agent.listening import HTTP
from agentkit.directory.base import INBOX_LOCAL, AgentRecord
from agentkit.names import AgentId, AgentName, Incarnation, MachineName
from agentkit.observe import log as logs
from agentkit.observe.memory import trimmer
from agentkit.observe.metrics import AgentMetrics
from agentkit.settings import AgentSettings
from agentkit.transport.context import close_context
from agentkit.transport.notify import Notifier
from agentkit.wire import codec, values
from agentkit.wire import envelope as ak
from agentkit.wire.frames import FrameBuffer, pack

#: Seconds after which a life that has not ended by itself is broken off. It takes 4 ms.
LIMIT_S: Final = 1.0

#: The variables that a node sets, in the shapes that they have.
ENVIRONMENT: Final = {
    "AGENT_NAME": "Understudy",
    "AGENT_INSTANCE": "Understudy",
    "AGENT_MACHINE": "stage",
    "AGENT_CONFIG": "{}",
    "PORT": "1",
    "HEALTH_CHECK_PORT": "2",
    "WATCHDOG_USEC": "30000000",
    "AGENTKIT_INCARNATION": "1",
    "AGENTKIT_CLUSTER": "rehearsal",
    "AGENTKIT_GRACE_S": "10",
    "AGENTKIT_TRACE_SAMPLE": "1",
    "AGENTKIT_DATA_DIR": "/nonexistent",
    "AGENTKIT_HEALTH": '{"interval_s": 10, "timeout_s": 2, "retries": 3}',
    "AGENTKIT_SECRETS": "{}",
}


class Understudy(BaseAgent):
    """Has one method of each kind. Once it is ready it calls itself, as agents call each other, and is done."""

    @rpc
    async def on_loop(self, text: str, count: int = 1) -> str:
        return text * count

    @rpc
    def on_thread(self, values: dict[str, int]) -> list[int]:
        return list(values.values())

    async def run(self) -> None:
        await self.call(self.name, "on_loop", {"text": "a"})
        self._wired.caller.close()  # its inbox would wait 10 ms for this caller to leave
        hibernation = self._wired.hibernation
        hibernation.give_back = lambda: None  # 30 ms: boot.py collects when all this is over
        await hibernation.sleep_now("light")
        await hibernation.wake("the rehearsal")


def rehearse() -> None:
    """To be called once in a process that will fork agents, after everything is imported. Leaves no thread, loop or socket behind.

    Where there is nowhere to play (no port, no folder for a socket), what needs it is left out: forks then cost a little more."""
    environment = dict(os.environ)
    os.environ.clear()  # as a child does with its own: the first time costs 0.5 MB
    os.environ.update(environment)
    # Lookups of attributes that were only needed for importing fill the interpreter's cache: a child that replaces one
    # writes to the old name's page and to the new one's. An empty cache leaves room for what a life looks up.
    getattr(sys, "_clear_type_cache", lambda: None)()
    settings = AgentSettings.from_environment({**os.environ, **ENVIRONMENT}, default_name="Understudy")
    with open(os.devnull, "w") as nowhere:
        logs.configure(service="rehearsal", fmt="json", stream=nowhere)
        logs.get_logger("agentkit.rehearsal").info("rehearsal.line", field=1)
        _use_by_hand(Understudy._from_settings(settings, settings.read_secrets()), settings)
        _exchange_messages()
        trimmer()
        with redirect_stderr(nowhere):
            try:
                _live()
            except (OSError, TimeoutError) as exc:
                logs.get_logger("agentkit.rehearsal").info("rehearsal.cut", why=str(exc))
    logs.configure(service="rehearsal", fmt="json")


def prepare(cls: type[BaseAgent]) -> None:
    """Make what calls of the class's methods need: worth it in a process that forks several agents of one class.

    1 ms and 50 kB for each method whose arguments or result are models."""
    for method in cls.methods.values():
        method.prepare()


def _use_by_hand(agent: BaseAgent, settings: AgentSettings) -> None:
    Checks(agent, settings.checks, lambda: None)
    book = AgentMetrics(agent.name, agent.methods)
    for method, arguments, result in (("on_loop", {"text": "a"}, "a"), ("on_thread", {"values": {"a": 1}}, [1])):
        agent.methods[method].check(arguments)
        agent.methods[method].plain_result(result)
        book.finished(method, 0.001, "ok")
    for builtin in BUILTIN_METHODS.values():
        builtin.check({})


def _live() -> None:
    """One life of an understudy under a node that knows only it. OSError, TimeoutError: there is nowhere to live."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentkit-"))
        notified = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notified.bind(f"{folder}/notify")
        listeners = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in (INBOX_LOCAL, HTTP)}
        environment = ENVIRONMENT | {
            "NOTIFY_SOCKET": f"{folder}/notify",
            "AGENTKIT_NODE": f"{folder}/node",
            "AGENTKIT_DATA_DIR": folder,
            "AGENTKIT_KIND": "task",
        }
        settings = AgentSettings.from_environment(environment, default_name="Understudy")
        record = AgentRecord(
            id=settings.id,
            incarnation=settings.incarnation,
            phase="ready",
            endpoints={INBOX_LOCAL: f"tcp://127.0.0.1:{listeners[INBOX_LOCAL].getsockname()[1]}"},
        )
        logs.configure(service=settings.id.name, fmt="json", level=settings.log_level)
        agent = Understudy._from_settings(settings, settings.read_secrets())
        notifier = Notifier.from_environment(environment)

        async def live() -> None:
            node = await asyncio.start_unix_server(partial(_be_node, record), f"{folder}/node")
            async with asyncio.timeout(LIMIT_S):
                await main.serve(agent, settings, listeners, notifier)
                node.close()
                conversations = asyncio.all_tasks() - {asyncio.current_task()}
                await asyncio.gather(*conversations, return_exceptions=True)
                await asyncio.sleep(0)  # their transports close one turn later

        try:
            # Not uvloop: libuv keeps a pipe for ever and renews it in every fork, under numbers that are others' by then
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(live())
        finally:
            close_context()
            notifier.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


async def _be_node(record: AgentRecord, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As much of a node as an agent talks to: everybody that is asked for is `record`."""
    buffer = FrameBuffer()
    while data := await reader.read(65536):
        for id, operation, _ in buffer.feed(data):
            known: dict[str, Any] = {"records": [record.to_wire()]}
            writer.write(pack([id, "event", known] if operation == "directory" else [id, "ok", {}]))
    writer.close()


def _exchange_messages() -> None:
    """Every kind of message once, there and back."""
    name, me = "Understudy", AgentId(MachineName("stage"), AgentName("Understudy"))
    packer = values.Packer()
    for message in (
        ak.Hello(ak.AK1_VERSION, name, str(me), Incarnation(1)),
        ak.Welcome(ak.AK1_VERSION, name, str(me), Incarnation(1)),
        ak.GoAway("stopping", 1),
        ak.Bye(),
        ak.Ping(1),
    ):
        codec.decode(codec.encode(message))
    codec.decode(packer.pack(codec.request_fields(1, "on_loop", 5000, {})))
    codec.decode(packer.pack(codec.reply_fields(1)))
    values.unpack(packer.pack({"text": "a"}))
