"""The pool of raw sockets: real sockets, threads, and a peer that answers, keeps silent, or goes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import zmq

from agentkit import BaseAgent, ConfigError, PoolClosed, PoolFull, SocketPool, rpc
from agentkit.testing import running
from agentkit.transport import context, pool
from tests.agentkit.support import PATIENCE_S, eventually


class Peer:
    """Answers every request with itself, except b"silence"; counts connections."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self.router = self._context.socket(zmq.ROUTER)
        self.endpoint = f"tcp://127.0.0.1:{self.router.bind_to_random_port('tcp://127.0.0.1')}"
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.bind("inproc://stop")
        self._thread = threading.Thread(target=self._serve)
        self.callers: set[bytes] = set()
        self.heard: list[bytes] = []
        self._thread.start()

    def _serve(self) -> None:
        stop = self._context.socket(zmq.PAIR)
        stop.connect("inproc://stop")
        poller = zmq.Poller()
        poller.register(stop, zmq.POLLIN)
        poller.register(self.router, zmq.POLLIN)
        while stop not in dict(poller.poll()):
            id, *empty, body = self.router.recv_multipart()
            self.callers.add(id)
            self.heard.append(body)
            if body != b"silence":
                self.router.send_multipart([id, *empty, body])
        stop.close()

    def close(self) -> None:
        self._stop.send(b"")
        self._thread.join(PATIENCE_S)
        self._context.destroy(linger=0)


@pytest.fixture
def peer() -> Iterator[Peer]:
    started = Peer()
    yield started
    started.close()


@pytest.fixture
def sockets() -> Iterator[SocketPool]:
    made = SocketPool(limit=4)
    yield made
    made.close()
    assert made.statistics().leased == 0


def ask(sockets: SocketPool, endpoint: str, body: bytes = b"hello", **options: Any) -> bytes:
    with sockets.lease(zmq.REQ, endpoint, **options) as sock:
        sock.send(body)
        return sock.recv()


def test_a_socket_is_used_again(peer: Peer, sockets: SocketPool) -> None:
    assert [ask(sockets, peer.endpoint, b"%d" % n) for n in range(20)] == [b"%d" % n for n in range(20)]
    assert len(peer.callers) == 1
    found = sockets.statistics()
    assert (found.opened_total, found.reused_total, found.idle, found.leased, found.discarded_total) == (1, 19, 1, 0, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.idle = 3  # type: ignore[misc]


def test_all_sockets_live_in_the_one_context_of_the_process(peer: Peer, sockets: SocketPool) -> None:
    with sockets.lease(zmq.REQ, peer.endpoint) as sock:
        assert sock.context is context.context()


def receive_nothing(sock: zmq.Socket[bytes]) -> None:
    sock.send(b"silence")


def raise_after_asking(sock: zmq.Socket[bytes]) -> None:
    sock.send(b"hello")
    raise RuntimeError("the author's own")


def raise_before_asking(sock: zmq.Socket[bytes]) -> None:
    raise RuntimeError("the author's own")


def wait_for_silence(sock: zmq.Socket[bytes]) -> None:
    sock.send(b"silence")
    sock.rcvtimeo = 20
    sock.recv()


def send_half(sock: zmq.Socket[bytes]) -> None:
    sock.send(b"half", zmq.SNDMORE)


def close(sock: zmq.Socket[bytes]) -> None:
    sock.close()


def connect_elsewhere(sock: zmq.Socket[bytes]) -> None:
    sock.connect("tcp://127.0.0.1:1")


def change(sock: zmq.Socket[bytes]) -> None:
    sock.setsockopt(zmq.REQ_RELAXED, 1)


@pytest.mark.parametrize(
    ("misuse", "raises"),
    [
        (receive_nothing, None), (raise_after_asking, RuntimeError), (raise_before_asking, RuntimeError), (wait_for_silence, zmq.Again),
        (send_half, None), (close, None), (connect_elsewhere, None), (change, None),
    ],
)  # fmt: skip
def test_a_socket_that_failed_or_is_out_of_step_is_not_lent_again(
    peer: Peer, sockets: SocketPool, misuse: Callable[[Any], None], raises: type[Exception] | None
) -> None:
    ask(sockets, peer.endpoint)
    with pytest.raises(raises) if raises else contextlib.nullcontext(), sockets.lease(zmq.REQ, peer.endpoint) as sock:
        misuse(sock)
    assert sock.closed
    found = sockets.statistics()
    assert (found.discarded_total, found.idle, found.leased) == (1, 0, 0)
    assert ask(sockets, peer.endpoint, b"again") == b"again"
    assert sockets.statistics().opened_total == 2


def test_half_an_answer_left_unread_is_not_lent_again(sockets: SocketPool) -> None:
    with zmq.Context() as own, own.socket(zmq.REP) as rep:
        port = rep.bind_to_random_port("tcp://127.0.0.1")
        with sockets.lease(zmq.REQ, f"tcp://127.0.0.1:{port}") as sock:
            sock.send(b"x")
            rep.recv()
            rep.send_multipart([b"one", b"two"])
            assert sock.recv() == b"one"
        assert sock.closed


def test_timeouts_set_in_a_block_end_with_it(peer: Peer, sockets: SocketPool) -> None:
    with sockets.lease(zmq.REQ, peer.endpoint, timeout=2.0) as sock:
        assert (sock.rcvtimeo, sock.sndtimeo) == (2000, 2000)
        sock.rcvtimeo = 1
    with sockets.lease(zmq.REQ, peer.endpoint) as again:
        assert again is sock
        assert again.rcvtimeo == 5000


def test_a_dealer_must_have_read_as_many_as_it_sent(peer: Peer, sockets: SocketPool) -> None:
    with sockets.lease(zmq.DEALER, peer.endpoint) as first:
        first.send(b"one")
        assert first.recv() == b"one"
    with sockets.lease(zmq.DEALER, peer.endpoint) as again:
        assert again is first
        again.send(b"two")
    with sockets.lease(zmq.DEALER, peer.endpoint) as other:
        assert other is not first
        other.send_multipart([b"", b"three"])
        assert other.recv_multipart() == [b"", b"three"]


def test_what_was_pushed_leaves_though_the_pool_is_closed(sockets: SocketPool) -> None:
    with zmq.Context() as own, own.socket(zmq.PULL) as pull:
        port = pull.bind_to_random_port("tcp://127.0.0.1")
        for n in range(3):
            with sockets.lease(zmq.PUSH, f"tcp://127.0.0.1:{port}") as sock:
                sock.send(b"%d" % n)
        assert sockets.statistics().reused_total == 2
        sockets.close()
        pull.rcvtimeo = int(PATIENCE_S * 1000)
        assert [pull.recv() for _ in range(3)] == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (zmq.REP, "it answers others"), (zmq.ROUTER, "it answers others"), (zmq.PUB, "first messages"), (zmq.XPUB, "self.publish"),
        (zmq.SUB, "subscriptions"), (zmq.XSUB, "@subscribe"), (zmq.PULL, "nobody would read them"), (zmq.PAIR, "exactly one"),
        (zmq.STREAM, "depend on one another"), (99, "REQ, DEALER or PUSH"),
    ],
)  # fmt: skip
def test_what_can_not_be_shared_is_refused_with_the_reason(sockets: SocketPool, kind: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason), sockets.lease(kind, "tcp://127.0.0.1:1"):
        pass
    assert sockets.statistics().opened_total == 0


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5555", "tcp://", "nonsense://x", ""])
def test_an_endpoint_that_is_none_is_told(sockets: SocketPool, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="want an endpoint"), sockets.lease(zmq.REQ, endpoint):
        pass
    assert sockets.statistics().leased == 0


def test_a_leased_socket_does_not_bind(peer: Peer, sockets: SocketPool) -> None:
    with pytest.raises(ConfigError, match="bind"), sockets.lease(zmq.REQ, peer.endpoint) as sock:
        sock.bind("tcp://127.0.0.1:*")


def test_options_are_set_before_it_connects_and_sockets_with_others_are_not_mixed_up(
    peer: Peer, sockets: SocketPool
) -> None:
    assert ask(sockets, peer.endpoint, options={zmq.ROUTING_ID: b"me"}) == b"hello"
    assert ask(sockets, peer.endpoint) == b"hello"
    assert b"me" in peer.callers
    assert len(peer.callers) == 2


# -- full -------------------------------------------------------------------------------------------------------------


def test_a_full_pool_says_what_is_full_and_what_to_do(peer: Peer) -> None:
    small = SocketPool(limit=1)
    with small.lease(zmq.REQ, peer.endpoint), pytest.raises(PoolFull) as caught:
        ask(small, "tcp://127.0.0.1:7", timeout=0.01)
    assert (caught.value.endpoint, caught.value.limit) == ("tcp://127.0.0.1:7", 1)
    for word in ("tcp://127.0.0.1:7", "all 1", "timeout="):
        assert word in str(caught.value)
    assert small.statistics().refused_total == 1
    small.close()


def test_who_waits_gets_the_socket_that_comes_back(peer: Peer) -> None:
    small = SocketPool(limit=1)
    with ThreadPoolExecutor(1) as thread:
        with small.lease(zmq.REQ, peer.endpoint):
            waiting = thread.submit(ask, small, peer.endpoint)
            while small.statistics().waiting == 0:
                pass
        assert waiting.result(PATIENCE_S) == b"hello"
    assert small.statistics().waiting == 0
    small.close()


def test_an_idle_socket_of_another_endpoint_makes_room(peer: Peer) -> None:
    small, other = SocketPool(limit=1), Peer()
    try:
        for _ in range(2):
            assert ask(small, peer.endpoint, timeout=0.5) == ask(small, other.endpoint, timeout=0.5)
        found = small.statistics()
        assert (found.opened_total, found.expired_total, found.idle) == (4, 3, 1)
    finally:
        small.close()
        other.close()


def test_many_threads_never_share_a_socket_and_never_exceed_the_limit(peer: Peer, sockets: SocketPool) -> None:
    in_use: set[int] = set()
    lock = threading.Lock()

    def work(n: int) -> bool:
        with sockets.lease(zmq.REQ, peer.endpoint, timeout=PATIENCE_S) as sock:
            with lock:
                is_alone = id(sock) not in in_use
                in_use.add(id(sock))
                is_alone = is_alone and len(in_use) <= 4
            sock.send(b"%d" % n)
            is_mine = sock.recv() == b"%d" % n
            with lock:
                in_use.discard(id(sock))
            return is_alone and is_mine

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(400)))
    found = sockets.statistics()
    assert found.opened_total <= 4
    assert found.opened_total + found.reused_total == 400
    assert len(peer.callers) == found.opened_total


async def test_on_the_loop_a_lease_does_not_wait(peer: Peer) -> None:
    small = SocketPool(limit=1)
    with small.lease(zmq.REQ, peer.endpoint), pytest.raises(PoolFull), small.lease(zmq.REQ, peer.endpoint, timeout=60):
        pass
    small.close()


# -- idle -------------------------------------------------------------------------------------------------------------


def test_without_a_loop_what_is_idle_for_long_is_closed_at_the_next_use(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(pool, "now_s", lambda: now[0])
    aging = SocketPool(idle_s=60)
    ask(aging, peer.endpoint)
    now[0] += 59
    ask(aging, peer.endpoint)
    now[0] += 61
    ask(aging, peer.endpoint)
    found = aging.statistics()
    assert (found.opened_total, found.reused_total, found.expired_total) == (2, 1, 1)
    aging.close()


async def test_with_a_loop_one_timer_closes_what_is_idle_and_is_gone_then(peer: Peer) -> None:
    aging = SocketPool(idle_s=0.05, loop=asyncio.get_running_loop())
    await asyncio.to_thread(ask, aging, peer.endpoint)
    await asyncio.to_thread(ask, aging, peer.endpoint)
    await eventually(lambda: aging.statistics().idle == 0)
    assert aging.statistics().expired_total >= 1
    await eventually(lambda: not aging._is_timed and aging._timer is None)
    aging.close()


# -- closing ----------------------------------------------------------------------------------------------------------


def test_a_socket_that_is_in_use_is_closed_by_its_thread_after_the_pool(peer: Peer, sockets: SocketPool) -> None:
    with sockets.lease(zmq.REQ, peer.endpoint) as sock:
        sock.send(b"last")
        sockets.close()
        assert not sock.closed
        assert sock.recv() == b"last"
        with pytest.raises(PoolClosed, match="stops"):
            ask(sockets, peer.endpoint)
    assert sock.closed
    assert sockets.statistics().idle == 0


def test_who_waits_when_the_pool_closes_is_let_go(peer: Peer) -> None:
    small = SocketPool(limit=1)
    with ThreadPoolExecutor(1) as thread, small.lease(zmq.REQ, peer.endpoint):
        waiting = thread.submit(ask, small, peer.endpoint, timeout=60)
        while small.statistics().waiting == 0:
            pass
        small.close()
        with pytest.raises(PoolClosed):
            waiting.result(PATIENCE_S)


class Bridge(BaseAgent):
    """Asks a program that is no agent."""

    @rpc
    def ask(self, endpoint: str, text: str) -> str:
        return ask(self.sockets, endpoint, text.encode()).decode()

    @rpc
    def hold(self, endpoint: str) -> None:
        self.leased = threading.Event()
        self.seen: Any = None
        with self.sockets.lease(zmq.REQ, endpoint, timeout=1.0) as sock:
            self.leased.set()
            try:
                sock.send(b"silence")
                sock.recv()
            except zmq.ZMQError as exc:
                self.seen = exc
                raise


async def test_an_agent_asks_a_raw_peer_from_its_handlers(peer: Peer) -> None:
    async with running(Bridge) as bridge:
        assert await asyncio.gather(
            *(bridge.call("ask", {"endpoint": peer.endpoint, "text": str(n)}) for n in range(20))
        ) == [str(n) for n in range(20)]
        assert bridge.agent.sockets.statistics().opened_total <= 8
        sockets = bridge.agent.sockets
    assert sockets.statistics().idle == 0
    with pytest.raises(PoolClosed):
        ask(sockets, peer.endpoint)


async def test_a_socket_that_a_handler_holds_when_its_agent_stops_is_closed_when_the_handler_ends(peer: Peer) -> None:
    async with running(Bridge, grace_s=0.2) as bridge:
        call = asyncio.ensure_future(bridge.call("hold", {"endpoint": peer.endpoint}))
        await eventually(lambda: getattr(bridge.agent, "leased", None) and bridge.agent.leased.is_set())
        sockets = bridge.agent.sockets
    await asyncio.gather(call, return_exceptions=True)
    await eventually(lambda: sockets.statistics().leased == 0)
    assert sockets.statistics().idle == 0
    assert isinstance(bridge.agent.seen, zmq.ZMQError)
