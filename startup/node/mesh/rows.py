"""What a node tells the others of its machine's rows: changes as they happen, everything to whose copy is not the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol

from agentkit.errors import CallError
from agentkit.observe.log import get_logger
from agentkit.transport.channel import Channel
from startup.node.mesh.callbacks import MeshCallbacks
from startup.node.mesh.peer import Peer
from startup.plan.row import AgentRow

log = get_logger("node.mesh")

#: Asks a peer over one of its connections: (peer, channel, method, what is said).
Ask = Callable[[Peer, Channel, str, Mapping[str, Any]], Awaitable[Any]]


class Spawn(Protocol):
    """Who owns the tasks (mesh_links.Links.spawn)."""

    def __call__(self, work: Coroutine[Any, Any, None], name: str) -> None: ...


class Copies:
    """The others' copies of this machine's rows."""

    def __init__(
        self, machine: str, callbacks: MeshCallbacks, peers: Mapping[str, Peer], ask: Ask, spawn: Spawn
    ) -> None:
        self._machine = machine
        self._callbacks = callbacks
        self._peers = peers
        self._ask = ask
        self._spawn = spawn

    def publish(self, rows: Iterable[AgentRow]) -> None:
        """Own rows that have changed: told to everybody who has been told all before."""
        changed = {row.id: row for row in rows}
        for peer in self._peers.values():
            if peer.is_synced:
                peer.pending.update(changed)
                self._send_soon(peer)

    def publish_all(self) -> None:
        """Own rows were removed: who is told all that there is knows which."""
        for peer in self._peers.values():
            if peer.is_synced:
                peer.is_behind = True
                self._send_soon(peer)

    async def level(self, peer: Peer, channel: Channel, knows: str | None) -> None:
        """`channel` is the one in use from now on, and the other `knows` the rows of this digest."""
        peer.pending.clear()
        peer.is_behind = False
        peer.is_synced = True  # what changes from here on goes after the sync
        if knows is None or knows != self.digest():
            try:
                await self._ask(peer, channel, "mesh.sync", self.all())
            except CallError as error:
                log.debug("mesh.not_synced", machine=peer.machine, error=str(error))
                if channel is peer.channel:
                    channel.close()
                return
        self._send_soon(peer)

    async def beat(self, peer: Peer, channel: Channel) -> None:
        """Ask for a sign of life, and whether the other's copy is the same; else it gets everything."""
        is_under_way = peer.pending or peer.is_behind or peer.is_sending or not peer.is_synced
        rows = None if is_under_way else self.digest()
        try:
            answer = await self._ask(peer, channel, "mesh.beat", {"rows": rows})
        except CallError as error:
            log.debug("mesh.no_beat", machine=peer.machine, error=str(error))
            return
        is_same = rows is None or answer is None or answer["knows"] == rows
        if not is_same and self.digest() == rows and peer.is_synced and channel is peer.channel:
            log.info("mesh.copy_differs", machine=peer.machine)
            peer.is_behind = True
            self._send_soon(peer)

    def all(self) -> dict[str, Any]:
        """What `mesh.sync` says."""
        return {"upto": self._callbacks.own_upto(), "rows": [row.to_wire() for row in self._callbacks.own_rows()]}

    def digest(self) -> str | None:
        return self._callbacks.rows_digest(self._machine)

    def _send_soon(self, peer: Peer) -> None:
        """One call at a time per peer: what changes while it is on its way goes with the next."""
        is_due = peer.pending or peer.is_behind
        if is_due and not peer.is_sending and peer.is_synced and peer.channel is not None:
            peer.is_sending = True
            self._spawn(self._send_pending(peer), f"mesh:rows {peer.machine}")

    async def _send_pending(self, peer: Peer) -> None:
        channel = peer.channel
        try:
            while peer.is_synced and channel is not None and channel is peer.channel:
                if peer.is_behind:
                    peer.pending, peer.is_behind = {}, False
                    await self._ask(peer, channel, "mesh.sync", self.all())
                if not peer.pending:
                    break
                rows, peer.pending = peer.pending, {}
                told = [row.to_wire() for row in rows.values()]
                await self._ask(peer, channel, "mesh.rows", {"upto": self._callbacks.own_upto(), "rows": told})
        except CallError as error:
            log.debug("mesh.rows_not_told", machine=peer.machine, error=str(error))
            if channel is not None and channel is peer.channel:
                channel.close()  # a sync follows on the next one, where it is needed
        finally:
            peer.is_sending = False
        self._send_soon(peer)
