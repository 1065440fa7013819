"""The sending half of an inbox: answers that share a frame, peers that read slowly, peers that have gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import zmq

from agentkit.clock import now_s
from agentkit.observe.log import get_logger
from agentkit.transport import frames
from agentkit.transport.batch import Batch, Part, frames_of, messages
from agentkit.transport.peer import Peer
from agentkit.wire import codec, values
from agentkit.wire import envelope as ak
from agentkit.wire.flat import Buffer

log = get_logger("agentkit.inbox")

#: What is kept for a peer whose queue is full. Beyond it the peer counts as lost: when nothing of it has moved for so many
#: seconds, or when it is so much.
MAX_BACKLOG_BYTES: Final = 64 * 1024 * 1024
STALLED_S: Final = 1.0
MAX_BURST_BYTES: Final = 256 * 1024 * 1024
#: libzmq's queue counts messages (1,000), not bytes. Of messages from this size on it gets more only while it holds less than so
#: much of them; without that a caller that never read cost an agent 514 MB with answers of 0.5 MB, now 275.
LARGE_BYTES: Final = frames.COPY_BELOW_BYTES
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
#: Pause before a full queue is tried again, in seconds: first, and at most. Doubled while nothing of it can go.
BACKLOG_RETRY_S: Final = (0.005, 0.5)


class Outbox:
    """Sends on one ROUTER, never waits. Belongs to the running loop and to the inbox that owns the socket."""

    def __init__(self, sock: zmq.Socket[Any], poke: Callable[[], None], on_lost: Callable[[Peer], None]) -> None:
        """`poke`: the reader's, after every operation. `on_lost`: a peer can't be reached any more, or reads too slowly."""
        self.lost = 0  #: peers that went without a word
        self.pack = values.Packer().pack
        self._sock = sock
        self._poke = poke
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._batch: Batch[Peer] = Batch(self._send_parts)
        self._slow: dict[bytes, Peer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = BACKLOG_RETRY_S[0]

    def answer(self, peer: Peer, part: Part) -> None:
        """Send `part`, together with what else this turn of the loop sends to `peer`."""
        if peer.in_flight or self._batch:
            self._batch.add(peer, part)
        else:  # nobody to share the way with: a caller that waits for this one answer gets it at once
            self.send(peer, frames_of(part, self.pack))

    def add(self, peer: Peer, part: Part) -> None:
        """Send `part` at the end of this turn, in the order of `answer` and `add`."""
        self._batch.add(peer, part)

    def send(self, peer: Peer, message: Sequence[Buffer]) -> None:
        """Send `message` now, or keep it while the peer's queue is full."""
        size = sum(map(len, message))
        if peer.backlog or (size >= LARGE_BYTES and self._holds_enough(peer)):
            self._keep(peer, message, size)
            return
        try:
            if size < LARGE_BYTES:
                frames.send_routed(self._sock, peer.routing_id, message)
            else:
                peer.held.append((frames.send_routed_watched(self._sock, peer.routing_id, message), size))
        except zmq.Again:
            self._keep(peer, message, size)
        except zmq.ZMQError as exc:
            if self._sock.closed:
                return  # a handler that outlived its agent
            if exc.errno != zmq.EHOSTUNREACH:
                raise
            self._lose(peer)
        self._poke()

    def send_raw(self, routing_id: bytes, message: Sequence[Buffer]) -> None:
        """To somebody who has no entry: if the queue is full or they are gone, so be it."""
        try:
            frames.send_routed(self._sock, routing_id, message)
        except zmq.ZMQError:
            self.lost += 1
        self._poke()

    def probe(self, peers: Iterable[Peer]) -> None:
        """Find out who of `peers` has gone: a ROUTER is not told whose connection went, but can't send to them any more."""
        ping = [codec.encode(ak.Ping(0))]
        for peer in peers:
            if peer.backlog:  # a backlog is tried again and again anyway
                continue
            try:
                frames.send_routed(self._sock, peer.routing_id, ping)
            except zmq.Again:
                pass  # it reads nothing now, but it is there; keeping a PING for it would only pile them up
            except zmq.ZMQError:
                self._lose(peer)
        self._poke()

    def forget(self, peer: Peer) -> None:
        """It has gone: nothing is kept for it any more."""
        peer.backlog.clear()
        peer.held.clear()
        self._slow.pop(peer.routing_id, None)

    def close(self) -> None:
        """Send what waits for the end of the turn; what is kept for slow peers is dropped."""
        self._batch.flush()
        if self._timer is not None:
            self._timer.cancel()

    def _send_parts(self, peer: Peer, parts: list[Part]) -> None:
        for _, message in messages(parts, self.pack, may_batch=peer.may_batch):
            self.send(peer, message)

    def _lose(self, peer: Peer) -> None:
        self.lost += 1
        self._on_lost(peer)

    @staticmethod
    def _holds_enough(peer: Peer) -> bool:
        """Whether libzmq has not yet got rid of the large messages that it was given for `peer`."""
        held = peer.held
        while held and held[0][0].done:
            held.popleft()
        return sum(size for _, size in held) >= MAX_HELD_BYTES

    def _keep(self, peer: Peer, message: Sequence[Buffer], size: int) -> None:
        if not peer.backlog:
            peer.moved_s = now_s()
        peer.backlog.append(message)
        peer.backlog_bytes += size
        self._slow[peer.routing_id] = peer
        if not self._give_up(peer) and self._timer is None:
            self._timer = self._loop.call_later(self._pause_s, self._send_backlogs)

    def _give_up(self, peer: Peer) -> bool:
        """Whether too much is kept for `peer`, which is lost then."""
        waiting_bytes = peer.backlog_bytes
        has_stalled = waiting_bytes > MAX_BACKLOG_BYTES and now_s() - peer.moved_s > STALLED_S
        if not has_stalled and waiting_bytes <= MAX_BURST_BYTES:
            return False
        log.warning("inbox.peer_too_slow", peer=peer.instance, waiting_bytes=waiting_bytes)
        self._lose(peer)
        return True

    def _send_backlogs(self) -> None:
        slow, self._slow = self._slow, {}
        has_moved = False
        for peer in slow.values():
            waiting, moved_s = list(peer.backlog), peer.moved_s
            peer.backlog.clear()
            peer.backlog_bytes = 0
            for message in waiting:
                self.send(peer, message)
            if len(peer.backlog) < len(waiting):
                has_moved = True
            else:
                peer.moved_s = moved_s
                self._give_up(peer)  # there may be no next answer that would ask
        # Somebody who is stopped must not cost 200 wake-ups a second until it is killed
        self._pause_s = BACKLOG_RETRY_S[0] if has_moved else min(self._pause_s * 2, BACKLOG_RETRY_S[1])
        self._timer = self._loop.call_later(self._pause_s, self._send_backlogs) if self._slow else None
