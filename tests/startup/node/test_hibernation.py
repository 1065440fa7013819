"""The sockets of agents that sleep: a knock is told once and never accepted, health is answered, and all is let go of before a fork."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from startup.node.hibernation.health_answers import COUNTERS_FILE, MAX_COUNTERS_BYTES, told
from startup.node.hibernation.health_server import MAX_CONNECTIONS, MAX_REQUEST_BYTES, Answer
from startup.node.hibernation.socket_activation import SocketActivation
from startup.node.listeners import open_listener
from startup.plan import process as proc
from startup.plan import sleep_transitions, transitions
from startup.plan.sleep_transitions import Wish
from tests.startup.plan.builders import aid
from tests.startup.plan.test_process import running

A = aid("A")


class Bed:
    """One sleeper on real sockets."""

    def __init__(self, stack: ExitStack) -> None:
        self.inbox = stack.enter_context(open_listener("127.0.0.1", 0))
        self.http = stack.enter_context(open_listener("127.0.0.1", 0))
        self.knocks: list[str] = []
        self.activation = SocketActivation(on_knock=lambda who: self.knocks.append(str(who)), answer=self.answer)
        stack.callback(self.activation.close)

    @property
    def fds(self) -> dict[str, int]:
        return {"inbox-local": self.inbox.fileno(), "http": self.http.fileno()}

    @staticmethod
    def answer(id: object, path: str) -> Answer:
        return Answer(200 if path == "/live" else 404, "text/plain", f"{id} {path}".encode())

    async def ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self.http.getsockname())
        writer.write(request)
        try:
            async with asyncio.timeout(30):
                return await reader.read()
        finally:
            writer.close()


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    with ExitStack() as stack:
        yield Bed(stack)


async def knocked(bed: Bed, times: int) -> None:
    async with asyncio.timeout(30):
        while len(bed.knocks) < times:
            await asyncio.sleep(0.001)


async def test_a_knock_is_told_once_stays_in_the_queue_and_is_seen_again_by_who_watches_next(bed: Bed) -> None:
    bed.activation.watch(A, bed.fds)
    first = socket.create_connection(bed.inbox.getsockname())
    second = socket.create_connection(bed.inbox.getsockname())
    await knocked(bed, 1)
    await asyncio.sleep(0.02)
    assert bed.knocks == ["m/A"]
    bed.activation.release(A)
    bed.activation.watch(A, bed.fds)  # nobody has taken them: the next to watch sees them at once
    await knocked(bed, 2)
    for sock in (first, second):
        accepted, _ = bed.inbox.accept()
        accepted.close()
        sock.close()


async def test_what_is_roused_is_neither_watched_nor_answered_and_that_may_be_said_twice(bed: Bed) -> None:
    bed.activation.watch(A, bed.fds)
    assert A in bed.activation
    bed.activation.release(A)
    bed.activation.release(A)
    assert A not in bed.activation
    with socket.create_connection(bed.inbox.getsockname()), socket.create_connection(bed.http.getsockname()) as sock:
        sock.sendall(b"GET /live HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.02)
        assert bed.knocks == []
        accepted, _ = bed.http.accept()  # it waits for whoever serves next
        accepted.close()


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n", b"200 OK", b"m/A /live"),
        (b"GET /live?x=1 HTTP/1.0\r\n\r\n", b"200 OK", b"m/A /live"),
        (b"HEAD /live HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"GET /no HTTP/1.1\r\n\r\n", b"404 Not Found", b"m/A /no"),
        (b"PUT /live HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", b"GET only\n"),
        (b"\xff\xfe\r\n\r\n", b"400 Bad Request", b"this is no HTTP request\n"),
    ],
)
async def test_health_is_answered_once_and_the_connection_closed(
    bed: Bed, request_: bytes, status: bytes, body: bytes
) -> None:
    bed.activation.watch(A, bed.fds)
    head, _, found = (await bed.ask(request_)).partition(b"\r\n\r\n")
    assert status in head.split(b"\r\n")[0]
    assert b"connection: close" in head
    assert found == body
    assert bed.knocks == []


async def test_requests_without_end_and_connections_without_number_are_bounded(bed: Bed) -> None:
    bed.activation.watch(A, bed.fds)
    assert await bed.ask(b"GET /" + b"x" * (MAX_REQUEST_BYTES + 1)) == b""
    waiting = [await asyncio.open_connection(*bed.http.getsockname()) for _ in range(MAX_CONNECTIONS + 5)]
    async with asyncio.timeout(30):
        assert [await reader.read() for reader, _ in waiting[:5]] == [b""] * 5
        assert b"200 OK" in await bed.ask(b"GET /live HTTP/1.1\r\n\r\n")
    for _, writer in waiting:
        writer.close()


def test_what_an_agent_left_is_shown_and_nothing_that_it_only_points_at(tmp_path: Path) -> None:
    asleep = sleep_transitions.asks(transitions.ready(running(), 1.0), Wish(memory_mb=8.0), 2.0, 3.0)
    assert isinstance(asleep, proc.Process)
    left = tmp_path / COUNTERS_FILE
    left.write_bytes(b"agent_requests_total 3\n")
    text = told(asleep, "/metrics", tmp_path).body
    assert text.startswith(b"agent_requests_total 3\n")
    assert b'agent_hibernated{agent="A"} 1.0' in text
    for path in ("/live", "/ready", "/startup", "/health"):
        answer = told(asleep, path, tmp_path)
        assert (answer.status, b"hibernated" in answer.body) == (200, True)
    assert told(asleep, "/other", tmp_path).status == 404
    assert told(None, "/live", tmp_path).status == 503
    left.write_bytes(b"x" * (MAX_COUNTERS_BYTES + 1))
    assert b"xx" not in told(asleep, "/metrics", tmp_path).body
    left.unlink()
    (tmp_path / "secret").write_text("secret")
    left.symlink_to(tmp_path / "secret")
    assert b"secret" not in told(asleep, "/metrics", tmp_path).body
