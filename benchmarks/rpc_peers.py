"""The contenders of bench_rpc.py, one class each: how it serves an echo, and how it calls one.

    python benchmarks/rpc_peers.py NAME serve PORT      until it is ended
    python benchmarks/rpc_peers.py NAME call PORT       says "ready", then answers a Job per line with a Sheet per line

Each contender runs in two processes of its own, and is set up the way its own documentation would for speed: bytes stay
bytes (no protobuf, no base64), and many calls in flight use whatever it has for that.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

WINDOW: Final = 256
HOST: Final = "127.0.0.1"
FIRST_ANSWER_S: Final = 20.0  # a server's imports, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Echo `size` bytes for `seconds`, one after another, or with WINDOW calls in flight."""

    size: int
    seconds: float
    windowed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What came of it. `latencies_us` only of calls one after another."""

    calls: int
    seconds: float
    latencies_us: list[float]


def one_by_one(call: Callable[[bytes], Any], job: Job) -> Sheet:
    """For clients that block."""
    payload = bytes(job.size)
    latencies: list[float] = []
    begun = now = time.perf_counter()
    while now - begun < job.seconds:
        answer = call(payload)
        before, now = now, time.perf_counter()
        latencies.append((now - before) * 1e6)
    assert len(answer) == job.size
    return Sheet(calls=len(latencies), seconds=now - begun, latencies_us=latencies)


async def one_by_one_async(call: Callable[[bytes], Awaitable[Any]], job: Job) -> Sheet:
    payload = bytes(job.size)
    latencies: list[float] = []
    begun = now = time.perf_counter()
    while now - begun < job.seconds:
        answer = await call(payload)
        before, now = now, time.perf_counter()
        latencies.append((now - before) * 1e6)
    assert len(answer) == job.size
    return Sheet(calls=len(latencies), seconds=now - begun, latencies_us=latencies)


async def in_flight_async(call: Callable[[bytes], Awaitable[Any]], job: Job) -> Sheet:
    """WINDOW tasks, each calling one after another."""
    payload = bytes(job.size)
    begun = time.perf_counter()
    end = begun + job.seconds

    async def worker() -> int:
        calls = 0
        while time.perf_counter() < end:
            await call(payload)
            calls += 1
        return calls

    calls = sum(await asyncio.gather(*(worker() for _ in range(WINDOW))))
    return Sheet(calls=calls, seconds=time.perf_counter() - begun, latencies_us=[])


class Contender:
    """One way to call. `windowed`, `large`: whether the job with many in flight and the one with 1 MB make sense for it."""

    windowed: ClassVar[bool] = True
    large: ClassVar[bool] = True

    def serve(self, port: int) -> None:
        """Echo until the process is ended."""
        raise NotImplementedError

    def call(self, port: int) -> None:
        """Connect, then `work` through jobs."""
        raise NotImplementedError


def until_answered(ask: Callable[[], Any], *absent: type[Exception]) -> Any:
    """What `ask` gives, as soon as it no longer raises one of `absent`: the server is still importing."""
    deadline = time.monotonic() + FIRST_ANSWER_S
    while True:
        try:
            return ask()
        except absent:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


async def until_answered_async(ask: Callable[[], Awaitable[Any]], *absent: type[Exception]) -> Any:
    """The same on an event loop."""
    deadline = time.monotonic() + FIRST_ANSWER_S
    while True:
        try:
            return await ask()
        except absent:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


def work(do: Callable[[Job], Sheet]) -> None:
    """The loop of a client that blocks: jobs from stdin, sheets to stdout. The first call waits for the server."""
    do(Job(size=64, seconds=0.1, windowed=False))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(do(Job(**json.loads(line))))), flush=True)


async def work_async(call: Callable[[bytes], Awaitable[Any]]) -> None:
    """The same for a client on an event loop, which runs on between jobs."""

    async def do(job: Job) -> Sheet:
        return await (in_flight_async if job.windowed else one_by_one_async)(call, job)

    await do(Job(size=64, seconds=0.1, windowed=False))
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(asdict(await do(Job(**json.loads(line))))), flush=True)


class RawDealerRouter(Contender):
    """The least that pyzmq can do with many calls in flight: blocking sockets, no protocol, no loop."""

    large = False

    def serve(self, port: int) -> None:
        import zmq

        router = zmq.Context().socket(zmq.ROUTER)
        router.bind(f"tcp://{HOST}:{port}")
        while True:
            router.send_multipart(router.recv_multipart())

    def call(self, port: int) -> None:
        import zmq

        dealer = zmq.Context().socket(zmq.DEALER)
        dealer.connect(f"tcp://{HOST}:{port}")

        def call(payload: bytes) -> bytes:
            dealer.send(payload)
            return dealer.recv()

        def in_flight(job: Job) -> Sheet:
            payload, calls = bytes(job.size), 0
            begun = time.perf_counter()
            for _ in range(WINDOW):
                dealer.send(payload)
            while time.perf_counter() - begun < job.seconds:
                for _ in range(WINDOW):
                    dealer.recv()
                    dealer.send(payload)
                calls += WINDOW
            for _ in range(WINDOW):
                dealer.recv()
            return Sheet(calls=calls + WINDOW, seconds=time.perf_counter() - begun, latencies_us=[])

        work(lambda job: in_flight(job) if job.windowed else one_by_one(call, job))


class RawReqRep(Contender):
    """The least for one call after another; large frames are not copied."""

    windowed = False

    def serve(self, port: int) -> None:
        import zmq

        def echo(rep: zmq.Socket[Any], *, copy: bool) -> None:
            while True:
                frame: Any = rep.recv(copy=copy)
                rep.send(frame, copy=copy)

        context = zmq.Context()
        small, large = context.socket(zmq.REP), context.socket(zmq.REP)
        small.bind(f"tcp://{HOST}:{port}")
        large.bind(f"tcp://{HOST}:{port + 1}")
        threading.Thread(target=echo, args=(large,), kwargs={"copy": False}, daemon=True).start()
        echo(small, copy=True)

    def call(self, port: int) -> None:
        import zmq

        context = zmq.Context()
        small, large = context.socket(zmq.REQ), context.socket(zmq.REQ)
        small.connect(f"tcp://{HOST}:{port}")
        large.connect(f"tcp://{HOST}:{port + 1}")

        def call(payload: bytes) -> Any:
            if len(payload) > 10_000:
                large.send(payload, copy=False)
                return large.recv(copy=False)
            small.send(payload)
            return small.recv()

        work(lambda job: one_by_one(call, job))


class ZeroRpc(Contender):
    """zerorpc: msgpack over ZeroMQ on gevent; many calls are many greenlets."""

    def serve(self, port: int) -> None:
        import zerorpc

        class Echo:
            def echo(self, payload: bytes) -> bytes:
                return payload

        server = zerorpc.Server(Echo(), heartbeat=None)
        server.bind(f"tcp://{HOST}:{port}")
        server.run()

    def call(self, port: int) -> None:
        import gevent
        import zerorpc

        client = zerorpc.Client(timeout=FIRST_ANSWER_S, heartbeat=None)
        client.connect(f"tcp://{HOST}:{port}")

        def in_flight(job: Job) -> Sheet:
            payload = bytes(job.size)
            begun = time.perf_counter()
            end = begun + job.seconds

            def worker() -> int:
                calls = 0
                while time.perf_counter() < end:
                    client.echo(payload)
                    calls += 1
                return calls

            workers = [gevent.spawn(worker) for _ in range(WINDOW)]
            gevent.joinall(workers, raise_error=True)
            return Sheet(calls=sum(w.value for w in workers), seconds=time.perf_counter() - begun, latencies_us=[])

        work(lambda job: in_flight(job) if job.windowed else one_by_one(client.echo, job))


class Pyro(Contender):
    """Pyro5 with its msgpack serializer (serpent, its default, turns bytes into base64). A proxy has one call in flight, so
    many calls are many threads with a proxy each."""

    server_type: ClassVar[str] = "multiplex"

    def serve(self, port: int) -> None:
        import Pyro5.api

        Pyro5.api.config.SERVERTYPE = self.server_type
        Pyro5.api.config.SERIALIZER = "msgpack"

        @Pyro5.api.expose
        class Echo:
            def echo(self, payload: bytes) -> bytes:
                return payload

        daemon = Pyro5.api.Daemon(host=HOST, port=port)
        daemon.register(Echo(), "echo")
        daemon.requestLoop()

    def call(self, port: int) -> None:
        import Pyro5.api
        import Pyro5.errors

        Pyro5.api.config.SERIALIZER = "msgpack"

        def connect() -> Any:
            proxy = Pyro5.api.Proxy(f"PYRO:echo@{HOST}:{port}")
            until_answered(lambda: proxy.echo(b""), Pyro5.errors.CommunicationError)
            return proxy

        def in_flight(job: Job) -> Sheet:
            payload, calls, connected = bytes(job.size), [0] * WINDOW, threading.Barrier(WINDOW + 1)
            stop = threading.Event()

            def worker(n: int) -> None:
                with connect() as proxy:
                    connected.wait()
                    while not stop.is_set():
                        proxy.echo(payload)
                        calls[n] += 1

            workers = [threading.Thread(target=worker, args=(n,), daemon=True) for n in range(WINDOW)]
            for thread in workers:
                thread.start()
            connected.wait()
            begun = time.perf_counter()
            time.sleep(job.seconds)
            stop.set()
            for thread in workers:
                thread.join()
            return Sheet(calls=sum(calls), seconds=time.perf_counter() - begun, latencies_us=[])

        proxy = connect()
        work(lambda job: in_flight(job) if job.windowed else one_by_one(proxy.echo, job))


class Grpc(Contender):
    """grpcio's asyncio API with a generic handler: bytes in, bytes out, no protobuf."""

    method: ClassVar[str] = "/bench.Echo/Echo"

    def serve(self, port: int) -> None:
        import grpc

        async def echo(request: bytes, _context: Any) -> bytes:
            return request

        async def main() -> None:
            server = grpc.aio.server()
            handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
            server.add_insecure_port(f"{HOST}:{port}")
            await server.start()
            await server.wait_for_termination()

        asyncio.run(main())

    def call(self, port: int) -> None:
        import grpc

        async def main() -> None:
            async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
                echo = channel.unary_unary(self.method)
                await echo(b"", wait_for_ready=True, timeout=FIRST_ANSWER_S)
                await work_async(echo)

        asyncio.run(main())


class Xoscar(Contender):
    """xoscar: actors on asyncio with its own TCP protocol and pickle."""

    def serve(self, port: int) -> None:
        import xoscar

        class Echo(xoscar.Actor):  # type: ignore[misc]
            async def echo(self, payload: bytes) -> bytes:
                return payload

        async def main() -> None:
            pool = await xoscar.create_actor_pool(f"{HOST}:{port}", n_process=0)
            await xoscar.create_actor(Echo, address=pool.external_address, uid="echo")
            await pool.join()

        asyncio.run(main())

    def call(self, port: int) -> None:
        import xoscar

        async def main() -> None:
            address = f"{HOST}:{port}"
            echo = await until_answered_async(
                lambda: xoscar.actor_ref(uid="echo", address=address), OSError, xoscar.ActorNotExist
            )
            await work_async(echo.echo)

        asyncio.run(main())


class Nats(Contender):
    """nats-py: request and reply by way of a nats-server, which runs beside."""

    def serve(self, port: int) -> None:
        import nats

        found = shutil.which("nats-server", path="/usr/sbin:/usr/local/bin:/usr/bin")
        if found is None:
            raise RuntimeError("there is no nats-server; install Debian's package of that name")

        async def main() -> None:
            client = await until_answered_async(
                lambda: nats.connect(f"nats://{HOST}:{port}"), OSError, nats.errors.Error
            )

            async def answer(message: Any) -> None:
                await message.respond(message.data)

            await client.subscribe("echo", cb=answer)
            await asyncio.Event().wait()

        with subprocess.Popen([found, "-a", HOST, "-p", str(port)], stderr=subprocess.DEVNULL):
            asyncio.run(main())

    def call(self, port: int) -> None:
        import nats

        async def main() -> None:
            client = await until_answered_async(
                lambda: nats.connect(f"nats://{HOST}:{port}"), OSError, nats.errors.Error
            )

            async def echo(payload: bytes) -> bytes:
                return bytes((await client.request("echo", payload, timeout=5)).data)

            await until_answered_async(lambda: echo(b""), nats.errors.Error)
            await work_async(echo)

        asyncio.run(main())


class Ray(Contender):
    """ray: calls of an asynchronous actor. Its caller starts all of it, so the callee's CPU is not told. `pip install ray` beside."""

    def serve(self, port: int) -> None:  # noqa: ARG002 - it chooses its own
        threading.Event().wait()

    def call(self, port: int) -> None:  # noqa: ARG002
        import ray

        @ray.remote
        class Echo:
            async def echo(self, payload: bytes) -> bytes:
                return payload

        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
        actor = Echo.options(max_concurrency=WINDOW).remote()
        ray.get(actor.echo.remote(b""))

        async def main() -> None:
            await work_async(lambda payload: actor.echo.remote(payload))

        try:
            asyncio.run(main())
        finally:
            ray.shutdown()


class Agentkit(Contender):
    """Our own: an agent with one annotated handler, called by `Client`. Arguments and results are validated, every call has a
    deadline, passes admission and breaker, is counted, can be cancelled, and one in a hundred is traced."""

    trace_sample = 0.01  # as it is by default

    def serve(self, port: int) -> None:
        from agentkit import BaseAgent, rpc
        from agentkit.main import run_class

        class Echo(BaseAgent):
            @rpc(idempotent=True)
            async def echo(self, payload: bytes) -> bytes:
                return payload

        run_class(Echo, os.environ | {"PORT": str(port)})

    def call(self, port: int) -> None:
        import uvloop

        from agentkit import Client, Unreachable

        async def main() -> None:
            peers = {"Echo": f"tcp://{HOST}:{port}"}
            async with Client(peers=peers, trace_sample=self.trace_sample) as client:
                await until_answered_async(lambda: client.call("Echo", "echo", {"payload": b""}), Unreachable)
                await work_async(lambda payload: client.call("Echo", "echo", {"payload": payload}))

        uvloop.run(main())


class AgentkitUntraced(Agentkit):
    """The same without tracing."""

    trace_sample = 0
    large = False


class AgentkitTraced(Agentkit):
    """The same with a span at both ends of every call."""

    trace_sample = 1
    large = False


class AgentkitCurve(Agentkit):
    """The same agent over an encrypted connection, as machines call each other."""

    def serve(self, port: int) -> None:
        from agentkit.security.folder import KeyFolder
        from agentkit.security.keys import new_key

        folder = KeyFolder(_keys(port))
        shutil.rmtree(folder.path, ignore_errors=True)
        folder.add([new_key("bench", "agent"), new_key("operator", "operator")])
        os.environ |= {"AGENTKIT_SECURITY": "curve", "AGENTKIT_LOCAL": "curve", "AGENTKIT_KEYS": str(folder.path)}
        os.environ["AGENT_MACHINE"] = "bench"
        super().serve(port)

    def call(self, port: int) -> None:
        import uvloop

        from agentkit import CallError, Client

        async def main() -> None:
            async with Client(peers={"bench/Echo": f"tcp://{HOST}:{port}"}, keys=_keys(port)) as client:
                await until_answered_async(lambda: client.call("Echo", "echo", {"payload": b""}), CallError)
                await work_async(lambda payload: client.call("Echo", "echo", {"payload": payload}))
            shutil.rmtree(_keys(port), ignore_errors=True)

        uvloop.run(main())


def _keys(port: int) -> str:
    return f"{tempfile.gettempdir()}/agentkit-bench-keys-{port}"


class AgentkitBlocking(Agentkit):
    """The same agent, called by `BlockingClient`: no event loop on the caller's side."""

    windowed = False

    def call(self, port: int) -> None:
        from agentkit import BlockingClient, Unreachable

        with BlockingClient(peers={"Echo": f"tcp://{HOST}:{port}"}) as client:
            until_answered(lambda: client.call("Echo", "echo", {"payload": b""}), Unreachable)
            work(lambda job: one_by_one(lambda payload: client.call("Echo", "echo", {"payload": payload}), job))


CONTENDERS: Final[dict[str, type[Contender]]] = {
    "agentkit": Agentkit,
    "agentkit, tracing off": AgentkitUntraced,
    "agentkit, all traced": AgentkitTraced,
    "agentkit, CURVE": AgentkitCurve,
    "agentkit, blocking caller": AgentkitBlocking,
    "pyzmq DEALER/ROUTER": RawDealerRouter,
    "pyzmq REQ/REP": RawReqRep,
    "zerorpc": ZeroRpc,
    "Pyro5": Pyro,
    "grpcio aio": Grpc,
    "xoscar": Xoscar,
    "NATS": Nats,
    "Ray": Ray,
}


if __name__ == "__main__":
    name, role, port = sys.argv[1:]
    contender = CONTENDERS[name]()
    (contender.serve if role == "serve" else contender.call)(int(port))
