"""A real Redis on 127.0.0.1, with what it was told on disk: it can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

#: No server needs longer to come up, in seconds.
PATIENCE_S = 60.0


class RedisServer:
    """`start` after `stop` begins with what its file holds, on the same port."""

    def __init__(self, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = int(sock.getsockname()[1])
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = shutil.which("redis-server") or shutil.which(
            "redis-check-rdb"
        )  # one program, named by what it is called
        assert program is not None
        command = [
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder.name,
            "--appendonly", "yes", "--appendfsync", "always", "--save", "", *self._options,
        ]  # fmt: skip
        with open(Path(self._folder.name) / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, executable=program, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        ends_s = time.monotonic() + PATIENCE_S
        while self.ask("PING") not in (b"+PONG\r\n", b"-NOAUTH Authentication required.\r\n"):
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < ends_s, self.log()
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(PATIENCE_S)

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()

    def ask(self, *words: str) -> bytes:
        """What it answers to one command; empty when it does not."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
                sock.sendall((" ".join(words) + "\r\n").encode())
                return sock.recv(65536)
        except OSError:
            return b""

    def log(self) -> str:
        return (Path(self._folder.name) / "log").read_text()


def needs_redis() -> None:
    """Skip where there is no Redis or no client; in CI both have to be there."""
    try:
        import redis  # noqa: F401
    except ImportError:
        why = "the package redis is not installed"
    else:
        if shutil.which("redis-server") or shutil.which("redis-check-rdb"):
            return
        why = "there is no redis-server (Debian: redis-tools)"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
