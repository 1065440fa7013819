"""The contenders of bench_events.py, one class each: a server between them, one publisher, many subscribers.

    python benchmarks/event_peers.py NAME serve PLACE               until it is ended; nothing for those that bring a server
    python benchmarks/event_peers.py NAME subscribe PLACE COUNT     COUNT subscribers; says the round that all of them have
    python benchmarks/event_peers.py NAME publish PLACE             "ready", then for each line "ROUND EVENTS" publishes so many

The last event of a round says so; a subscribing process answers "ROUND RECEIVED" when each of its subscribers has that one.
PLACE is a folder, in which the port stands in a file for those that need one.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar, Final

SIZE: Final = 200  # of a payload, in bytes
HOST: Final = "127.0.0.1"
#: The round that is repeated until every subscriber is there.
WARM_UP: Final = 0


class Tally:
    """What the subscribers of one process have of the current round."""

    def __init__(self, subscribers: int) -> None:
        self._subscribers = subscribers
        self._round = -1
        self._received = 0
        self._done: set[int] = set()

    def count(self, subscriber: int, round: int, is_last: bool) -> None:
        if round < self._round:
            return  # of the warm-up: another subscriber is further on
        if round > self._round:
            self._round, self._received, self._done = round, 0, set()
        self._received += 1
        if is_last:
            self._done.add(subscriber)
            if len(self._done) == self._subscribers:
                print(round, self._received, flush=True)
                self._received, self._done = 0, set()


def payload(round: int, is_last: bool) -> bytes:
    """For contenders that send bytes: the round, whether it is the last of it, filling."""
    return b"%d %d " % (round, is_last) + b"x" * (SIZE - 8)


def read(data: bytes) -> tuple[int, bool]:
    round, is_last, _ = data.split(b" ", 2)
    return int(round), is_last == b"1"


class Contender:
    """One way to publish and subscribe."""

    is_served: ClassVar[bool] = True  #: whether `serve` is a process of its own

    def __init__(self, place: Path) -> None:
        self.place = place

    @property
    def port(self) -> int:
        return int((self.place / "port").read_text())

    def serve(self) -> None:
        """Be what stands between publisher and subscribers, until the process is ended."""
        raise NotImplementedError

    def subscribe(self, count: int) -> None:
        """`count` subscribers with a connection each, counting into one Tally."""
        raise NotImplementedError

    def publish(self) -> None:
        """Publish the rounds that stdin asks for."""
        raise NotImplementedError


def rounds(publish: Callable[[int, int], None]) -> None:
    """The loop of a publisher that blocks."""
    print("ready", flush=True)
    for line in sys.stdin:
        round, events = map(int, line.split())
        publish(round, events)


async def rounds_async(publish: Callable[[int, int], Awaitable[None]]) -> None:
    """The same on an event loop, which runs on between rounds."""
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        round, events = map(int, line.split())
        await publish(round, events)


# --- raw pyzmq --------------------------------------------------------------------------------------------------------


class Raw(Contender):
    """PUSH to a proxy, PUB to SUB from there: the same path as ours, without topics' patterns, numbers, checks."""

    def _endpoint(self, name: str) -> str:
        return f"ipc://{self.place}/{name}"

    def serve(self) -> None:
        import zmq

        context = zmq.Context()
        taken, given = context.socket(zmq.PULL), context.socket(zmq.PUB)
        taken.rcvhwm = given.sndhwm = 4096
        taken.bind(self._endpoint("in"))
        given.bind(self._endpoint("out"))
        zmq.proxy(taken, given)

    def subscribe(self, count: int) -> None:
        import zmq

        context, poller, tally = zmq.Context(), zmq.Poller(), Tally(count)
        numbers = {}
        for number in range(count):
            sock = context.socket(zmq.SUB)
            sock.rcvhwm = 4096
            sock.subscribe(b"")
            sock.connect(self._endpoint("out"))
            poller.register(sock, zmq.POLLIN)
            numbers[sock] = number
        while True:
            for sock, _ in poller.poll():
                try:
                    for _ in range(64):
                        tally.count(numbers[sock], *read(sock.recv(zmq.NOBLOCK)))
                except zmq.Again:
                    pass

    def publish(self) -> None:
        import zmq

        sock = zmq.Context().socket(zmq.PUSH)
        sock.sndhwm = 1024
        sock.connect(self._endpoint("in"))

        def publish(round: int, events: int) -> None:
            for n in range(events):
                sock.send(payload(round, n == events - 1))

        rounds(publish)


# --- agentkit ---------------------------------------------------------------------------------------------------------


class Ours(Contender):
    """A node's relay, and what agents have of events: checked, numbered, counted, handled by `@subscribe` methods."""

    def serve(self) -> None:
        from agentkit.events.delivery import MAX_EVENT_BYTES
        from agentkit.transport.relay import Relay

        relay = Relay(self.place, HOST, max_frame_bytes=MAX_EVENT_BYTES)
        threading.Event().wait()
        relay.close()

    def subscribe(self, count: int) -> None:
        import uvloop

        from agentkit.agent.subscriptions import subscribe, subscriptions_of
        from agentkit.events.delivery import MAX_EVENT_BYTES
        from agentkit.events.receiver import Receiver
        from agentkit.transport.pubsub import Endpoints, Subscriber

        tally = Tally(count)
        event = event_type()

        class Handles:
            def __init__(self, number: int) -> None:
                self.number = number

            async def on_made(self, made) -> None:  # type: ignore[no-untyped-def]
                tally.count(self.number, made.round, made.is_last)

        Handles.on_made.__annotations__["made"] = event
        Handles.on_made = subscribe("bench.*")(Handles.on_made)  # type: ignore[method-assign]

        async def receive() -> None:
            receivers = []
            for number in range(count):
                receiver = Receiver(
                    [(one.pattern, one.offer) for one in subscriptions_of(Handles(number), lambda *_: True)]
                )
                endpoints = Endpoints.below(self.place)[1:]
                receivers.append(
                    Subscriber(
                        endpoints, receiver.prefixes, receiver.take, max_frame_bytes=MAX_EVENT_BYTES,
                    )
                )  # fmt: skip
            await asyncio.Event().wait()

        uvloop.run(receive())

    def publish(self) -> None:
        import uvloop

        from agentkit.events.publisher import Publisher
        from agentkit.transport.pubsub import Endpoints, Sender

        event = event_type()

        async def main() -> None:
            publisher = Publisher("bench/Publisher", 1, Sender(Endpoints.below(self.place).publish).send)
            filling = "x" * (SIZE - 30)

            async def publish(round: int, events: int) -> None:
                for n in range(events):
                    await publisher.publish("bench.made", event(round=round, is_last=n == events - 1, filling=filling))

            await rounds_async(publish)

        uvloop.run(main())


def event_type():  # type: ignore[no-untyped-def]
    """Made here: contenders import nothing of each other."""
    from agentkit import Event

    class Made(Event, topic="bench.made"):
        round: int
        is_last: bool
        filling: str

    return Made


# --- NATS -------------------------------------------------------------------------------------------------------------


class Nats(Contender):
    """nats-py and nats-server, with bytes; subscribers have callbacks, as its documentation shows."""

    is_served = False  # bench_events.py starts nats-server itself

    def subscribe(self, count: int) -> None:
        import nats
        import uvloop
        from nats.aio.msg import Msg

        tally = Tally(count)

        async def receive() -> None:
            connections = []
            for number in range(count):
                connection = await nats.connect(f"nats://{HOST}:{self.port}")

                async def take(message: Msg, number: int = number) -> None:
                    tally.count(number, *read(message.data))

                await connection.subscribe("bench.*", cb=take)
                connections.append(connection)
            await asyncio.Event().wait()

        uvloop.run(receive())

    def publish(self) -> None:
        import nats
        import uvloop

        async def main() -> None:
            connection = await nats.connect(f"nats://{HOST}:{self.port}")

            async def publish(round: int, events: int) -> None:
                for n in range(events):
                    await connection.publish("bench.made", payload(round, n == events - 1))
                await connection.flush()

            await rounds_async(publish)

        uvloop.run(main())


CONTENDERS: Final[dict[str, type[Contender]]] = {
    "pyzmq PUSH/PUB/SUB": Raw,
    "agentkit": Ours,
    "NATS (nats-py)": Nats,
}


def main() -> None:
    name, role, place, *count = sys.argv[1:]
    contender = CONTENDERS[name](Path(place))
    match role:
        case "serve":
            contender.serve()
        case "subscribe":
            contender.subscribe(int(count[0]))
        case "publish":
            contender.publish()


if __name__ == "__main__":
    main()
