"""The inbox: the one ROUTER socket on which an agent (or a node) takes calls, and how it drains without losing one.

Protocol in docs/protocol.md. The inbox knows peers, ids, limits and draining; what a request means is its `Receiver`'s. Whatever may
come over a channel, and whatever ends one, changes the same table of peers: that is why this is one module."""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import zmq

from agentkit.clock import now_s
from agentkit.errors import BadRequest, Draining, Overloaded, TooLarge
from agentkit.observe.log import get_logger
from agentkit.resilience.deadline import Deadline
from agentkit.transport import context, frames
from agentkit.transport.answers import Answers, error_frame
from agentkit.transport.connections import Connections
from agentkit.transport.draining import Drain
from agentkit.transport.endpoints import Endpoints
from agentkit.transport.outbox import Outbox
from agentkit.transport.peer import Identity, Inbound, Peer
from agentkit.transport.plain import PlainCallers
from agentkit.transport.reader import Reader
from agentkit.transport.streams import Incoming, Received, StreamBroken, Window
from agentkit.transport.strikes import Strikes
from agentkit.transport.welcome import introduced, turned_down, welcome
from agentkit.wire import codec, plain
from agentkit.wire import envelope as ak
from agentkit.wire.envelope import Limits

if TYPE_CHECKING:
    from agentkit.security.ring import Keyring
    from agentkit.security.roles import Holder

log = get_logger("agentkit.inbox")


class Receiver(Protocol):
    """Who handles what the inbox takes. Both are called on the loop and must not block."""

    def request(self, inbound: Inbound) -> None:
        """Run it, and answer it once."""
        ...

    def abandon(self, inbound: Inbound) -> None:
        """Its caller has gone, or cancelled it: stop the work, nobody wants the answer."""
        ...


class Inbox:
    """Takes calls on the endpoints that it is bound to. Belongs to the running loop; who opens it closes it."""

    def __init__(
        self, me: Identity, receiver: Receiver, *, limits: Limits = Limits(), keys: Keyring | None = None
    ) -> None:
        """`keys`: what `bind` and `adopt` encrypt with, and whom they let in, where that is asked for."""
        self.me = me
        self.limits = limits
        self.last_activity_s = now_s()
        self._receiver = receiver
        self._peers: dict[bytes, Peer] = {}
        self._is_draining = False
        self._on_call: Callable[[], None] | None = None
        self._strikes = Strikes()
        # The kind's class does not matter: the table is only read
        self._on: dict[type, Callable[[Peer, Any, Sequence[Any]], None]] = {
            ak.Cancel: self._on_cancel,
            ak.Chunk: self._on_chunk,
            ak.End: self._on_end,
            ak.Credit: self._on_credit,
            ak.Bye: self._on_bye,
            ak.Ping: self._on_ping,
            ak.Pong: lambda *_: None,
        }
        self._sock = context.socket(zmq.ROUTER, max_frame_bytes=limits.frame_bytes)
        self._sock.router_mandatory = True
        self._endpoints = Endpoints(self._sock, self._on_keys)
        if keys is not None:
            self.guard(keys)
        self._connections = Connections(
            self._sock, self._endpoints, on_gone=lambda: self._drain.note(), probe=self._probe
        )
        self._reader = Reader(self._sock, self._on_frames, take=self._strikes.receive)
        self._outbox = Outbox(self._sock, self._reader.poke, self._lose)
        self._plain = PlainCallers(me.id, limits, self._outbox.send_raw)
        self._drain = Drain(self._is_busy, lambda: self._connections.open, self._plain)
        answers = self._answers = Answers(self._outbox, self._plain, self._drain.note)
        self.answer, self.write, self.refuse = answers.answer, answers.write, answers.refuse

    # -- opening and closing ------------------------------------------------------------------------------------------

    def guard(self, keys: Keyring) -> None:
        """From now on `bind` and `adopt` can encrypt. Once."""
        self._endpoints.guard(keys)

    def bind(self, endpoint: str, *, encrypted: bool = False) -> str:
        """Listen on `endpoint` ("tcp://127.0.0.1:*" lets the kernel choose); returns the one it got. `encrypted`: for known keys
        only; plain addresses have to be bound before. OSError: it can't be listened on."""
        bound = self._endpoints.bind(endpoint, encrypted=encrypted)
        self._reader.poke()
        return bound

    def unbind(self, endpoint: str) -> None:
        """Listen there no more. Every connection that was accepted there ends: this is no way to drain."""
        self._endpoints.unbind(endpoint)
        self._reader.poke()

    def adopt(self, listener: stdlib_socket.socket, *, encrypted: bool = False) -> str:
        """Accept on a listener that was handed down; it stays open and the caller's. Returns its endpoint. `encrypted` as in `bind`."""
        endpoint = self._endpoints.adopt(listener, encrypted=encrypted)
        self._reader.poke()
        return endpoint

    def identity(self, peer: Peer) -> Holder | None:
        """Whose key `peer` came in with; None: it came by an address without encryption, or its key was revoked."""
        door = self._endpoints.door
        return door.holder(peer.entry) if door is not None else None

    @property
    def turned_away(self) -> int:
        """Connections that did not come in: no key, an unknown key, no CURVE."""
        door = self._endpoints.door
        return door.turned_away if door is not None else 0

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The channels that have introduced themselves and not said BYE."""
        return tuple(self._peers.values())

    def goaway(self, reason: str = "stopping") -> None:
        """Begin to drain: every channel is told, new requests are refused (retry-safe), running ones go on."""
        if self._is_draining:
            return
        self._is_draining = True
        for peer in self.peers:
            peer.sent_away = True
            self._outbox.send(peer, [codec.encode(ak.GoAway(reason, peer.last_id))])

    def doze(self, on_call: Callable[[], None]) -> None:
        """`goaway` that the first call undoes: whoever says HELLO from now on is welcome, and `on_call` is told. What comes over a channel
        that was sent away is not run all the same: its caller takes it elsewhere."""
        self.goaway("hibernating")
        self._on_call = on_call

    def rouse(self) -> None:
        """Take calls again, after `doze`."""
        on_call, self._on_call = self._on_call, None
        self._is_draining = False
        if on_call is not None:
            on_call()

    def doze_off(self) -> None:
        """No call undoes it any more."""
        self._on_call = None

    @property
    def strangers(self) -> int:
        """Connections that are no channels: plain sockets, and whoever has said nothing yet."""
        return max(0, self._connections.open - len(self._peers))

    @property
    def last_plain(self) -> str:
        """What the last plain caller called itself, or where it was."""
        return self._plain.last_name

    async def without_strangers(self, deadline: Deadline) -> bool:
        """Wait until there are none; False: the deadline came first."""
        return await self._drain.until(lambda: not self.strangers, deadline)

    async def left(self, deadline: Deadline) -> bool:
        """Wait until everybody who says BYE has said it, and no connection is open but those of callers that read only in calls (they find
        GOAWAY then); False: the deadline came first."""
        return await self._drain.until(lambda: not self._is_busy() and not self.strangers, deadline)

    @property
    def lost_peers(self) -> int:
        """Callers that went without BYE."""
        return self._outbox.lost

    @property
    def bad_frames(self) -> int:
        """Messages that were no AK1, or made no sense."""
        return self._strikes.bad_frames

    @property
    def connections_cut(self) -> int:
        """Connections that were ended because garbage came over them."""
        return self._strikes.total

    async def drained(self, deadline: Deadline) -> bool:
        """Wait until nothing runs, every channel said BYE and no connection is open, or until the deadline.

        Reads and answers all the while: whoever unbinds or closes earlier loses calls (26 % in the instant of an exit,
        0 of 2,000 this way). Plain callers are served until they pause: idle ones are not waited for, they would never go."""
        return await self._drain.finished(deadline)

    def close(self, linger_ms: int = 200) -> None:
        """Close the socket; what was sent gets `linger_ms` to leave. Running requests are not answered any more."""
        self._outbox.close()
        self._connections.close()
        self._reader.close()
        self._sock.close(linger=linger_ms)
        self._endpoints.close()

    def safety_check(self) -> int:
        """Takes what an unseen edge left lying; how much that was (0 unless the reader's rule was broken somewhere)."""
        self._connections.drain_now()
        return self._reader.drain_now()

    # -- taking -------------------------------------------------------------------------------------------------------

    def _on_frames(self, received: frames.Frames) -> None:
        routing_id, header = received[0], received[1]
        if self._strikes.cut and routing_id in self._strikes.cut:
            self._strikes.bad_frames += 1
            return
        if not header:
            self._on_plain(routing_id, received)
            return
        try:
            message = codec.decode(header)
        except codec.BadFrame as exc:
            self._on_garbage(routing_id, str(exc), exc.id)
            return
        if type(message) is ak.Batch:
            self._reader.enough()
            items = iter(message.items)
            for fields, body in zip(items, items, strict=True):
                try:
                    self._on_message(routing_id, codec.read(fields), (body,) if type(body) is bytes else ())
                except codec.BadFrame as exc:
                    self._on_garbage(routing_id, str(exc), exc.id)
        else:
            self._on_message(routing_id, message, received[2:])

    def _on_message(self, routing_id: bytes, message: ak.Message, content: Sequence[Any]) -> None:
        """`content`: body and attachments, as far as there are any."""
        peer = self._peers.get(routing_id)
        if type(message) is ak.Request and peer is not None:
            self._on_request(peer, message, content)
        elif type(message) is ak.Hello:
            self._on_hello(routing_id, message)
        elif peer is None:
            # Its entry is gone (it was too slow once), or never was: nothing ran, and it may come again over a fresh channel
            if type(message) is ak.Request:
                self._outbox.send_raw(routing_id, [codec.encode(ak.GoAway("say HELLO first", 0))])
                self._outbox.send_raw(
                    routing_id, [error_frame(message.id, BadRequest("say HELLO first", retry_safe=True))]
                )
        else:
            handle = self._on.get(type(message))
            if handle is None:
                self._on_garbage(routing_id, f"{type(message).__name__} is for callers", None)
            else:
                handle(peer, message, content)

    def _on_hello(self, routing_id: bytes, hello: ak.Hello) -> None:
        door = self._endpoints.door
        entry = door.entry(self._strikes.header) if door is not None else None
        goodbye = turned_down(
            self.me,
            hello,
            channels=len(self._peers),
            is_revoked=entry is not None and door is not None and door.holder(entry) is None,
            is_leaving=self._is_draining and self._on_call is None,
        )
        if goodbye is not None:
            self._outbox.send_raw(routing_id, [goodbye])
            return
        before = self._peers.get(routing_id)
        if before is not None:  # somebody who chooses their own routing id came back: their earlier calls are orphans
            self._lose(before)
        peer = self._peers[routing_id] = introduced(routing_id, hello)
        peer.entry = entry
        self._outbox.send(peer, [welcome(self.me, self.limits)])
        if self._on_call is not None:
            self.rouse()

    def _on_request(self, peer: Peer, request: ak.Request, content: Sequence[Any]) -> None:
        self.last_activity_s = now_s()
        if peer.entry is not None and not self._endpoints.door.is_still(peer.entry, self._strikes.header):  # type: ignore[union-attr]
            self._put_out(peer)
            return
        id, method, budget_ms, flags, meta = request
        if id <= peer.last_id:
            self._on_garbage(peer.routing_id, "a request id was used before", id)
            return
        inbound = Inbound(
            peer, id, method, budget_ms, meta, content[0] if content else b"\x80", content[1:], None, flags
        )
        if flags & ak.GIVES_STREAM:
            inbound.incoming = Incoming(self.limits.stream_bytes, partial(self._answers.grant, inbound))
        if flags & ak.TAKES_STREAM:
            inbound.window = Window(peer.limits.stream_bytes)
        peer.in_flight[id] = inbound
        if self._is_draining or peer.sent_away:
            self.refuse(inbound, Draining(f"{self.me.id} is stopping"))
            if self._on_call is not None:
                self.rouse()
            return
        peer.last_id = id
        limits = self.limits
        if len(content) > limits.attachments + 1:
            self.refuse(inbound, TooLarge(f"{len(content) - 1} attachments, {limits.attachments} are taken"))
        elif len(peer.in_flight) > limits.in_flight:
            self.refuse(
                inbound,
                Overloaded(f"{limits.in_flight} calls of this channel are open", details={"retry_after_ms": 50}),
            )
        else:
            self._receiver.request(inbound)

    def _on_plain(self, routing_id: bytes, received: list[bytes]) -> None:
        self.last_activity_s = now_s()
        if self._on_call is not None:
            self.rouse()
        door = self._endpoints.door
        entry = door.entry(self._strikes.header) if door is not None else None
        try:
            inbound = self._plain.take(routing_id, received, is_channel=routing_id in self._peers, entry=entry)
        except plain.Unreadable as error:
            self._count_bad(routing_id, error.message)
            return
        if inbound is not None:
            self._receiver.request(inbound)

    def _on_chunk(self, peer: Peer, chunk: ak.Chunk, content: Sequence[Any]) -> None:
        inbound = peer.in_flight.get(chunk.id)
        if inbound is None:
            return  # answered already
        try:
            if inbound.incoming is None:
                raise StreamBroken("a stream came that was not announced")
            inbound.incoming.put(chunk.seq, Received.of(content))
        except StreamBroken as exc:
            self._count_bad(peer.routing_id, str(exc))
            self.refuse(inbound, BadRequest(f"{inbound.method}: {exc}"))
            self._receiver.abandon(inbound)

    def _on_end(self, peer: Peer, end: ak.End, _: Sequence[Any]) -> None:
        inbound = peer.in_flight.get(end.id)
        if inbound is not None and inbound.incoming is not None:
            inbound.incoming.end()

    def _on_credit(self, peer: Peer, credit: ak.Credit, _: Sequence[Any]) -> None:
        inbound = peer.in_flight.get(credit.id)
        if inbound is not None and inbound.window is not None:
            inbound.window.grant(credit.n)

    def _on_cancel(self, peer: Peer, cancel: ak.Cancel, _: Sequence[Any]) -> None:
        inbound = peer.in_flight.get(cancel.id)
        if inbound is not None:
            self._abandon(inbound)
        elif peer.kept.pop(cancel.id, None) is not None:
            self._drain.note()

    def _on_bye(self, peer: Peer, _bye: ak.Bye, _: Sequence[Any]) -> None:
        self._lose(peer)

    def _on_ping(self, peer: Peer, ping: ak.Ping, _: Sequence[Any]) -> None:
        self._outbox.send(peer, [codec.encode(ak.Pong(ping.id))])

    def _on_garbage(self, routing_id: bytes, why: str, id: int | None) -> None:
        if not self._count_bad(routing_id, why) and id is not None:
            self._outbox.send_raw(routing_id, [error_frame(id, BadRequest(why))])

    def _count_bad(self, routing_id: bytes, why: str) -> bool:
        """Whether the connection was cut for it."""
        self._reader.enough()
        if not self._strikes.strike(routing_id, why):
            return False
        peer = self._peers.get(routing_id)
        if peer is not None:
            self._outbox.lost += 1
            self._lose(peer)
        return True

    # -- losing -------------------------------------------------------------------------------------------------------

    def _on_keys(self) -> None:
        """Keys came or went: whoever is nobody any more goes, with what runs for them."""
        for peer in self.peers:
            if peer.entry is not None and self.identity(peer) is None:
                self._put_out(peer)

    def _put_out(self, peer: Peer) -> None:
        log.warning("inbox.put_out", peer=peer.instance, why="its key is not known any more")
        self._outbox.lost += 1
        self._lose(peer)
        self._endpoints.door.put_out(peer.entry)  # type: ignore[union-attr]

    def _probe(self) -> None:
        if len(self._peers) <= self._connections.open and not self._plain.have_come:
            return  # as many connections as peers: whoever went had said BYE
        self._outbox.probe(self.peers)
        self._drain.note()

    def _lose(self, peer: Peer) -> None:
        self._peers.pop(peer.routing_id, None)
        self._outbox.forget(peer)
        peer.kept.clear()
        for inbound in tuple(peer.in_flight.values()):
            self._abandon(inbound)
        self._drain.note()

    def _abandon(self, inbound: Inbound) -> None:
        if self._answers.finish(inbound):
            self._receiver.abandon(inbound)

    def _is_busy(self) -> bool:
        """Somebody waits for an answer, or will say BYE and has not yet."""
        return self._plain.are_busy or any(
            peer.in_flight or peer.says_bye or peer.kept for peer in self._peers.values()
        )
