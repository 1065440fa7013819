"""What it costs to hand an array of 64 MB to another process of this machine.

    python benchmarks/bench_shm.py [--quick] [--json] [--only TEXT]

From when the sender has it in its memory until the receiver has looked at every page of it and has answered. Contenders take turns;
medians of 30 rounds (--quick: 3):

- TCP: a socket on loopback, `sendall` on one side, `recv_into` memory that is there already on the other, nothing else;
- agentkit: the array as an argument of a call: attachments, without copies in Python;
- agentkit, Shared: copied into shared memory anew each time, mapped by the agent;
- agentkit, Shared again: one copy, sent each time. What it costs to hand it to each further receiver.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from common import Processes, Table, cpu_s, free_ports, median, options, percentile, say, show
from shm_agent import PAGE

from agentkit import Client, Shared, Unreachable

MEGABYTES: Final = 64
ROUNDS: Final = (30, 3)
HERE: Final = Path(__file__).resolve()
AGENT_SCRIPT: Final = HERE.with_name("shm_agent.py")
HOST: Final = "127.0.0.1"
START_S: Final = 20.0


def serve_tcp(port: int, size: int) -> None:
    """The other side of TCP, in a process of its own: takes `size` bytes, answers with what it has seen, again and again."""
    memory = np.zeros(size // 8)
    view = memoryview(memory).cast("B")
    with socket.create_server((HOST, port)) as server:
        connection, _ = server.accept()
        with connection:
            while True:
                at = 0
                while at < size:
                    got = connection.recv_into(view[at:])
                    if not got:
                        return
                    at += got
                connection.sendall(struct.pack("d", memory[::PAGE].sum()))


async def connected(port: int) -> socket.socket:
    ends_s = time.monotonic() + START_S
    while True:
        try:
            return socket.create_connection((HOST, port))
        except ConnectionRefusedError:
            if time.monotonic() > ends_s:
                raise
            await asyncio.sleep(0.05)


async def measure(processes: Processes, rounds: int, only: tuple[str, ...]) -> Table:
    array = np.arange(MEGABYTES * 2**20 // 8, dtype=np.float64)
    expected = float(array[::PAGE].sum())
    tcp_port, agent_port = free_ports(2)
    tcp = processes.start(sys.executable, HERE, "--serve-tcp", tcp_port, array.nbytes)
    agent = processes.start(sys.executable, AGENT_SCRIPT, env={"PORT": str(agent_port)})
    sock = await connected(tcp_port)
    (await connected(agent_port)).close()
    kept = Shared(array)

    async def by_tcp() -> float:
        sock.sendall(memoryview(array).cast("B"))
        (seen,) = struct.unpack("d", sock.recv(8, socket.MSG_WAITALL))
        return float(seen)

    async with Client(peers={"Looker": f"tcp://{HOST}:{agent_port}"}) as client:

        async def call(value: Any) -> float:
            return float(await client.call("Looker", "look", {"array": value}, timeout=60))

        contenders: dict[str, tuple[Callable[[], Awaitable[float]], int]] = {
            "TCP": (by_tcp, tcp.pid),
            "agentkit": (lambda: call(array), agent.pid),
            "agentkit, Shared": (lambda: call(Shared(array)), agent.pid),
            "agentkit, Shared again": (lambda: call(kept), agent.pid),
        }
        contenders = {
            name: it
            for name, it in contenders.items()
            if not only or name == "TCP" or any(text in name for text in only)
        }
        ends_s = time.monotonic() + START_S
        while True:
            try:
                await call(array[:1])
                break
            except Unreachable:
                if time.monotonic() > ends_s:
                    raise
        times_ms: dict[str, list[float]] = {name: [] for name in contenders}
        used_ms: dict[str, float] = dict.fromkeys(contenders, 0.0)
        for number in range(rounds + 1):
            for name, (hand_over, receiver) in contenders.items():
                before_s = time.process_time() + cpu_s(receiver)
                began_s = time.perf_counter()
                seen = await hand_over()
                passed_ms = (time.perf_counter() - began_s) * 1000
                if seen != expected:
                    raise RuntimeError(f"{name}: {seen} arrived, not {expected}")
                if number:  # the first round warms up
                    times_ms[name].append(passed_ms)
                    used_ms[name] += (time.process_time() + cpu_s(receiver) - before_s) * 1000
    sock.close()
    base = median(times_ms["TCP"])
    table = Table(
        f"an array of {MEGABYTES} MB to another process",
        ("contender", "median ms", "p90 ms", "GB/s", "of TCP's time", "CPU ms"),
    )
    for name, found in times_ms.items():
        table.add(
            name,
            median(found),
            percentile(found, 90),
            array.nbytes / median(found) / 1e6,
            median(found) / base,
            used_ms[name] / rounds,
        )
    table.notes.append("CPU: both processes; the receiver's is counted by the kernel in steps of 10 ms")
    return table


def main() -> None:
    if sys.argv[1:2] == ["--serve-tcp"]:
        serve_tcp(int(sys.argv[2]), int(sys.argv[3]))
        return
    chosen = options(__doc__ or "")
    rounds = ROUNDS[chosen.quick]
    say(f"{rounds} rounds")
    with Processes() as processes:
        table = asyncio.run(measure(processes, rounds, chosen.only))
    show("bench_shm", [table], as_json=chosen.json)


if __name__ == "__main__":
    main()
