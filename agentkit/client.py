"""Calls into a fleet from scripts, notebooks and the command line: `Client` for asyncio, `BlockingClient` for everything else.

with BlockingClient() as client:                       # the cluster that runs on this machine
    task = client.peer("TaskManager").create(title="write it down")

async with Client(peers={"X": "tcp://127.0.0.1:5555"}) as client:   # without a node
    await client.call("X", "echo", {"text": "hello"}, timeout=2)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from agentkit.agent.blocking import BlockingCaller, BlockingPeerProxy
from agentkit.agent.builtin import DESCRIBE
from agentkit.agent.call_options import CallOptions
from agentkit.agent.caller import Caller, PeerProxy
from agentkit.agent.dialing import Dialer
from agentkit.agent.event_client import ClientEvents, EventStream
from agentkit.agent.streaming import Results
from agentkit.clock import now_s
from agentkit.directory.base import AgentRecord, Directory, unambiguous
from agentkit.directory.locate import find_node
from agentkit.directory.mesh import MeshDirectory, bare_name
from agentkit.directory.static import StaticDirectory
from agentkit.errors import CallError, NoNode, Unreachable, from_wire
from agentkit.names import AgentId, AgentName, MachineName
from agentkit.observe.trace import DEFAULT_SAMPLE, Tracer
from agentkit.resilience.deadline import DEFAULT_TIMEOUT_S, Deadline
from agentkit.resilience.policy import SCRIPT_CALLS
from agentkit.transport.peer import Identity
from agentkit.wire.frames import FrameBuffer, pack

if TYPE_CHECKING:
    from agentkit.security.ring import Keyring

#: How long it waits for a node that does not answer when it knows an older answer, in seconds.
PATIENCE_S: Final = 0.5
#: How long a BlockingClient goes by what the node told it, in seconds, before it asks again.
FRESH_S: Final = 1.0


class Client:
    """Calls from a running event loop. An async context manager."""

    def __init__(
        self,
        *,
        node: str | None = None,
        cluster: str | None = None,
        peers: Mapping[str, str] | None = None,
        trace_sample: float = DEFAULT_SAMPLE,
        keys: str | Path | None = None,
    ) -> None:
        """`node`: path of a node's control socket; `cluster`: its cluster's name; `peers`: name -> endpoint instead of a node.
        With none of them the node is found as the command line finds it. NoNode when there is none. `trace_sample`: the part of its
        calls that is traced (docs/tracing.md).

        `keys`: folder of the keys to call with (the operator's, if its secret is there), where callees encrypt; default:
        $AGENTKIT_KEYS, else the folder of the node, else ~/.config/agentkit/keys. Given, nobody beyond loopback is called without
        encryption, and none of `peers` at all: name them "machine/name", so that it is known whose key to expect."""
        path, here = (None, "local") if peers is not None else _node(node, cluster)
        self.tracer = Tracer(trace_sample)
        self._directory: Directory = (
            MeshDirectory(path, here=here, on_connected=self._reconnected, on_records=self._on_records)
            if path
            else StaticDirectory(peers, here=here)
        )
        self._me = _identity(here)
        self._dialer = _dialer(here, keys, path)
        self._caller: Caller | None = None
        self._events: ClientEvents | None = None

    async def __aenter__(self) -> Self:
        self._caller = Caller(self._me, self._directory, policies=SCRIPT_CALLS, tracer=self.tracer, dialer=self._dialer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._caller is not None:
            self._caller.close()
        if self._events is not None:
            self._events.close()
        await self._directory.close()

    def call(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Coroutine[Any, Any, Any]:
        """Call `method` of the agent that `target` names: `await client.call(...)`; see agent.caller.Caller.call."""
        return self._calls.call(target, method, arguments, **options)

    def stream(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Results:
        """The results of a method that yields, one after another; see agent.caller.Caller.stream."""
        return self._calls.stream(target, method, arguments, **options)

    def peer(self, target: str, **options: Unpack[CallOptions]) -> PeerProxy:
        """Its methods as methods: `await client.peer("X").method(...)`."""
        return self._calls.peer(target, **options)

    async def publish(self, topic: str, event: object) -> None:
        """Tell whoever subscribed to `topic`; see BaseAgent.publish. With `peers`: within this process."""
        await self._own_events.publish(topic, event)

    def subscribe(self, *patterns: str) -> EventStream:
        """The events that `patterns` mean (task.created, task.*, task.>), as `Delivery`: the event with topic, publisher, time.

        `async with client.subscribe("task.*") as events: async for one in events: ...`. Unreachable: the node is away."""
        return self._own_events.subscribe(patterns)

    async def describe(self, target: str) -> dict[str, Any]:
        """What `target` is, and its methods with JSON Schemas."""
        return dict(await self.call(target, DESCRIBE))

    async def names(self) -> tuple[AgentId, ...]:
        """Every agent of the cluster."""
        async with Deadline.after(DEFAULT_TIMEOUT_S).scope("asking the node for names"):
            return await self._directory.names()

    def _on_records(self, name: str, records: tuple[AgentRecord, ...]) -> None:
        if self._caller is not None:
            self._caller.on_records(name, records)

    async def _reconnected(self, _: MeshDirectory) -> None:
        if self._events is not None:
            await self._events.reconnected()

    @property
    def _own_events(self) -> ClientEvents:
        self._calls  # noqa: B018 - says what is wrong outside of `async with`
        if self._events is None:
            self._events = ClientEvents(str(self._me.id), self._directory)
        return self._events

    @property
    def _calls(self) -> Caller:
        if self._caller is None:
            raise NoNode("use it as `async with Client() as client:`")
        return self._caller


class BlockingClient:
    """The same for code without an event loop. A context manager; threads may share it."""

    def __init__(
        self,
        *,
        node: str | None = None,
        cluster: str | None = None,
        peers: Mapping[str, str] | None = None,
        trace_sample: float = DEFAULT_SAMPLE,
        keys: str | Path | None = None,
    ) -> None:
        """Arguments as Client's."""
        path, here = (None, "local") if peers is not None else _node(node, cluster)
        self._path = path
        self._here = here
        self._static = StaticDirectory(peers, here=here)
        self._known: dict[str, tuple[float, tuple[AgentRecord, ...]]] = {}
        self.tracer = Tracer(trace_sample)
        self._caller = BlockingCaller(
            _identity(here),
            self._lookup,
            policies=SCRIPT_CALLS,
            tracer=self.tracer,
            dialer=_dialer(here, keys, path),
            forget=self._forget,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all channels."""
        self._caller.close()

    def call(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Any:
        """Call `method` of the agent that `target` names; see agent.caller.Caller.call."""
        return self._caller.call(target, method, arguments, **options)

    def stream(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Iterator[Any]:
        """The results of a method that yields, one after another; see agent.blocking.BlockingCaller.stream."""
        return self._caller.stream(target, method, arguments, **options)

    def peer(self, target: str, **options: Unpack[CallOptions]) -> BlockingPeerProxy:
        """Its methods as methods: `client.peer("X").method(...)`."""
        return self._caller.peer(target, **options)

    def describe(self, target: str) -> dict[str, Any]:
        """What `target` is, and its methods with JSON Schemas."""
        return dict(self.call(target, DESCRIBE))

    def names(self) -> tuple[AgentId, ...]:
        """Every agent of the cluster; with `peers`, those."""
        if self._path is None:
            return self._static.ids()
        answer = _ask_node(self._path, "names", {}, Deadline.after(DEFAULT_TIMEOUT_S))
        return tuple(AgentId.parse(id) for id in answer["ids"])

    def _forget(self, name: str) -> None:
        """Somebody of that name is not where it was. Replicas that left would use up the tries of a call otherwise."""
        bare = bare_name(name)
        if (known := self._known.get(bare)) is not None:
            self._known[bare] = (float("-inf"), known[1])

    def _lookup(self, name: str, deadline: Deadline) -> tuple[AgentRecord, ...]:
        if self._path is None:
            return self._static.cached(name)
        bare = bare_name(name)
        asked_s, records = self._known.get(bare, (0.0, ()))
        stale = False
        if now_s() - asked_s > FRESH_S:
            # What was learnt goes on serving while the node is away, or stands still: no call is to wait for it again and again
            patience = Deadline.after(min(PATIENCE_S, deadline.left_s())) if records else deadline
            try:
                content = _ask_node(self._path, "directory", {"name": bare}, patience)
            except Unreachable:
                stale = True
            else:
                records = tuple(AgentRecord.from_wire(record) for record in content["records"])
            if records:
                self._known[bare] = (now_s(), records)
            else:
                self._known.pop(bare, None)
        return unambiguous(name, records, here=self._here, stale=stale)


def _ask_node(path: str, operation: str, arguments: Mapping[str, Any], deadline: Deadline) -> Any:
    """The first answer to one question, over a connection of its own. Unreachable when the node is away or slow."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(max(0.01, deadline.left_s()))
            sock.connect(path)
            sock.sendall(pack([1, operation, dict(arguments)]))
            buffer = FrameBuffer()
            while data := sock.recv(65536):
                for _, kind, content in buffer.feed(data):
                    if kind == "error":
                        raise from_wire(content["code"], content["message"], False, content.get("details") or {})
                    return content
    except OSError as exc:
        raise Unreachable(f"the node at {path} does not answer: {exc}") from exc
    raise Unreachable(f"the node at {path} closed the connection")


def _folder_of_node(path: str) -> str:
    """Where the cluster's keys are on this machine, as its node knows it; "": it does not tell."""
    try:
        return str(_ask_node(path, "hello", {}, Deadline.after(PATIENCE_S)).get("keys") or "")
    except CallError:
        return ""


def _node(path: str | None, cluster: str | None) -> tuple[str, str]:
    """(control socket, machine) of the node to use."""
    if path is None:
        info = find_node(cluster)
        return info.control, info.machine
    if not Path(path).exists():
        raise NoNode(f"no node at {path}")
    return path, Path(path).absolute().parent.name  # RUN/<cluster>/<machine>/node.sock


def _identity(machine: str) -> Identity:
    """Scripts have a name for the logs of those whom they call."""
    return Identity(AgentId(MachineName(machine), AgentName(f"client-{os.getpid()}")))


def _dialer(here: str, keys: str | Path | None, node: str | None) -> Dialer:
    def read() -> Keyring:
        from agentkit.security.folder import KeyFolder, folder_of
        from agentkit.security.ring import Keyring

        folder = Path(keys).expanduser() if keys is not None else folder_of(_folder_of_node(node) if node else "")
        return Keyring.of_person(KeyFolder(folder), here)

    return Dialer(here, read, is_strict=keys is not None, even_here=keys is not None and node is None, shows_key=True)
