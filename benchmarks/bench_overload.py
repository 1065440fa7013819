"""What is left of an agent's work when five times as much is asked of it as it can do.

    python benchmarks/bench_overload.py [--quick] [--json]

The handler sleeps for 5 ms, ten at once: 2,000 calls/s. It is offered half of that, its capacity, a quarter more, and then 10,000
calls/s for 20 s (--quick: 3 s), at an even pace that does not wait for answers, without retries. Rejections are
answers like others here: counted, and their time told. All the while somebody asks for its health over HTTP.

The caller is bare ZeroMQ over four channels, in a process of its own, and says how much it really offered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import zmq
from common import Processes, Table, cpu_s, free_ports, options, percentile, say, show
from overload_agent import HANDLER_S, LIMIT
from rpc_peers import HOST, until_answered

from agentkit import BlockingClient, Unreachable
from agentkit.names import Incarnation
from agentkit.wire import codec
from agentkit.wire.envelope import AK1_VERSION, Error, Hello, Limits, Reply, Welcome
from agentkit.wire.values import pack

AGENT_SCRIPT: Final = Path(__file__).with_name("overload_agent.py")
CAPACITY: Final = round(LIMIT / HANDLER_S)
OVERLOAD: Final = 5 * CAPACITY
#: How long a request may wait for its turn: the default of `@rpc(queue_wait=)`, in seconds.
QUEUE_WAIT_S: Final = 0.05
TIMEOUT_S: Final = 2.0
CHANNELS: Final = 4
HEALTH_PERIOD_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """So many calls per second for so long."""

    rate: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a Load. Latencies in ms; `outcomes`: "ok", and codes of errors."""

    seconds: float
    offered: int
    done: int  #: with a result, while it lasted
    outcomes: dict[str, int]
    accepted_p50_ms: float
    accepted_p99_ms: float
    rejected_p99_ms: float | None


# -- the caller's process ----------------------------------------------------------------------------------------------


class Channels:
    """Some bare channels, which cost so little that the caller is not what is measured."""

    def __init__(self, port: int) -> None:
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self.socks: list[zmq.Socket[bytes]] = []
        for number in range(CHANNELS):
            sock = self._context.socket(zmq.DEALER)
            sock.linger = sock.sndhwm = sock.rcvhwm = 0
            sock.connect(f"tcp://{HOST}:{port}")
            hello = Hello(AK1_VERSION, f"bench{number}", f"local/bench{number}", Incarnation(0), (), Limits())
            sock.send_multipart([codec.encode(hello), b""])
            assert isinstance(codec.decode(sock.recv_multipart()[0]), Welcome)
            self._poller.register(sock, zmq.POLLIN)
            self.socks.append(sock)
        self._next_id = 0

    def offer(self, load: Load) -> Result:
        """At an even pace: what a late turn has missed is made up for."""
        sent: dict[tuple[int, int], float] = {}
        outcomes: Counter[str] = Counter()
        accepted: list[float] = []
        rejected: list[float] = []
        begun = now = time.perf_counter()
        offered = done = 0
        while (now < begun + load.seconds or sent) and now < begun + load.seconds + TIMEOUT_S + 1:
            passed = min(now - begun, load.seconds)
            for _ in range(int(passed * load.rate) - offered):
                offered += 1
                number = offered % CHANNELS
                self._next_id += 1
                sent[number, self._next_id] = time.perf_counter()
                request = codec.request_fields(self._next_id, "work", int(TIMEOUT_S * 1000), {})
                self.socks[number].send_multipart([pack(request), b"\x80"])
            self._poller.poll(1)
            now = time.perf_counter()
            for number, sock in enumerate(self.socks):
                while sock.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                    message = codec.decode(sock.recv_multipart()[0])
                    if isinstance(message, Reply | Error) and (at := sent.pop((number, message.id), None)) is not None:
                        outcome = message.code if isinstance(message, Error) else "ok"
                        outcomes[outcome] += 1
                        (rejected if outcome == "overloaded" else accepted).append((now - at) * 1000)
                        done += outcome == "ok" and now < begun + load.seconds
        outcomes["unanswered"] += len(sent)
        return Result(
            seconds=load.seconds, offered=offered, done=done, outcomes=dict(+outcomes), accepted_p50_ms=percentile(accepted, 50),
            accepted_p99_ms=percentile(accepted, 99), rejected_p99_ms=percentile(rejected, 99) if rejected else None,
        )  # fmt: skip


def caller(port: int) -> None:
    """A Load per line in, a Result per line out."""
    channels = Channels(port)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(channels.offer(Load(**json.loads(line))))), flush=True)


# -- this process ------------------------------------------------------------------------------------------------------


class HealthWatch(threading.Thread):
    """Asks /health again and again; `answers_ms` are how long that took."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.answers_ms: list[float] = []
        self.failures = 0
        self._url = f"http://{HOST}:{port}/health"
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(HEALTH_PERIOD_S):
            began = time.perf_counter()
            try:
                with urllib.request.urlopen(self._url, timeout=2) as answer:
                    answer.read()
            except OSError:
                self.failures += 1
            else:
                self.answers_ms.append((time.perf_counter() - began) * 1000)

    def take(self) -> tuple[list[float], int]:
        """What was seen since the last time."""
        seen, self.answers_ms = self.answers_ms, []
        failures, self.failures = self.failures, 0
        return seen, failures

    def end(self) -> None:
        self._over.set()
        self.join()


def run(client: subprocess.Popen[str], load: Load) -> Result:
    assert client.stdin
    assert client.stdout
    client.stdin.write(json.dumps(asdict(load)) + "\n")
    client.stdin.flush()
    answer = client.stdout.readline()
    if not answer:
        raise RuntimeError(f"the caller exited with {client.wait()}")
    return Result(**json.loads(answer))


def measure(*, quick: bool) -> list[Table]:
    short_s, long_s = (0.7, 3.0) if quick else (8.0, 20.0)
    loads = [Load(rate=rate, seconds=short_s) for rate in (CAPACITY // 2, CAPACITY, CAPACITY * 5 // 4)]
    loads.append(Load(rate=OVERLOAD, seconds=long_s))
    table = Table(
        f"{CAPACITY:,} calls/s can be done: a handler of {HANDLER_S * 1000:.0f} ms, {LIMIT} at once",
        (
            "asked for /s", "offered /s", "done /s", "rejected /s", "other errors", "p50 ms", "p99 ms", "rejections' p99 ms",
            "health max ms", "health unanswered", "caller CPU %", "callee CPU %",
        ),
    )  # fmt: skip
    with Processes() as processes:
        port, health_port = free_ports(2)
        environment = {"PORT": str(port), "HEALTH_CHECK_PORT": str(health_port), "AGENT_NAME": "Busy"}
        agent = processes.start(sys.executable, AGENT_SCRIPT, env=environment)
        with BlockingClient(peers={"Busy": f"tcp://{HOST}:{port}"}) as probe:
            until_answered(partial(probe.call, "Busy", "work", attempts=1), Unreachable)
        client = processes.start(
            sys.executable,
            __file__,
            "call",
            port,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            text=True,
        )
        assert client.stdout
        client.stdout.readline()
        watch = HealthWatch(health_port)
        watch.start()
        results: list[Result] = []
        try:
            for load in loads:
                say(f"{load.rate:,} calls/s for {load.seconds:g} s")
                watch.take()
                before = cpu_s(client.pid), cpu_s(agent.pid)
                result = run(client, load)
                after = cpu_s(client.pid), cpu_s(agent.pid)
                cpu = [100 * (now - then) / load.seconds for now, then in zip(after, before, strict=True)]
                health_ms, unanswered = watch.take()
                results.append(result)
                add(table, load, result, health_ms, unanswered, cpu)
        finally:
            watch.end()
        assert client.stdin
        client.stdin.close()
    return [table, verdict(results, table)]


def add(table: Table, load: Load, result: Result, health_ms: list[float], unanswered: int, cpu: list[float]) -> None:
    rejected = result.outcomes.get("overloaded", 0)
    others = {code: count for code, count in result.outcomes.items() if code not in ("ok", "overloaded")}
    table.add(
        load.rate,
        result.offered / result.seconds,
        result.done / result.seconds,
        rejected / result.seconds,
        ", ".join(f"{count:,} {code}" for code, count in others.items()) or "none",
        result.accepted_p50_ms,
        result.accepted_p99_ms,
        result.rejected_p99_ms,
        max(health_ms, default=None),
        unanswered,
        *cpu,
    )


def verdict(results: list[Result], table: Table) -> Table:
    """The three claims beside what was measured."""
    rates = [result.done / result.seconds for result in results]
    half, overloaded = results[0], results[-1]
    claims = Table(f"At {OVERLOAD:,} calls/s", ("what", "measured", "wanted"))
    claims.add("goodput / peak", rates[-1] / max(rates), "0.9 at least")
    bound_ms = half.accepted_p99_ms + QUEUE_WAIT_S * 1000
    claims.add("p99 of accepted calls, ms", overloaded.accepted_p99_ms, f"{bound_ms:.1f} at most")
    health: Any = max((row[8] for row in table.rows if row[8] is not None), default=None)
    claims.add("slowest health answer, ms", health, "100 at most")
    return claims


def main() -> None:
    if sys.argv[1:2] == ["call"]:
        caller(int(sys.argv[2]))
        return
    wanted = options(__doc__ or "")
    show("bench_overload", measure(quick=wanted.quick), as_json=wanted.json)


if __name__ == "__main__":
    main()
