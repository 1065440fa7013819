"""The floor under `agentkit up`: our own zygote forking N processes, and nothing else that a launcher does.

    python benchmarks/floor.py COUNT ROUNDS RUN_DIR     prints kind -> {"seconds": [...], "pss_mb": [...]}, one per round

It boots as a node does (the same imports, the zygote forked before the event loop), then in turn forks COUNT processes of
floor_child.py and COUNT agents of an empty BaseAgent, counts their READYs, and ends them. Seconds run from the first order
to the last READY; sockets are bound before, as a node has them when agents start again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from common import median, pss_mb

from startup.node import boot
from startup.node.exits import Exit
from startup.node.listeners import open_listener
from startup.node.options import NodeOptions
from startup.node.zygote.link import Forked, ForkOrder, ZygoteLink

HERE: Final = Path(__file__).resolve().parent
GIVE_UP_S: Final = 60.0

TARGETS: Final[dict[str, Mapping[str, Any]]] = {
    "floor": {"type": "program", "argv": [], "script": str(HERE / "floor_child.py")},
    "bare agents": {"type": "agent", "module": "bare_agent", "script": None, "cls": "Bare"},
}


class Round:
    """COUNT processes of one kind, from the first order to the last exit."""

    def __init__(self, link: ZygoteLink, notify: socket.socket, pids: set[int], ended: asyncio.Event) -> None:
        self._link, self._notify, self._pids, self._ended = link, notify, pids, ended

    async def run(self, kind: str, places: Any, listeners: list[dict[str, socket.socket]]) -> tuple[float, float]:
        """Seconds until all were ready, and the median of what each then needs of memory, in MB."""
        loop = asyncio.get_running_loop()
        missing, all_ready = len(listeners), loop.create_future()

        def told() -> None:
            nonlocal missing
            with contextlib.suppress(BlockingIOError):
                while True:
                    missing -= b"READY=1" in self._notify.recv(4096)
                    if not missing and not all_ready.done():
                        all_ready.set_result(time.perf_counter())

        loop.add_reader(self._notify, told)
        begun = time.perf_counter()
        orders = (_order(kind, n, places) for n in range(len(listeners)))
        forked = await asyncio.gather(*(self._fork(order, pair) for order, pair in zip(orders, listeners, strict=True)))
        async with asyncio.timeout(GIVE_UP_S):
            seconds: float = await all_ready - begun
        loop.remove_reader(self._notify)
        memory_mb = median([pss_mb(process.pid) for process in forked])
        for process in forked:
            signal.pidfd_send_signal(process.pidfd, signal.SIGTERM)
            os.close(process.pidfd)
        while self._pids:
            self._ended.clear()
            async with asyncio.timeout(GIVE_UP_S):
                await self._ended.wait()
        return seconds, memory_mb

    async def _fork(self, order: ForkOrder, pair: dict[str, socket.socket]) -> Forked:
        forked = await self._link.fork(order, {name: sock.fileno() for name, sock in pair.items()})
        self._pids.add(forked.pid)
        return forked


def _order(kind: str, number: int, places: Any) -> ForkOrder:
    id = f"bench/{kind.replace(' ', '-')}{number}"
    return ForkOrder(
        key=id,
        incarnation=1,
        title=f"floor {number}",
        env={
            **os.environ,
            "NOTIFY_SOCKET": str(places.notify),
            "AGENT_NAME": f"bare{number}",
            "AGENTKIT_DATA_DIR": str(places.state / f"data{number}"),
        },
        cwd=str(HERE),
        log_path=str(places.state / "floor.log"),
        target=TARGETS[kind],
        sys_path=(str(HERE),),
    )


@contextlib.contextmanager
def _listeners(count: int) -> Iterator[list[dict[str, socket.socket]]]:
    pairs = [{name: open_listener("127.0.0.1", 0) for name in ("inbox-local", "http")} for _ in range(count)]
    try:
        yield pairs
    finally:
        for pair in pairs:
            for sock in pair.values():
                sock.close()


async def _measure(options: NodeOptions, count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    pids: set[int] = set()
    ended = asyncio.Event()

    def on_exit(exit_: Exit) -> None:
        pids.discard(exit_.pid)
        ended.set()

    link = await ZygoteLink.connect(options.places.zygote, on_exit=on_exit, on_lost=ended.set)
    measured: dict[str, dict[str, list[float]]] = {kind: {"seconds": [], "pss_mb": []} for kind in TARGETS}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, _listeners(count) as listeners:
            notify.bind(str(options.places.notify))
            notify.setblocking(False)
            for _ in range(rounds):
                for kind, values in measured.items():
                    seconds, memory_mb = await Round(link, notify, pids, ended).run(kind, options.places, listeners)
                    values["seconds"].append(seconds)
                    values["pss_mb"].append(memory_mb)
    finally:
        # While one of them lives the zygote waits for another node, and whoever reads our output waits for the zygote
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await link.stop()
        link.close()
    return measured


def main() -> int:
    count, rounds, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    def node(options: NodeOptions) -> int:
        print(json.dumps(asyncio.run(_measure(options, count, rounds))), flush=True)
        return 0

    argv = ["--cluster", "bench", "--machine", "floor", "--run-dir", f"{folder}/run", "--state-dir", f"{folder}/state"]
    return boot.main([*argv, "--foreground"], node_main=node)


if __name__ == "__main__":
    sys.exit(main())
