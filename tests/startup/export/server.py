"""A real Prometheus on a free port, and promtool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.consul.debian import program
from tests.startup.cli.launched import free_port

#: Debian's release whose Prometheus (2.24) can ask Consul; builds from 2022 on are made without that.
ASKS_CONSUL: Final = "bullseye"
#: Nothing that a test waits for takes longer, in seconds.
PATIENCE_S = 60.0
#: Prometheus asks so often in tests.
OFTEN = "global: {scrape_interval: 250ms, scrape_timeout: 250ms}\n"


def check(configuration: str, folder: Path, release: str | None = None) -> str:
    """What `promtool check config` says; AssertionError when it finds fault. `release`: as for tests.consul.debian.program."""
    file = folder / "prometheus.yml"
    file.write_text(configuration)
    tool = program("promtool", release)
    assert tool is not None
    done = subprocess.run([tool, "check", "config", str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + configuration
    assert "SUCCESS" in done.stdout
    return done.stdout + done.stderr


class Prometheus:
    """One server with one configuration. A context manager."""

    def __init__(self, configuration: str, release: str | None = None) -> None:
        self._release = release
        self._folder = Path(tempfile.mkdtemp(prefix="prometheus-"))
        self.address = f"127.0.0.1:{free_port()}"
        (self._folder / "prometheus.yml").write_text(OFTEN + configuration)

    def __enter__(self) -> Prometheus:
        found = program("prometheus", self._release)
        assert found is not None
        command = [
            found, f"--config.file={self._folder / 'prometheus.yml'}", f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self.address}", "--log.level=warn",
        ]  # fmt: skip
        env = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "GOMAXPROCS": "2"}
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()
            shutil.rmtree(self._folder)

    def ask(self, path: str, **words: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(words)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def targets(self) -> dict[str, dict[str, Any]]:
        """Those that are scraped, by the label `instance`."""
        return {target["labels"]["instance"]: target for target in self.ask("targets", state="active")["activeTargets"]}

    def up(self, *instances: str) -> dict[str, dict[str, Any]]:
        """The targets, as soon as they are exactly these and all are up."""
        return self.until(
            lambda targets: targets.keys() == set(instances) and all(t["health"] == "up" for t in targets.values())
        )

    def until(self, reached: Any) -> dict[str, dict[str, Any]]:
        """Prometheus tells nobody: it is asked until `reached(targets)`."""
        deadline_s = time.monotonic() + PATIENCE_S
        targets: dict[str, dict[str, Any]] = {}
        while True:
            with suppress(OSError, ValueError):
                targets = self.targets()
                if reached(targets):
                    return targets
            self._go_on(deadline_s, targets)

    def series(self, query: str) -> list[dict[str, Any]]:
        """What a query finds, as soon as it finds something."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not (found := self.ask("query", query=query)["result"]):
            self._go_on(deadline_s, query)
        return list(found)

    def _go_on(self, deadline_s: float, seen: object) -> None:
        log = (self._folder / "log").read_text()
        assert self._process.poll() is None, log
        assert time.monotonic() < deadline_s, f"not reached: {seen}\n{log}"
        time.sleep(0.1)
