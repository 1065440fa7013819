"""A line to a server that can be made bad: answers come late. Counts what passes, and how much of it at a time."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

_REQUEST = re.compile(rb"^(GET|PUT|DELETE) (/v1/\S*) HTTP/1.1\r\n", re.MULTILINE)


@dataclass
class Passed:
    """One request."""

    at_s: float
    line: str


@dataclass
class Proxy:
    """Runs on a thread of its own between `start` and `close`."""

    to_port: int
    delay_s: float = 0.0  #: each answer comes so much later
    port: int = 0
    passed: list[Passed] = field(default_factory=list)
    most_at_once: Counter[str] = field(
        default_factory=Counter
    )  #: first word -> requests under way at the same time, at most

    def start(self) -> None:
        ready = threading.Event()
        self._under_way: Counter[str] = Counter()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="proxy")
        self._thread.start()
        ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set_result, None)
        self._thread.join(10)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def seen(self, text: str) -> list[Passed]:
        return [passed for passed in self.passed if text in passed.line]

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._over
        server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.to_port)
            asked: list[str] = []
            try:
                there = asyncio.create_task(self._forth(reader, back_writer, asked))
                back = asyncio.create_task(self._back(back_reader, writer, asked))
                await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
                for half in (there, back):
                    half.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
            finally:
                self._under_way.subtract(asked)
                back_writer.close()
        except (
            OSError,
            asyncio.CancelledError,
        ):  # `close` ends us; a task of asyncio's streams that is cancelled is an error to it
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[str]) -> None:
        while data := await reader.read(65536):
            for method, path in _REQUEST.findall(data):
                self.passed.append(Passed(time.monotonic(), f"{method.decode()} {path.decode()}"))
                asked.append(method.decode())
                self._under_way[method.decode()] += 1
                self.most_at_once[method.decode()] = max(
                    self.most_at_once[method.decode()], self._under_way[method.decode()]
                )
            writer.write(data)
            await writer.drain()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[str]) -> None:
        while data := await reader.read(65536):
            if self.delay_s and data.startswith(b"HTTP/"):
                await asyncio.sleep(self.delay_s)
            if data.startswith(b"HTTP/") and asked:
                self._under_way[asked.pop(0)] -= 1
            writer.write(data)
            await writer.drain()
