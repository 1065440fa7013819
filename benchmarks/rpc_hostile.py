"""What garbage on an inbox costs the good caller beside it: p99 before, while *another* agent is attacked, while this one is; memory.

The attacker has four sockets and sends 10,000 frames: random bytes, truncated and mistyped msgpack, broken plain requests, messages
of 70 frames. It reconnects whenever it is cut off. Attacker, agents and good caller share the machine's cores: what a busy
attacker costs anybody shows in the middle column."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
from common import Processes, Table, free_ports, median, percentile
from rpc_peers import HOST, until_answered

from agentkit import BlockingClient, Unreachable

PEERS_SCRIPT = Path(__file__).with_name("rpc_peers.py")
FRAMES = 10_000
CALLS_BEFORE = 1_000


def hostile(processes: Processes, *, quick: bool) -> Table:
    """Rounds of `FRAMES` frames; the medians."""
    port, other_port = free_ports(2)
    server, _ = (
        processes.start(sys.executable, PEERS_SCRIPT, "agentkit", "serve", each, stderr=subprocess.DEVNULL)
        for each in (port, other_port)
    )
    rounds: dict[str, list[float]] = {"before": [], "beside": [], "during": []}
    with BlockingClient(peers={"Echo": f"tcp://{HOST}:{port}", "Other": f"tcp://{HOST}:{other_port}"}) as client:
        for name in ("Echo", "Other"):
            until_answered(partial(client.call, name, "echo", {"payload": b""}), Unreachable)
        _p99_us(client, lambda n: n < CALLS_BEFORE)
        memory = psutil.Process(server.pid).memory_full_info().uss
        for _ in range(1 if quick else 5):
            rounds["before"].append(_p99_us(client, lambda n: n < CALLS_BEFORE))
            for when, victim in (("beside", other_port), ("during", port)):
                attack = processes.start(sys.executable, __file__, victim)
                rounds[when].append(_p99_us(client, lambda _, attack=attack: attack.poll() is None))  # type: ignore[misc]
        grown_mb = (psutil.Process(server.pid).memory_full_info().uss - memory) / 2**20
    before, beside, during = (median(rounds[when]) for when in ("before", "beside", "during"))
    table = Table(
        f"A good caller's p99 (us) beside {FRAMES:,} hostile frames",
        (
            "contender",
            "before",
            "another is attacked",
            "it is attacked",
            "attacked / before",
            "attacked / another attacked",
            "memory MB more",
        ),
    )
    table.add("agentkit, blocking caller", before, beside, during, during / before, during / beside, grown_mb)
    return table


def _p99_us(client: BlockingClient, goes_on: object) -> float:
    took_us: list[float] = []
    while goes_on(len(took_us)) or not took_us:  # type: ignore[operator]
        began_s = time.perf_counter()
        client.call("Echo", "echo", {"payload": b"x" * 64})
        took_us.append((time.perf_counter() - began_s) * 1e6)
    return percentile(took_us, 99)


def attack(port: int) -> None:
    """Send `FRAMES` frames as fast as they are taken, for 5 s at most."""
    import zmq

    random.seed(7)
    sockets = [zmq.Context.instance().socket(zmq.DEALER) for _ in range(4)]
    for sock in sockets:
        sock.linger = 0
        sock.sndtimeo = 100
        sock.connect(f"tcp://{HOST}:{port}")
    ends_s = time.monotonic() + 5
    for n in range(FRAMES):
        noise = random.randbytes(random.randrange(1, 300))
        frames = [
            [noise],
            [b"\x94\x03\x01\xa4echo"[: random.randrange(1, 8)], noise],
            [b"\x93\xc3\xc0\x81", b""],
            [b"", b'{"action": "echo", "text": ["' + noise.hex().encode()],
            [noise, *[b"x"] * 70],
        ][n % 5]
        with contextlib.suppress(zmq.Again):
            sockets[n % 4].send_multipart(frames)
        if n % 5 == 0:
            time.sleep(0.001)
        if time.monotonic() > ends_s:
            break


if __name__ == "__main__":
    attack(int(sys.argv[1]))
