"""Real Consul servers on 127.0.0.1: one that forgets everything (`-dev`), or several that elect a leader."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.consul.debian import program

#: No server needs longer to come up, in seconds.
PATIENCE_S = 30.0


class Server:
    """One `consul agent`. `start` after `stop` begins where its folder ends, or with nothing (`-dev`)."""

    def __init__(
        self,
        name: str = "one",
        *,
        settings: Mapping[str, Any] | None = None,
        peers: int = 0,
        join: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.http, self.rpc, self.serf = _free_ports(3)
        self.address = f"127.0.0.1:{self.http}"
        self.token: str | None = None
        self._peers, self._join = peers, join
        self._settings = settings or {}
        self._folder = tempfile.TemporaryDirectory(prefix="consul-")
        self._process: subprocess.Popen[bytes] | None = None

    # -- life

    def start(self, *, wait: bool = True) -> None:
        found = program("consul")
        assert found is not None
        folder = Path(self._folder.name)
        (folder / "settings.json").write_text(json.dumps({"disable_update_check": True, **self._settings}))
        how = ["-dev"]
        if self._peers:
            how = ["-server", f"-bootstrap-expect={self._peers}", f"-data-dir={folder / 'data'}"]
            how += [f"-retry-join={address}" for address in self._join]
        command = [
            found, "agent", *how, "-node", self.name, "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=warn",
            f"-http-port={self.http}", f"-server-port={self.rpc}", f"-serf-lan-port={self.serf}", "-serf-wan-port=-1",
            "-dns-port=-1", "-grpc-port=-1", "-disable-host-node-id", f"-config-file={folder / 'settings.json'}",
        ]  # fmt: skip
        with open(folder / "log", "ab") as log:
            env = {"PATH": os.environ["PATH"], "HOME": self._folder.name, "GOMAXPROCS": "2"}
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        if wait:
            self.wait_leader()
            self.wait_itself()

    def wait_leader(self) -> str:
        """Until there is one; its address."""
        return str(self._wait("/v1/status/leader"))

    def wait_itself(self) -> None:
        """Until the catalog has the server's own node: a leader knows it a moment after its election, and opens no session before."""
        self._wait(f"/v1/catalog/node/{self.name}")

    def _wait(self, path: str) -> Any:
        """Until the server answers with something."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            with suppress(OSError, ValueError):
                if found := self.get(path):
                    return found
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """It dies, without leaving its cluster in good order."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(PATIENCE_S)

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()

    def log(self) -> str:
        return (Path(self._folder.name) / "log").read_text()

    # -- asking it, as anybody might

    def ask(self, method: str, path: str, document: Any = None) -> Any:
        data = None if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
        headers = {"X-Consul-Token": self.token} if self.token else {}
        request = urllib.request.Request(f"http://{self.address}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def get(self, path: str) -> Any:
        return self.ask("GET", path)

    def put(self, path: str, document: Any = None) -> Any:
        return self.ask("PUT", path, document)

    def statuses(self, service: str) -> dict[str, str]:
        """Service id -> its worst status, as everybody sees it."""
        order = ("passing", "warning", "critical")
        return {
            item["Service"]["ID"]: max((check["Status"] for check in item["Checks"]), key=order.index)
            for item in self.get(f"/v1/health/service/{service}")
        }

    def services(self) -> dict[str, Any]:
        return dict(self.get("/v1/agent/services"))


def cluster(size: int = 3) -> list[Server]:
    """Servers that know each other; the first to find two others elects."""
    servers = [Server(f"server{number}", peers=size) for number in range(size)]
    for server in servers:
        server._join = tuple(f"127.0.0.1:{other.serf}" for other in servers if other is not server)
        server._settings = {"performance": {"raft_multiplier": 1}}
        server.start(wait=False)
    for server in servers:
        server.wait_leader()
        server.wait_itself()
    return servers


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
