"""The health endpoints over real sockets: what they answer, what clients can't do to them, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkit.health import http
from agentkit.health.checks import CheckPolicy, Health, HealthBoard, Verdict
from agentkit.health.http import HealthReport, HttpServer, application, serve

READY = HealthReport(
    name="Echo", instance="Echo#1", machine="pc2", incarnation=7, phase="ready", started=True, ready=True, now_s=100.0,
    uptime_s=50.0, loop_lag_s=0.001, in_flight=3, last_progress_age_s=0.5, memory_mb=4.25,
)  # fmt: skip
STARTING = replace(READY, phase="starting", started=False, ready=False)
FAILING = Verdict(Health.FAILING, ("check model failed 3 times in a row: gone",))
DEGRADED = Verdict(Health.DEGRADED, ("A stopped by operator",))


@dataclass
class View:
    told: HealthReport = READY

    def report(self) -> HealthReport:
        return self.told

    def metrics(self) -> bytes:
        return b"agent_x 1.0\n"


@dataclass
class Running:
    view: View
    server: HttpServer
    listener: socket.socket

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listener.getsockname()
        return host, port

    async def raw(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(request)
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        answer = await self.raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *headers = head.decode().split("\r\n")
        return int(status.split()[1]), dict(line.split(": ", 1) for line in headers), body

    async def json(self, path: str) -> tuple[int, dict[str, Any]]:
        status, _, body = await self.get(path)
        return status, json.loads(body)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as sock:
        yield sock


@pytest.fixture
async def running(listener: socket.socket) -> AsyncIterator[Running]:
    view = View()
    server = await serve(application(view), listener)
    yield Running(view, server, listener)
    await server.close()


async def until_connections(running: Running, count: int) -> None:
    async with asyncio.timeout(10):
        while running.server.connections != count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("report", "statuses"),
    [
        (READY, {"live": 200, "startup": 200, "ready": 200, "health": 200}),
        (replace(READY, verdict=DEGRADED), {"live": 200, "startup": 200, "ready": 200, "health": 200}),
        (replace(READY, verdict=FAILING), {"live": 200, "startup": 200, "ready": 503, "health": 503}),
        (replace(READY, asleep="light"), {"live": 200, "startup": 200, "ready": 200, "health": 200}),
        (STARTING, {"live": 200, "startup": 503, "ready": 503, "health": 200}),
        (replace(READY, phase="draining"), {"live": 200, "startup": 200, "ready": 503, "health": 200}),
        (replace(READY, phase="stopping"), {"live": 200, "startup": 200, "ready": 503, "health": 200}),
        (replace(READY, ready=False), {"live": 200, "startup": 200, "ready": 503, "health": 200}),
    ],
    ids=["ready", "degraded", "failing", "asleep", "starting", "draining", "stopping", "not ready"],
)
async def test_each_state_has_its_status_codes(
    running: Running, report: HealthReport, statuses: dict[str, int]
) -> None:
    running.view.told = report
    assert {path: (await running.get(f"/{path}"))[0] for path in statuses} == statuses


async def test_ready_says_why_not(running: Running) -> None:
    running.view.told = replace(READY, verdict=FAILING)
    assert await running.json("/ready") == (
        503,
        {"ready": False, "phase": "ready", "status": "failing", "reasons": list(FAILING.reasons)},
    )


async def test_health_tells_everything_with_the_verdict_of_each_check(running: Running) -> None:
    board = HealthBoard(CheckPolicy(retries=3))
    board.declare(["model", "disk", "later"])
    board.passed("model", at_s=99.0, took_s=0.25)
    board.failed("disk", "full", at_s=98.0, took_s=0.5)
    running.view.told = replace(READY, verdict=board.verdict, checks=board.checks, details={"queue": 3})
    status, body = await running.json("/health")
    assert status == 200
    assert body.pop("checks") == {
        "model": {"status": "passed", "reason": "", "failures": 0, "age_s": 1.0, "took_s": 0.25},
        "disk": {"status": "failed", "reason": "full", "failures": 1, "age_s": 2.0, "took_s": 0.5},
        "later": {"status": "not run", "reason": "", "failures": 0, "age_s": None, "took_s": 0.0},
    }
    assert body == {
        "status": "degraded", "reasons": ["check disk failed: full"], "name": "Echo", "instance": "Echo#1", "machine": "pc2",
        "incarnation": 7, "phase": "ready", "asleep": None, "started": True, "ready": True, "uptime_s": 50.0,
        "loop_lag_s": 0.001, "in_flight": 3, "last_progress_age_s": 0.5, "memory_mb": 4.25, "details": {"queue": 3},
    }  # fmt: skip


async def test_metrics_are_text_that_prometheus_takes(running: Running) -> None:
    status, headers, body = await running.get("/metrics")
    assert (status, body) == (200, b"agent_x 1.0\n")
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_answers_carry_the_date_of_their_own_second_and_close(running: Running) -> None:
    _, headers, _ = await running.get("/live")
    assert headers["date"].endswith(" GMT")
    assert headers["connection"] == "close"
    assert "server" not in headers


async def test_other_paths_and_methods_are_refused_and_head_has_no_body(running: Running) -> None:
    assert (await running.get("/"))[0] == 404
    assert (await running.get("/live", "POST"))[0] == 405
    status, _, body = await running.get("/live", "HEAD")
    assert (status, body) == (200, b"")


async def test_an_error_of_the_agent_is_a_500_and_the_next_request_is_served(running: Running) -> None:
    running.view.told = None  # type: ignore[assignment]
    assert (await running.get("/health"))[0] == 500
    running.view.told = READY
    assert (await running.get("/health"))[0] == 200


STARTS = [b"", b"GET ", b"GET /live HTTP/1.1\r\n", b"CONNECT a:1 HTTP/1.1\r\n"]


@given(
    garbage=st.binary(min_size=1, max_size=300),
    prefix=st.sampled_from(STARTS),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_garbage_gets_an_answer_or_the_door_and_a_good_probe_is_served(
    running: Running, garbage: bytes, prefix: bytes
) -> None:
    answer = await running.raw(prefix + garbage + b"\r\n\r\n\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert (await running.get("/live"))[0] == 200


async def test_a_request_that_never_ends_is_cut_at_the_limit(running: Running) -> None:
    head = b"GET /live HTTP/1.1\r\n"
    assert await running.raw(head + b"X-Y: z\r\n" * (http.MAX_REQUEST_BYTES // 8)) == b""
    body = b"POST /live HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n" + b"x" * http.MAX_REQUEST_BYTES
    assert (await running.raw(body)).split(b"\r\n")[0] in (b"", b"HTTP/1.1 405 Method Not Allowed")
    await until_connections(running, 0)


async def test_a_client_that_says_nothing_is_cut_when_its_time_is_over(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECTION_S", 0.05)
    assert await running.raw(b"") == b""
    assert await running.raw(b"GET /live HTTP/1.1\r\nX-") == b""
    await until_connections(running, 0)


async def test_silent_clients_make_room_for_a_probe_oldest_first(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 8)
    silent = [await asyncio.open_connection(*running.address) for _ in range(8)]
    await until_connections(running, 8)
    assert (await running.get("/live"))[0] == 200
    assert await asyncio.wait_for(silent[0][0].read(), 10) == b""
    await until_connections(running, 7)
    assert not silent[1][0].at_eof()
    for _, writer in silent:
        writer.close()


async def test_as_many_probes_as_connections_at_once_are_all_answered(running: Running) -> None:
    answers = await asyncio.gather(*(running.get("/ready") for _ in range(http.MAX_CONNECTIONS)))
    assert [status for status, _, _ in answers] == [200] * http.MAX_CONNECTIONS


async def test_close_leaves_nothing_behind_and_the_listener_open(listener: socket.socket) -> None:
    server = await serve(application(View()), listener)
    silent, writer = await asyncio.open_connection(*listener.getsockname())
    begun, begun_writer = await asyncio.open_connection(*listener.getsockname())
    begun_writer.write(b"GET /live HTTP/1.1\r\n")
    async with asyncio.timeout(10):
        while server.connections < 2:
            await asyncio.sleep(0.001)
        await server.close()
        for reader in (silent, begun):
            with contextlib.suppress(ConnectionResetError):  # what was not read yet is answered with a reset
                assert await reader.read() == b""
    assert server.connections == 0
    writer.close()
    begun_writer.close()
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    late = asyncio.create_task(asyncio.open_connection(*listener.getsockname()))
    accepted, _ = await asyncio.wait_for(loop.sock_accept(listener), 10)
    accepted.close()
    (await late)[1].close()


async def test_close_waits_for_an_answer_under_way_and_cancels_one_that_hangs(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CLOSE_S", 0.05)
    begun, cancelled, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    for hangs in (False, True):
        server = await serve(app, listener)  # type: ignore[arg-type]
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.wait_for(begun.wait(), 10)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        if not hangs:
            go_on.set()
        await asyncio.wait_for(closing, 10)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 204") is not hangs
        writer.close()
        begun.clear()
        go_on.clear()
    assert cancelled.is_set()


async def test_two_servers_share_a_listener_and_one_may_go(listener: socket.socket) -> None:
    first = Running(View(), await serve(application(View()), listener), listener)
    second = await serve(application(View()), listener)
    await second.close()
    assert [(await first.get("/live"))[0] for _ in range(20)] == [200] * 20
    await first.server.close()


IDLE = """
import asyncio, socket, sys, uvloop
from agentkit.health.http import application, serve
from agentkit.observe import process

async def main():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = await serve(application(None), sock)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(b"GET /live HTTP/1.1\\r\\n\\r\\n")
        assert b"200 OK" in await reader.read()
        writer.close()
        before = process.switches().voluntary
        await asyncio.sleep(float(sys.argv[1]))
        print(process.switches().voluntary - before)
        await server.close()
uvloop.run(main())
"""


@pytest.mark.process
@pytest.mark.slow
def test_an_idle_server_does_not_wake_up() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IDLE, "3"], check=True, capture_output=True, text=True, cwd=os.getcwd()
    )
    # uvicorn.Server: 30. The end of the measuring sleep is one, closing the probe's connection another.
    assert int(done.stdout) <= 3
