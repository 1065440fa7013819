"""Nodes of one cluster telling each other their rows: AK1 over TCP, each node the only author of its machine's rows.

Every node calls every other: what it tells goes over its own channel into the other's inbox, so two nodes have two connections.
They are found by the revision (a machine's host and node_port), and on one host by their node.json below the same root; one that
starts greets those that run, and they greet back. Rows travel when they change (`mesh.rows`), all of them when the other's copy is
not equal (`mesh.sync`), which every greeting and every beat finds out. docs/mesh.md has the rules.

    mesh.hello {endpoint, events}     I am here: call me back; my event relay is there, or null  -> {knows: digest of my rows}
    mesh.beat  {rows}                 are you there, and is your copy of my rows this one?       -> {knows}
    mesh.sync  {upto, rows}           everything of my machine; what you know beside it is gone
    mesh.rows  {upto, rows}           these have changed
    mesh.events {endpoint}            my event relay is there
    mesh.node, mesh.logs, mesh.events_seen      -> what my machine tells of itself (views.py)
    mesh.errors {what, arguments}     -> what my agents reported (errors/desk.py)
    mesh.revision {number}            -> one of the revisions that you keep (rollbacks.py)
    mesh.claims {}                    -> which of your agents my revision gives to you (fence.py)
    mesh.bye   {upto, rows}           my last words: I end on purpose

and all of them: {machine, at: [life, clock], heard: the newest `at` of yours or null, number, digest: of my revision}
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.directory.locate import NodeInfo, node_files
from agentkit.errors import CallError, Unreachable
from agentkit.names import AgentId, AgentName, Incarnation, MachineName
from agentkit.observe.log import get_logger
from agentkit.transport.channel import Channel
from agentkit.transport.peer import Identity
from agentkit.wire import values
from startup.node.keys import NodeKeys
from startup.node.mesh.callbacks import MeshCallbacks
from startup.node.mesh.circle import Circle
from startup.node.mesh.faults import MeshFaults
from startup.node.mesh.heartbeat import MeshHeartbeat
from startup.node.mesh.links import Links
from startup.node.mesh.peer import MeshTimes, Peer
from startup.node.mesh.receiver import MeshReceiver
from startup.node.mesh.rows import Copies
from startup.node.paths import Places
from startup.plan.membership import PeerState

log = get_logger("node.mesh")

#: Name under which nodes introduce themselves; no agent can be called so.
NODE_NAME: Final = AgentName("_node")


class Mesh:
    """One node's side of it. `start`, then `expect` the fleet's machines; `close` ends it."""

    def __init__(
        self, places: Places, incarnation: Incarnation, callbacks: MeshCallbacks, times: MeshTimes | None = None
    ) -> None:
        self.on_events: Callable[[str, str | None], None] = lambda *_: (
            None
        )  #: a machine's event relay is there, or gone
        self.times = times or MeshTimes()
        self.keys = NodeKeys(places.machine)  #: the node puts its own here
        self._events: str | None = None
        self._places = places
        self._callbacks = callbacks
        self._me = Identity(AgentId(MachineName(places.machine), NODE_NAME), incarnation)
        self._loop = asyncio.get_running_loop()
        self.circle = Circle(int(incarnation), self.times)
        self._peers, self._members = self.circle.peers, self.circle.members
        self._links = Links(
            self._me,
            self.times,
            introduce=self._introduce,
            on_up=self._level,
            is_wanted=lambda peer: self.circle.is_wanted(peer) and not self.faults.is_cut(peer.machine),
            find=self._find,
            dial=lambda machine, endpoint: self.keys.dial(machine, endpoint),
            on_unmet=lambda machine: self.keys.missed(machine),
            on_broke=self._on_broke,
            on_there=self._on_there,
        )
        #: The others' copies of our rows
        self.copies = Copies(places.machine, callbacks, self._peers, self._ask_over, self._links.spawn)
        self._heartbeat = MeshHeartbeat(self._members, self._peers, self._links, self.copies.beat, self._tell_changes)
        self._is_closing = False
        self.faults = MeshFaults(self._on_fault)
        self.receiver = MeshReceiver(
            self._me,
            self.circle,
            self._links,
            callbacks,
            self.faults,
            keys=lambda: self.keys,
            on_events=lambda machine, endpoint: self.on_events(machine, endpoint),
            on_heard=self._tell_changes,
            look_soon=self._heartbeat.soon,
        )

    @property
    def endpoint(self) -> str | None:
        """Where others find this node; None: it has not begun to listen."""
        return self.receiver.endpoint

    # -- life

    def start(self, host: str, port: int | None) -> str:
        """Listen for the others; returns the endpoint. OSError: the port is taken, or the address is not this machine's."""
        return self.receiver.start(host, port)

    async def listen_anew(self) -> None:
        """The same address under the key that we have now. Everybody's connection ends and is made again. OSError: in vain."""
        if await self.receiver.listen_anew():
            for peer in self._peers.values():
                self._links.drop(peer)  # they know us by the old key
                self._links.press(peer)

    def pace(self, suspect_s: float, unreachable_s: float) -> None:
        """Other limits than before."""
        if (suspect_s, unreachable_s) != (self.times.suspect_s, self.times.unreachable_s):
            self.times = self._links.times = self.times.paced(suspect_s, unreachable_s)
            self._members.suspect_s, self._members.unreachable_s = suspect_s, unreachable_s

    def discover(self) -> None:
        """Greet the nodes of this cluster that have left their address below the same root."""
        root = self._places.run.parent.parent
        for info in node_files(root, self._places.cluster):
            if info.machine != self._places.machine and info.mesh:
                self._links.press(self.circle.peer(info.machine))

    def expect(self, machines: Mapping[str, str | None]) -> None:
        """The other machines of the fleet, with where their nodes listen by the revision (None: on this host, it says so itself).

        Silence of one of these is news. What is no longer expected is forgotten when it ends."""
        others = {machine: endpoint for machine, endpoint in machines.items() if machine != self._places.machine}
        self._members.expect(others, now_s())
        for machine, endpoint in others.items():
            peer = self.circle.peer(machine)
            peer.is_expected, peer.configured = True, endpoint
        for peer in [peer for peer in self._peers.values() if peer.machine not in others]:
            peer.is_expected = False
            if peer.channel is None:
                self._forget(peer)
        self.discover()
        for peer in tuple(self._peers.values()):
            self._links.press(peer)
        self._heartbeat.soon()

    def tell_events(self, endpoint: str) -> None:
        """This machine's event relay is there; who connects later hears of it in `mesh.hello`."""
        self._events = endpoint
        for peer in self._peers.values():
            if peer.channel is not None:
                self._links.spawn(self._tell_events(peer), f"mesh:events {peer.machine}")

    def others(self) -> list[str]:
        return self.circle.others()

    async def ask(self, machine: str, method: str, said: Mapping[str, Any], within_s: float) -> Any:
        """What one machine answers (MeshCallbacks.answers); None when no answer came in time. One that is unreachable is not waited for."""
        if self.circle.is_lost(machine):
            return None
        try:
            async with asyncio.timeout(within_s):
                return await self._ask(self._peers[machine], method, said)
        except (CallError, TimeoutError) as error:
            log.debug("mesh.no_answer", machine=machine, method=method, error=str(error))
            return None

    async def ask_others(self, method: str, said: Mapping[str, Any], within_s: float) -> dict[str, Any]:
        """What all other machines answer, by machine; None where no answer came in time."""
        asked = self.circle.others()
        answers = await asyncio.gather(*(self.ask(machine, method, said, within_s) for machine in asked))
        return dict(zip(asked, answers, strict=True))

    async def bye(self) -> None:
        """Last words to everybody: this node ends on purpose, its rows are what they are now."""
        asked = [self._ask(peer, "mesh.bye", self.copies.all()) for peer in self._peers.values() if peer.is_synced]
        await asyncio.gather(*asked, return_exceptions=True)

    async def close(self) -> None:
        self._is_closing = True
        self.faults.close()
        self._heartbeat.end()
        for peer in self._peers.values():
            self._links.drop(peer)
        await self._links.close()
        await self.receiver.close()

    def _on_fault(self, machine: str) -> None:
        peer = self._peers.get(machine)
        if peer is None or self._is_closing:
            return
        if self.faults.is_cut(machine):
            self._links.drop(peer)
            self._on_broke(peer)
        else:
            self._links.press(peer)
            self._heartbeat.soon()

    # -- saying

    async def _introduce(self, peer: Peer, channel: Channel) -> Mapping[str, Any] | None:
        """The first words over a new connection; what the other says of itself and of what it knows. None: it does not count us
        among the living."""
        said = {"endpoint": self.receiver.endpoint, "events": self._events}
        answer: Mapping[str, Any] | None = await self._ask_over(peer, channel, "mesh.hello", said)
        return answer

    async def _level(self, peer: Peer, channel: Channel, told: Mapping[str, Any] | None) -> None:
        """`channel` is the one in use from now on; `told` is what `_introduce` heard over it."""
        if told is not None:
            self.receiver.learn_revision(peer, int(told["number"]), str(told["digest"]), anew=True)
        await self.copies.level(peer, channel, None if told is None else told["knows"])

    async def _tell_events(self, peer: Peer) -> None:
        try:
            await self._ask(peer, "mesh.events", {"endpoint": self._events})
        except CallError as error:  # the connection went: `mesh.hello` on the next one tells it
            log.debug("mesh.events_not_told", machine=peer.machine, error=str(error))

    async def _ask(self, peer: Peer, method: str, said: Mapping[str, Any]) -> Any:
        if peer.channel is None:
            raise CallError(f"no connection to the node of {peer.machine}")
        return await self._ask_over(peer, peer.channel, method, said)

    async def _ask_over(self, peer: Peer, channel: Channel, method: str, said: Mapping[str, Any]) -> Any:
        if self.faults.is_cut(peer.machine):
            raise Unreachable(f"{peer.machine} is cut off because an operator wants it")
        sent_s = now_s()
        number, digest = self._callbacks.own_revision()
        facts = {
            "machine": self._places.machine,
            "at": self._members.reading(sent_s),
            "heard": self._members.echo(peer.machine),
            "number": number,
            "digest": digest,
        }
        _, answer = channel.request(
            method, values.pack({**facts, **said}), sent_s + self.times.call_s, {}, idempotent=True
        )
        result = await answer
        if channel.peer is not None and peer.machine in self._members:
            self._members.answered(peer.machine, int(channel.peer.incarnation), sent_s, now_s())
            self._tell_changes()
        return result

    # -- who is there

    def _forget(self, peer: Peer) -> None:
        self._links.drop(peer)
        self.circle.forget(peer)
        self.on_events(peer.machine, None)
        self._callbacks.on_peers()

    def _find(self, machine: str) -> str | None:
        info = NodeInfo.read(self._places.run.parent / machine / "node.json")
        return info.mesh if info is not None else None

    def _on_broke(self, peer: Peer) -> None:
        if peer.machine not in self._members:
            return
        self._members.broke(peer.machine)
        if not peer.is_expected:
            self._loop.call_soon(self._forget, peer)
        self._tell_changes()
        self._heartbeat.soon()

    def _on_there(self, peer: Peer) -> None:
        if peer.machine in self._members:
            self._members.there(peer.machine, now_s())

    def _tell_changes(self) -> None:
        changed = self._members.changes()
        for machine in changed:
            log.info("mesh.peer", machine=machine, state=self._members[machine].state.value)
            if machine in self._peers:
                self._peers[machine].is_doubtful |= self._members[machine].state is not PeerState.ALIVE
                self._links.press(self._peers[machine])
        if changed:
            self._callbacks.on_peers()
            if any(self._members[machine].state is PeerState.SUSPECT for machine in changed):
                self._heartbeat.soon()
