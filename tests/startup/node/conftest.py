"""A real zygote, with the test as its node."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from startup.node import launch, procinfo
from startup.node.exits import Exit
from startup.node.options import BootOptions, NodeOptions
from startup.node.zygote.link import Forked, ForkOrder, ZygoteLink

REPOSITORY = Path(__file__).resolve().parents[3]
#: No test waits longer than this for something that should happen, in seconds.
PATIENCE_S = 40.0


@dataclass
class Hosted:
    """A zygote process and, once connected, the link to it."""

    options: NodeOptions
    process: subprocess.Popen[bytes]
    folder: Path
    link: ZygoteLink | None = None
    exits: dict[str, Exit] = field(default_factory=dict)
    told: asyncio.Condition = field(default_factory=asyncio.Condition)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    incarnation: int = 0
    pidfds: list[int] = field(default_factory=list)

    async def connect(self) -> ZygoteLink:
        self.link = await ZygoteLink.connect(self.options.places.zygote, on_exit=self._exited, on_lost=self.lost.set)
        for inherited in self.link.inventory:
            if inherited.pidfd is not None:
                self.pidfds.append(inherited.pidfd)
        return self.link

    def order(self, key: str, target: Mapping[str, Any], **changes: Any) -> ForkOrder:
        self.incarnation += 1
        env = {"PATH": os.environ["PATH"], "AGENTKIT_INCARNATION": str(self.incarnation), "AGENTKIT_NODE": self.node}
        facts: dict[str, Any] = {
            "key": key,
            "incarnation": self.incarnation,
            "title": f"agentkit: agent c/{key}",
            "env": env | changes.pop("env", {}),
            "cwd": str(self.folder),
            "log_path": str(self.log(key)),
            "target": target,
        }
        return ForkOrder(**(facts | changes))

    async def fork(
        self, key: str, target: Mapping[str, Any], fds: Mapping[str, int] | None = None, **changes: Any
    ) -> Forked:
        assert self.link is not None
        forked = await self.link.fork(self.order(key, target, **changes), fds or {})
        self.pidfds.append(forked.pidfd)
        return forked

    async def exit_of(self, key: str) -> Exit:
        async with asyncio.timeout(PATIENCE_S), self.told:
            await self.told.wait_for(lambda: key in self.exits)
        return self.exits.pop(key)

    async def run(
        self, key: str, target: Mapping[str, Any], fds: Mapping[str, int] | None = None, **changes: Any
    ) -> str:
        """Fork it, wait for its end; what it wrote."""
        await self.fork(key, target, fds, **changes)
        self.last = await self.exit_of(key)
        return self.log(key).read_text()

    def script(self, text: str, name: str = "target.py") -> dict[str, Any]:
        path = self.folder / name
        path.write_text(text)
        return {"type": "program", "script": str(path), "argv": ()}

    def log(self, key: str) -> Path:
        return self.folder / f"{key.replace('/', '_')}.log"

    @property
    def node(self) -> str:
        return str(self.options.places.control)

    def _exited(self, exit_: Exit) -> None:
        self.exits[exit_.key] = exit_
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self.told:
            self.told.notify_all()

    async def close(self) -> None:
        for found in list(procinfo.all_stats()):
            if procinfo.environ(found.pid).get("AGENTKIT_NODE") == self.node:
                with suppress(ProcessLookupError):
                    os.kill(found.pid, 9)
        if self.process.poll() is None and not self.lost.is_set():
            if self.link is None or self.link._closed:
                await self.connect()
            assert self.link is not None
            await self.link.stop()
        if self.link is not None:
            self.link.close()
        for pidfd in self.pidfds:
            os.close(pidfd)
        try:
            await asyncio.to_thread(self.process.wait, 10)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def run_folder() -> Iterator[Path]:
    """Short enough for unix sockets, whatever pytest calls its own."""
    folder = Path(tempfile.mkdtemp(prefix="ak"))
    yield folder
    shutil.rmtree(folder)


def host(folder: Path, preload: Sequence[str] = (), env: Mapping[str, str] | None = None, **options: Any) -> Hosted:
    boot = BootOptions(
        cluster="c", machines=("m",), run_root=str(folder / "r"), state_root=str(folder / "s"), **options
    )
    node = boot.node("m")
    node.places.prepare()
    listener = launch.bind_zygote(node.places.zygote)
    argv = node.zygote(tuple(preload), listener_fd=listener.fileno()).to_argv()
    with open(node.node_log, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.startup.node.booted", *argv],
            cwd=REPOSITORY,
            pass_fds=[listener.fileno()],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    listener.close()
    return Hosted(node, process, folder)


@pytest.fixture
async def zygote(run_folder: Path) -> AsyncIterator[Hosted]:
    hosted = host(run_folder, supervised=True)
    await hosted.connect()
    yield hosted
    await hosted.close()
