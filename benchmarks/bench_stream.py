"""How fast results stream out of a method, and what a reader that is slow costs: ours beside grpcio aio and raw pyzmq.

    python benchmarks/bench_stream.py [--quick] [--json] [--only TEXT]...

Two processes each. Values of 64 bytes and of 64 KiB as fast as they come; then a reader that takes one value of 64 KiB every
20 ms while the writer would write without end: what the writer's and the reader's memory grow by. Raw pyzmq (PUSH and PULL)
holds back by its high-water mark of 1,000 messages, gRPC by HTTP/2's flow control, ours by CREDIT.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import psutil
from common import Options, Processes, Table, free_ports, median, options, say, show
from rpc_peers import FIRST_ANSWER_S, HOST, until_answered, until_answered_async

SMALL_BYTES: Final = 64
LARGE_BYTES: Final = 64 * 1024
SLOW_S: Final = 0.02


class Contender:
    """`serve` until ended; `read` one stream of values of `size` bytes."""

    def _read(self, port: int, size: int) -> AsyncIterator[bytes]:
        raise NotImplementedError(port, size)

    def serve(self, port: int) -> None:
        raise NotImplementedError(port)

    def call(self, port: int) -> None:
        """A job a line: size, seconds, pause between two values; the answer: values, seconds."""

        async def main() -> None:
            print("ready", flush=True)
            for line in sys.stdin:
                size, seconds, pause_s = json.loads(line)
                count, begun = 0, time.perf_counter()
                async for value in self._read(port, size):
                    assert len(value) == size
                    count += 1
                    if pause_s:
                        await asyncio.sleep(pause_s)
                    if time.perf_counter() - begun > seconds:
                        break
                print(json.dumps([count, time.perf_counter() - begun]), flush=True)

        import uvloop

        uvloop.run(main())


class Ours(Contender):
    """An annotated generator, read with `async for`."""

    def serve(self, port: int) -> None:
        from agentkit import BaseAgent, rpc
        from agentkit.main import run_class

        class Writer(BaseAgent):
            @rpc(timeout="10m")
            async def values(self, size: int) -> AsyncIterator[bytes]:
                value = bytes(size)
                while True:
                    yield value

        run_class(Writer, os.environ | {"PORT": str(port)})

    async def _read(self, port: int, size: int) -> AsyncIterator[bytes]:
        from agentkit import Client, Unreachable

        async with Client(peers={"Writer": f"tcp://{HOST}:{port}"}) as client:
            await until_answered_async(lambda: client.describe("Writer"), Unreachable)
            async for value in client.stream("Writer", "values", {"size": size}):
                yield value


class Grpc(Contender):
    """A server-streaming method of bytes, without protobuf."""

    def serve(self, port: int) -> None:
        import grpc

        async def values(request: bytes, _context: Any) -> AsyncIterator[bytes]:
            value = bytes(int(request))
            while True:
                yield value

        async def main() -> None:
            server = grpc.aio.server()
            handlers = {"Values": grpc.unary_stream_rpc_method_handler(values)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Stream", handlers),))
            server.add_insecure_port(f"{HOST}:{port}")
            await server.start()
            await server.wait_for_termination()

        asyncio.run(main())

    async def _read(self, port: int, size: int) -> AsyncIterator[bytes]:
        import grpc

        async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), FIRST_ANSWER_S)
            async for value in channel.unary_stream("/bench.Stream/Values")(str(size).encode()):
                yield value


class Raw(Contender):
    """PUSH and PULL, blocking at both sides; a writer per connection that is told the size first."""

    def serve(self, port: int) -> None:
        import zmq

        context = zmq.Context()
        told = context.socket(zmq.REP)
        told.bind(f"tcp://{HOST}:{port}")
        size, out = 0, None
        poller = zmq.Poller()
        poller.register(told, zmq.POLLIN)
        while True:
            if poller.poll(0 if out is not None else None):
                size = int(told.recv())
                if out is not None:
                    out.close(linger=0)
                out = context.socket(zmq.PUSH)
                endpoint = f"tcp://{HOST}:{out.bind_to_random_port(f'tcp://{HOST}')}"
                told.send(endpoint.encode())
                value = bytes(size)
            assert out is not None
            for _ in range(100):
                try:
                    out.send(value, zmq.NOBLOCK)
                except zmq.Again:
                    out.poll(10, zmq.POLLOUT)
                    break

    async def _read(self, port: int, size: int) -> AsyncIterator[bytes]:
        import zmq

        context = zmq.Context()
        ask = context.socket(zmq.REQ)
        ask.linger = 0
        ask.connect(f"tcp://{HOST}:{port}")
        ask.send(str(size).encode())
        take = context.socket(zmq.PULL)
        take.connect(ask.recv().decode())
        try:
            while True:
                yield take.recv()
        finally:
            context.destroy(linger=0)


CONTENDERS: Final[dict[str, type[Contender]]] = {"agentkit": Ours, "grpcio aio": Grpc, "pyzmq PUSH/PULL": Raw}


def measure(name: str, processes: Processes, wanted: Options) -> tuple[list[Any], list[Any]]:
    (port,) = free_ports(1)
    server = processes.start(sys.executable, __file__, name, "serve", port, stderr=subprocess.DEVNULL)
    client = processes.start(
        sys.executable, __file__, name, "call", port, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdin
    assert client.stdout

    def job(size: int, seconds: float, pause_s: float = 0.0) -> tuple[int, float]:
        assert client.stdin
        assert client.stdout
        client.stdin.write(json.dumps([size, seconds, pause_s]) + "\n")
        client.stdin.flush()
        answer = client.stdout.readline()
        while not answer.startswith("["):
            if not answer:
                raise RuntimeError(f"{name}: its reader exited with {client.wait()}")
            answer = client.stdout.readline()
        count, took_s = json.loads(answer)
        return count, took_s

    seconds, times = (0.3, 2) if wanted.quick else (1.0, 5)
    until_answered(lambda: job(SMALL_BYTES, 0.1))
    rates: dict[int, list[float]] = {SMALL_BYTES: [], LARGE_BYTES: []}
    for _ in range(times):
        for size, results in rates.items():
            count, took_s = job(size, seconds)
            results.append(count / took_s)
    both = [psutil.Process(process.pid) for process in (server, client)]
    before = [process.memory_full_info().uss for process in both]
    job(LARGE_BYTES, 1.0 if wanted.quick else 5.0, SLOW_S)
    grown = [(process.memory_full_info().uss - was) / 2**20 for process, was in zip(both, before, strict=True)]
    small, large = median(rates[SMALL_BYTES]), median(rates[LARGE_BYTES])
    return [name, small, large * LARGE_BYTES / 1e6], [name, *grown]


def main() -> None:
    wanted = options(__doc__ or "")
    fast = Table(
        "Results as fast as they come",
        ("contender", f"values/s of {SMALL_BYTES} bytes", f"MB/s of {LARGE_BYTES // 1024} KiB"),
    )
    slow = Table(
        "A reader that takes one value of 64 KiB every 20 ms", ("contender", "writer MB more", "reader MB more")
    )
    for name in CONTENDERS:
        if wanted.only and not any(part in name for part in wanted.only):
            continue
        say(name)
        try:
            with Processes() as processes:
                rate, memory = measure(name, processes, wanted)
        except (RuntimeError, ImportError) as exc:
            fast.notes.append(f"{name} could not be measured: {exc}")
            continue
        fast.add(*rate)
        slow.add(*memory)
    show("bench_stream", [fast, slow], as_json=wanted.json)


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[2] in ("serve", "call"):
        contender = CONTENDERS[sys.argv[1]]()
        (contender.serve if sys.argv[2] == "serve" else contender.call)(int(sys.argv[3]))
    else:
        main()
