"""One of two processes on a listener stops accepting: it keeps the connections that it has, and closes as if nothing had been."""

from __future__ import annotations

import socket

import zmq

from agentkit.transport.adopt import bind_adopted
from agentkit.transport.lookaway import look_away
from tests.agentkit.support import PATIENCE_S


def opened() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setblocking(False)
    return listener


def heard(server: zmq.Socket[bytes], within_s: float = PATIENCE_S) -> bytes | None:
    if not server.poll(int(within_s * 1000)):
        return None
    name, _, word = server.recv_multipart()
    server.send_multipart([name, b"", word])
    return bytes(word)


def test_who_looks_away_keeps_its_connections_takes_no_new_one_and_closes_in_peace() -> None:
    with opened() as listener, zmq.Context() as old, zmq.Context() as new, zmq.Context() as outside:
        leaving, taking = old.socket(zmq.ROUTER), new.socket(zmq.ROUTER)
        clients = [outside.socket(zmq.REQ) for _ in range(21)]
        for sock in (leaving, taking, *clients):
            sock.linger = 0
            sock.rcvtimeo = int(PATIENCE_S * 1000)
        bind_adopted(leaving, listener)
        first, *others = clients
        first.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        first.send(b"before")
        assert heard(leaving) == b"before"
        first.recv()
        assert look_away(listener)
        bind_adopted(taking, listener)
        for n, client in enumerate(others):
            client.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
            client.send(b"%d" % n)
        assert {heard(taking) for _ in others} == {b"%d" % n for n in range(len(others))}
        assert heard(leaving, 0.0) is None
        first.send(b"still there")
        assert heard(leaving) == b"still there"
        for sock in (leaving, taking, *clients):
            sock.close()


def test_a_listener_that_nobody_accepts_on_is_nothing_to_look_away_from() -> None:
    with opened() as listener:
        assert not look_away(listener)
