from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from startup.node.probes import http_ok, log_matches, log_size, tcp_open
from tests.startup.node.conftest import PATIENCE_S


@asynccontextmanager
async def serving(answer: bytes | None) -> AsyncIterator[int]:
    """A server that answers every connection with `answer`, or never (None)."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is not None:
            await reader.readline()
            writer.write(answer)
            await writer.drain()
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_tcp_is_open_where_somebody_listens_and_nowhere_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert await tcp_open("127.0.0.1", port, 5)
    assert not await tcp_open("127.0.0.1", port, 5)
    assert not await tcp_open("no such host", port, 5)


@pytest.mark.parametrize(
    ("answer", "is_ok"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.0 302 Found\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"SSH-2.0-x\r\n", False),
        (b"", False),
        (b"x" * 1_000_000, False),
    ],
)
async def test_http_is_ok_below_400(answer: bytes, is_ok: bool) -> None:
    async with serving(answer) as port:
        assert await http_ok(f"http://127.0.0.1:{port}/ready?x=1", 5) is is_ok


async def test_http_that_never_answers_is_not_waited_for() -> None:
    async with serving(None) as port:
        assert not await http_ok(f"http://127.0.0.1:{port}", 0.05)


async def test_log_line_is_found_when_it_comes_but_not_one_of_an_earlier_life(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("ready on 1\n")
    watching = asyncio.create_task(log_matches(log, r"ready on \d+", start=log_size(log)))
    with open(log, "a") as file:
        print("starting", file=file, flush=True)
        await asyncio.sleep(0.15)
        assert not watching.done()
        file.write("ready ")
        file.flush()
        await asyncio.sleep(0.15)
        print("on 2", file=file, flush=True)
    assert await asyncio.wait_for(watching, PATIENCE_S) == "ready on 2"


async def test_log_is_read_from_its_beginning_after_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("x" * 1000)
    watching = asyncio.create_task(log_matches(log, "ready", start=log_size(log)))
    await asyncio.sleep(0)
    log.write_text("ready\n")
    assert await asyncio.wait_for(watching, PATIENCE_S) == "ready"
