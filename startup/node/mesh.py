"""Nodes of one cluster telling each other their rows: AK1 over TCP, each node the only author of its machine's rows.

Every node calls every other: what it tells goes over its own channel into the other's inbox, so two nodes have two connections.
They are found by their node.json below the same root; one that starts greets those that run, and they greet back. Rows travel
when they change (`mesh.rows`), all of them when a channel opens (`mesh.sync`). Each side pings its own channel and so knows
whether the other's loop still runs.

    mesh.hello {machine, endpoint, events}        I am here: call me back; my event relay is there, or null
    mesh.events {machine, endpoint}               my event relay is there
    mesh.sync  {machine, number, rows}            everything of my machine; replaces what you know of it
    mesh.rows  {machine, number, rows}            these have changed
    mesh.node, mesh.logs, mesh.events_seen        -> what my machine tells of itself (views.py)
    mesh.errors {what, arguments}                 -> what my agents reported (error_desk.py)
    mesh.bye   {machine, rows}                    my last words: I end on purpose
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.directory.locate import NodeInfo, node_files
from agentkit.errors import BadRequest, CallError, InternalError, UnknownMethod
from agentkit.names import AgentId, AgentName, Incarnation, MachineName
from agentkit.observe.log import get_logger
from agentkit.transport.channel import Channel
from agentkit.transport.inbox import Inbox
from agentkit.transport.peer import Identity, Inbound
from agentkit.wire import values
from startup.node.ears import Ears
from startup.node.mesh_peer import MeshTimes, Peer, PeerState
from startup.node.paths import Places
from startup.node.remote_control import CONTROL, RemoteControl
from startup.plan.row import AgentRow

log = get_logger("node.mesh")

#: Name under which nodes introduce themselves; no agent can be called so.
NODE_NAME: Final = AgentName("_node")


class Mesh:
    """One node's side of it. `start`, then `expect` the fleet's machines; `close` ends it."""

    def __init__(self, places: Places, incarnation: Incarnation, ears: Ears, times: MeshTimes | None = None) -> None:
        self.endpoint: str | None = None
        self.control = RemoteControl(_no_handler)  #: operators on other machines; the node puts its own here
        self.on_events: Callable[[str, str | None], None] = lambda *_: (
            None
        )  #: a machine's event relay is there, or gone
        self._events: str | None = None
        self._places = places
        self._ears = ears
        self._times = times or MeshTimes()
        self._me = Identity(AgentId(MachineName(places.machine), NODE_NAME), incarnation)
        self._loop = asyncio.get_running_loop()
        self._inbox: Inbox | None = None
        self._peers: dict[str, Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False

    # -- life

    def start(self, host: str, port: int | None) -> str:
        """Listen for the others; returns the endpoint. OSError: the port is taken."""
        self._inbox = Inbox(self._me, self)
        bound = self._inbox.bind(f"tcp://{host}:{port or '*'}")
        self.endpoint = f"tcp://{host}:{bound.rpartition(':')[2]}"  # told as asked for: libzmq tells an IPv6 form
        return self.endpoint

    def discover(self) -> None:
        """Greet the nodes of this cluster that have left their address below the same root."""
        root = self._places.run.parent.parent
        for info in node_files(root, self._places.cluster):
            if info.machine != self._places.machine and info.mesh:
                self._learn(info)

    def expect(self, machines: set[str]) -> None:
        """The other machines of the fleet: silence of one of these is news. What is no longer expected is forgotten."""
        for machine in machines - self._peers.keys() - {self._places.machine}:
            self._peers[machine] = Peer(machine, heard_s=now_s())
        for machine in self._peers.keys() - machines:
            self._drop(self._peers.pop(machine))
            self.on_events(machine, None)
        self.discover()
        self._watch()

    def states(self) -> dict[str, str]:
        return {machine: peer.state.value for machine, peer in sorted(self._peers.items())}

    def numbers(self) -> dict[str, int]:
        """The revisions of the machines that were heard of."""
        return {machine: peer.number for machine, peer in sorted(self._peers.items()) if peer.is_synced or peer.number}

    def unreachable(self) -> frozenset[str]:
        return frozenset(machine for machine, peer in self._peers.items() if peer.state is PeerState.UNREACHABLE)

    def publish(self, rows: list[AgentRow]) -> None:
        """Own rows that have changed: told to everybody who has been told all before."""
        for peer in self._peers.values():
            if peer.is_synced:
                peer.pending.update((row.id, row) for row in rows)
                self._send_soon(peer)

    def tell_events(self, endpoint: str) -> None:
        """This machine's event relay is there; who connects later hears of it in `mesh.hello`."""
        self._events = endpoint
        for peer in self._peers.values():
            if peer.channel is not None:
                self._spawn(self._tell_events(peer), f"mesh:events {peer.machine}")

    def others(self) -> list[str]:
        """The machines that are there as far as is known, and those that are missed; not those that ended on purpose."""
        return sorted(machine for machine, peer in self._peers.items() if not peer.said_bye)

    def silent_s(self) -> dict[str, float]:
        """Since when nothing has been heard of those that are not alive."""
        now = now_s()
        quiet = (peer for peer in self._peers.values() if peer.state is not PeerState.ALIVE)
        return {peer.machine: round(now - peer.heard_s, 1) for peer in quiet}

    async def ask(self, machine: str, method: str, said: Mapping[str, Any], within_s: float) -> Any:
        """What one machine answers (Ears.answers); None when no answer came in time. One that is unreachable is not waited for."""
        peer = self._peers.get(machine)
        if peer is None or peer.state is PeerState.UNREACHABLE:
            return None
        try:
            async with asyncio.timeout(within_s):
                return await self._ask(peer, method, said)
        except (CallError, TimeoutError) as error:
            log.debug("mesh.no_answer", machine=machine, method=method, error=str(error))
            return None

    async def ask_others(self, method: str, said: Mapping[str, Any], within_s: float) -> dict[str, Any]:
        """What all other machines answer, by machine; None where no answer came in time."""
        asked = self.others()
        answers = await asyncio.gather(*(self.ask(machine, method, said, within_s) for machine in asked))
        return dict(zip(asked, answers, strict=True))

    async def bye(self) -> None:
        """Last words to everybody: this node ends on purpose, its rows are what they are now."""
        rows = [row.to_wire() for row in self._ears.own_rows()]
        asked = [self._ask(peer, "mesh.bye", {"rows": rows}) for peer in self._peers.values() if peer.is_synced]
        await asyncio.gather(*asked, return_exceptions=True)

    async def close(self) -> None:
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        for peer in self._peers.values():
            self._drop(peer)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.control.close()
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            inbox.close()

    # -- transport.inbox.Receiver

    def request(self, inbound: Inbound) -> None:
        """A word of another node."""
        assert self._inbox is not None
        if inbound.method == CONTROL:
            self.control.request(self._inbox, inbound)
            return
        try:
            said = values.unpack(inbound.body)
            if find := self._ears.answers().get(inbound.method):
                self._spawn(self._answer(inbound, find(said)), inbound.method)
                return
            self._hear(inbound.method, said)
        except CallError as error:
            self._inbox.refuse(inbound, error)
        except (KeyError, TypeError, ValueError) as exc:
            log.warning("mesh.bad_word", method=inbound.method, error=str(exc))
            self._inbox.refuse(inbound, BadRequest(f"{inbound.method}: {exc}"))
        else:
            self._inbox.answer(inbound, None)

    def abandon(self, inbound: Inbound) -> None:
        """Only operators' questions can be given up: what nodes ask is over in an instant."""
        if inbound.method == CONTROL:
            self.control.abandon(inbound)

    async def _answer(self, inbound: Inbound, finding: Awaitable[Any]) -> None:
        assert self._inbox is not None
        try:
            self._inbox.answer(inbound, await finding)
        except CallError as error:
            self._inbox.refuse(inbound, error)
        except Exception as exc:
            log.exception("mesh.answer_failed", method=inbound.method)
            self._inbox.refuse(inbound, InternalError(f"{inbound.method}: {type(exc).__name__}: {exc}"))

    def _hear(self, method: str, said: Mapping[str, Any]) -> None:
        machine = str(said["machine"])
        peer = self._peers.get(machine)
        if peer is None:
            peer = self._peers[machine] = Peer(machine, heard_s=now_s())
        peer.number = int(said.get("number", peer.number))
        peer.said_bye = False
        match method:
            case "mesh.hello":
                self._call_back(peer, str(said["endpoint"]))
                self.on_events(machine, _endpoint(said.get("events")))
            case "mesh.events":
                self.on_events(machine, _endpoint(said["endpoint"]))
            case "mesh.sync":
                self._ears.on_sync(machine, _rows(said))
            case "mesh.rows":
                self._ears.on_rows(_rows(said))
            case "mesh.bye":
                self._ears.on_rows(_rows(said))
                peer.said_bye = True
                self.on_events(machine, None)
            case _:
                raise UnknownMethod(f"no method {method!r} between nodes")
        self._heard(peer)

    def _call_back(self, peer: Peer, endpoint: str) -> None:
        if peer.endpoint != endpoint and peer.channel is not None:
            self._drop(peer)  # it was started anew
        peer.endpoint = endpoint
        if peer.channel is None:
            peer.pause_s = 0.0
            self._dial(peer)

    # -- channels to others

    def _learn(self, info: NodeInfo) -> None:
        peer = self._peers.setdefault(info.machine, Peer(info.machine, heard_s=now_s()))
        if peer.channel is None:
            peer.endpoint = info.mesh
            self._dial(peer)

    def _dial(self, peer: Peer) -> None:
        if peer.redial is not None:
            peer.redial.cancel()
            peer.redial = None
        if self._is_closing or peer.endpoint is None or peer.channel is not None:
            return
        peer.channel = Channel(f"node {peer.machine}", peer.endpoint, self._me, on_end=partial(self._on_end, peer))
        self._spawn(self._introduce(peer, peer.channel), f"mesh:introduce {peer.machine}")

    async def _introduce(self, peer: Peer, channel: Channel) -> None:
        """Everything that we have, once; what changes meanwhile goes after it."""
        try:
            await self._ask(peer, "mesh.hello", {"endpoint": self.endpoint, "events": self._events})
            rows = [row.to_wire() for row in self._ears.own_rows()]
            peer.pending.clear()
            peer.is_synced = True
            await self._ask(peer, "mesh.sync", {"rows": rows})
        except CallError as error:
            peer.is_synced = False
            log.debug("mesh.not_introduced", machine=peer.machine, error=str(error))
            if channel is peer.channel:
                channel.close()
            return
        peer.pause_s = 0.0
        self._heard(peer)
        self._send_soon(peer)

    async def _tell_events(self, peer: Peer) -> None:
        try:
            await self._ask(peer, "mesh.events", {"endpoint": self._events})
        except CallError as error:  # the connection went: `mesh.hello` on the next one tells it
            log.debug("mesh.events_not_told", machine=peer.machine, error=str(error))

    def _on_end(self, peer: Peer, channel: Channel) -> None:
        """The connection went; the node may have, too. Tried again for as long as it is expected."""
        if channel is not peer.channel:
            return
        peer.channel = None
        peer.is_synced = False
        if self._is_closing or self._peers.get(peer.machine) is not peer:
            return
        if not peer.said_bye:
            self._suspect(peer)
        first_s, last_s = self._times.redial_s
        peer.pause_s = min(max(peer.pause_s * 2, first_s), last_s)
        peer.redial = self._loop.call_later(peer.pause_s, self._redial, peer)

    def _redial(self, peer: Peer) -> None:
        peer.redial = None
        info = NodeInfo.read(self._places.run.parent / peer.machine / "node.json")
        if info is not None and info.mesh:
            peer.endpoint = info.mesh
            self._dial(peer)
        elif not peer.said_bye:
            peer.redial = self._loop.call_later(self._times.redial_s[1], self._redial, peer)

    def _drop(self, peer: Peer) -> None:
        channel, peer.channel = peer.channel, None
        peer.is_synced = False
        if peer.redial is not None:
            peer.redial.cancel()
            peer.redial = None
        if channel is not None:
            channel.close()

    def _send_soon(self, peer: Peer) -> None:
        """One call at a time per peer: what changes while it is on its way goes with the next."""
        if peer.pending and not peer.is_sending and peer.is_synced:
            peer.is_sending = True
            self._spawn(self._send_pending(peer), f"mesh:rows {peer.machine}")

    async def _send_pending(self, peer: Peer) -> None:
        try:
            while peer.pending and peer.is_synced:
                rows, peer.pending = peer.pending, {}
                await self._ask(peer, "mesh.rows", {"rows": [row.to_wire() for row in rows.values()]})
                self._heard(peer)
        except CallError as error:
            log.warning("mesh.rows_not_told", machine=peer.machine, error=str(error))
            if peer.channel is not None:
                peer.channel.close()  # a sync follows on the next one
        finally:
            peer.is_sending = False

    async def _ask(self, peer: Peer, method: str, said: Mapping[str, Any]) -> Any:
        if peer.channel is None:
            raise CallError(f"no connection to the node of {peer.machine}")
        body = values.pack({"machine": self._places.machine, "number": self._ears.own_number(), **said})
        _, answer = peer.channel.request(method, body, now_s() + self._times.call_s, {}, idempotent=True)
        return await answer

    # -- who is there

    def _heard(self, peer: Peer) -> None:
        peer.heard_s = now_s()
        self._to(peer, PeerState.ALIVE)

    def _suspect(self, peer: Peer) -> None:
        if peer.state is PeerState.ALIVE:
            self._to(peer, PeerState.SUSPECT)

    def _to(self, peer: Peer, state: PeerState) -> None:
        if peer.state is not state:
            log.info("mesh.peer", machine=peer.machine, state=state.value, was=peer.state.value)
            peer.state = state
            self._ears.on_peers()

    def _watch(self) -> None:
        """One timer for all peers: pings, and judges silence."""
        if self._timer is None and self._peers and not self._is_closing:
            # in step with everything else on this machine that looks now and then: one wake-up serves several
            is_calm = all(peer.state is not PeerState.SUSPECT for peer in self._peers.values())
            period_s = self._times.ping_s if is_calm else self._times.look_s
            self._timer = self._loop.call_later(period_s - now_s() % period_s, self._look)

    def _look(self) -> None:
        self._timer = None
        times, now = self._times, now_s()
        for peer in self._peers.values():
            if peer.said_bye:
                continue
            if peer.channel is not None and peer.channel.peer is not None and peer.channel.heard_s > peer.heard_s:
                peer.heard_s = peer.channel.heard_s
                self._to(peer, PeerState.ALIVE)
            if now - peer.heard_s >= times.unreachable_s:
                self._to(peer, PeerState.UNREACHABLE)
            elif peer.heard_s < peer.pinged_s <= now - times.suspect_s:
                self._suspect(peer)
            if peer.pinged_s <= peer.heard_s:
                peer.pinged_s = now
            if peer.channel is not None:
                peer.channel.ping()
        self._watch()

    def _spawn(self, work: Any, name: str) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("mesh.task_failed", task=task.get_name(), exc_info=error)


def _no_handler(_: object, __: int, operation: str, ___: Mapping[str, Any]) -> None:
    raise UnknownMethod(f"{operation}: this node is not controlled from here")


def _rows(said: Mapping[str, Any]) -> list[AgentRow]:
    return [AgentRow.from_wire(row) for row in said["rows"]]


def _endpoint(said: object) -> str | None:
    """An address that may be connected to; ValueError when it is none."""
    if said is None:
        return None
    if not isinstance(said, str) or not said.startswith("tcp://") or len(said) > 300:
        raise ValueError(f"{str(said)[:100]!r} is no tcp:// address")
    return said
