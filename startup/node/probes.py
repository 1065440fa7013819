"""Asking those who can't tell: programs that do not notify, and externals. Only while somebody waits for the answer."""

from __future__ import annotations

import asyncio
import re
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

#: How often a log is looked at while its program comes up, in seconds.
LOG_INTERVAL_S: Final = 0.1
#: Most of a log that is read in one look, and of a line that is kept for the next, in bytes.
_LOOK_BYTES: Final = 1024 * 1024
_LINE_BYTES: Final = 16 * 1024


async def tcp_open(host: str, port: int, timeout_s: float) -> bool:
    """Whether somebody accepts connections there; never raises for what the network does."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


async def http_ok(url: str, timeout_s: float) -> bool:
    """Whether a GET is answered with a status below 400; never raises for what the network or the other side does."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    host = parts.hostname or ""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\nConnection: close\r\nAccept: */*\r\n\r\n"
    )
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=ssl.create_default_context() if secure else None
            )
            writer.write(request.encode())
            status = await reader.readline()
    except (OSError, TimeoutError, ValueError):  # ValueError: a line without end
        return False
    finally:
        if writer is not None:
            writer.close()
    found = re.match(rb"HTTP/1\.[01] (\d{3})\b", status)
    return found is not None and int(found[1]) < 400


async def log_matches(path: Path | str, pattern: str, *, start: int) -> str:
    """Wait until a line of the log after byte `start` matches; returns the line. Goes on for ever: cancel it.

    `start` is the log's size before the fork (`log_size`), so that an earlier life's line does not count."""
    wanted = re.compile(pattern)
    rest = b""
    while True:
        size = log_size(path)
        if size < start:  # rotated
            start, rest = 0, b""
        if size > start:
            data = _read(path, start)
            start += len(data)
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-_LINE_BYTES:]
            for line in (*lines, rest):  # a prompt without a newline may be the sign, too
                text = line.decode("utf-8", "replace")
                if wanted.search(text):
                    return text
        await asyncio.sleep(LOG_INTERVAL_S)


def _read(path: Path | str, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(_LOOK_BYTES)


def log_size(path: Path | str) -> int:
    """0 when there is none yet."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
