"""From `kill -9` to the next answer: an agent of fleet84 under its node, and a process of the same number under circus and supervisord.

Everybody is asked in the same way, by a plain request that is sent when the killed one is gone and waits for whoever listens next. Our
sockets stay with the node, so it lies in the kernel's queue until the new process is ready; the peers' are gone, and it is sent
again every 5 ms.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import zmq
from bench_startup import AGENTS, fleet
from common import Options, Processes, Table, free_ports, median, percentile, say
from startup_peers import MINIMAL, all_answered

#: Agents that are killed, one after the other, each of them once: (long form, short form).
KILLS: Final = (60, 10)
#: Between an answer and the next kill, in seconds: whoever was called by others is in order again.
PAUSE_S: Final = 0.3
GIVE_UP_S: Final = 30.0
SEED: Final = 6

#: Port -> pid of whoever serves it.
Served = dict[int, int]


def restarts(wanted: Options) -> list[Table]:
    only = [text for text in wanted.only if any(text in name for name in SUPERVISORS)]
    table = Table(
        f"kill -9 to the next answer, {AGENTS} processes",
        ("supervisor", "kills", "p50 ms", "p99 ms", "max ms", "time / ours"),
        notes=[
            "peers: each process a REP socket and nothing else; circus with check_delay 0.1 (5 s is its default)",
            "one after the other, each process once, in an order that a seed decides",
        ],
    )
    ours_ms: float | None = None
    for name, running in SUPERVISORS.items():
        if only and not any(text in name for text in only):
            continue
        try:
            with running() as served:
                took_ms = kill_each(served, KILLS[wanted.quick])
        except (OSError, TimeoutError) as exc:
            table.notes.append(f"{name} could not be measured: {exc}")
            continue
        p50 = median(took_ms)
        ours_ms = ours_ms or (p50 if name == "agentkit" else None)
        table.add(name, len(took_ms), p50, percentile(took_ms, 99), max(took_ms), p50 / ours_ms if ours_ms else None)
        say(f"{name}: p50 {p50:.1f} ms")
    return [table]


def kill_each(served: Served, kills: int) -> list[float]:
    """Milliseconds for each of so many."""
    context = zmq.Context()
    try:
        took = []
        for port in random.Random(SEED).sample(sorted(served), min(kills, len(served))):
            took.append(_until_answer(context, port, served[port]))
            time.sleep(PAUSE_S)
        return took
    finally:
        context.destroy(linger=0)


def _until_answer(context: zmq.Context[zmq.Socket[bytes]], port: int, pid: int) -> float:
    process = os.pidfd_open(pid)
    try:
        began_s = time.perf_counter()
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [])  # a peer's dying socket would take the request with it
    finally:
        os.close(process)
    with context.socket(zmq.DEALER) as dealer:
        dealer.reconnect_ivl, dealer.linger = 5, 0
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send_multipart([b"", b'"ping"'])
        if not dealer.poll(round(GIVE_UP_S * 1000)):
            raise TimeoutError(f"nothing on port {port} within {GIVE_UP_S:g} s of the kill")
        dealer.recv_multipart()
    return (time.perf_counter() - began_s) * 1000


# --- who supervises ---------------------------------------------------------------------------------------------------


@contextmanager
def agentkit() -> Iterator[Served]:
    with fleet() as ours:
        _, up = ours.up()
        time.sleep(2.0)  # what follows a start
        yield {int(agent["endpoint"].rpartition(":")[2]): agent["pid"] for agent in up["agents"]}
        ours.down()


@contextmanager
def circus() -> Iterator[Served]:
    ports = free_ports(AGENTS)
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        head = f"[circus]\ncheck_delay = 0.1\nendpoint = ipc://{folder}/e\npubsub_endpoint = ipc://{folder}/p\nwarmup_delay = 0\n"
        watchers = (
            f"[watcher:agent{n}]\ncmd = {sys.executable}\nargs = {MINIMAL} {port}\nwarmup_delay = 0\ngraceful_timeout = 1\n"
            for n, port in enumerate(ports)
        )
        file = Path(folder, "circus.ini")
        file.write_text(head + "".join(watchers))
        yield _served(processes, ports, Path(sys.executable).with_name("circusd"), file)


@contextmanager
def supervisord() -> Iterator[Served]:
    ports = free_ports(AGENTS)
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        head = f"[supervisord]\nnodaemon = true\nlogfile = {folder}/log\npidfile = {folder}/pid\nchildlogdir = {folder}\nminfds = 512\n"
        programs = (
            f"[program:agent{n}]\ncommand = {sys.executable} {MINIMAL} {port}\nstartsecs = 0\nautorestart = true\n"
            "stdout_logfile = NONE\nstderr_logfile = NONE\n"
            for n, port in enumerate(ports)
        )
        file = Path(folder, "supervisord.conf")
        file.write_text(head + "".join(programs))
        yield _served(processes, ports, Path(sys.executable).with_name("supervisord"), "-c", file)


def _served(processes: Processes, ports: Sequence[int], *command: object) -> Served:
    """Who serves which port, once all do."""
    process = processes.start(*command)
    all_answered(ports)
    served = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ValueError, IndexError):
            served[int(child.cmdline()[-1])] = child.pid
    return {port: served[port] for port in ports}


SUPERVISORS: Final[dict[str, Callable[[], contextlib.AbstractContextManager[Served]]]] = {
    "agentkit": agentkit,
    "circus": circus,
    "supervisord": supervisord,
}
