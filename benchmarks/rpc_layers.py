"""Where the microseconds of CPU time of one of our calls go: every step of a 64-byte echo that can run without a socket, by itself.

What is left of the CPU time that bench_rpc.py sees in the two processes is the event loop, the sockets (system calls and
libzmq's own threads) and the switching between them; the raw pyzmq rows show how much of that nobody can avoid.
"""

from __future__ import annotations

import asyncio
import time
import timeit
from collections.abc import Callable, Mapping
from typing import Any, Final

import uvloop
from common import Table, median

from agentkit import BaseAgent, rpc
from agentkit.agent.dispatch import Dispatcher
from agentkit.agent.handlers import Method
from agentkit.errors import CallError
from agentkit.observe.metrics import AgentMetrics
from agentkit.transport.peer import Inbound, Peer
from agentkit.wire import codec, values
from agentkit.wire.envelope import Limits

PAYLOAD: Final = bytes(64)
ARGUMENTS: Final = {"payload": PAYLOAD}


class Echo(BaseAgent):
    @rpc(idempotent=True)
    async def echo(self, payload: bytes) -> bytes:
        return payload


class _Answers:
    """In the place of an inbox: notes that the last of a number of requests was answered."""

    def __init__(self, expected: int) -> None:
        self.missing = expected
        self.done = asyncio.get_running_loop().create_future()

    def answer(self, _inbound: Inbound, _value: object) -> None:
        self.missing -= 1
        if not self.missing:
            self.done.set_result(None)

    def refuse(self, _inbound: Inbound, error: CallError) -> None:
        self.done.set_exception(error)


def _time_us(step: Callable[[], Any], repetitions: int, count: int) -> float:
    return median(timeit.repeat(step, timer=time.process_time, number=count, repeat=repetitions)) / count * 1e6


async def _dispatch_us(count: int) -> float:
    """One request through the dispatcher, up to the answer given to the inbox: `count` of them, 64 at a time."""
    metrics = AgentMetrics("Echo", Echo.methods)
    dispatcher = Dispatcher(Echo.__new__(Echo), Echo.methods, metrics)
    peer = Peer(b"", "bench", "local/bench", Limits())
    body = values.Packer().pack(ARGUMENTS)
    begun = time.process_time()
    for first in range(0, count, 64):
        answers = dispatcher.answers = _Answers(min(64, count - first))
        for id in range(first, first + answers.missing):
            dispatcher.request(Inbound(peer, id + 1, "echo", 5000, {}, body, []))
        await answers.done
    took_s = time.process_time() - begun
    dispatcher.close()
    return took_s / count * 1e6


def layers(totals_us: Mapping[str, float], *, quick: bool) -> Table:
    """One row per step, in the order in which a call takes them; then what is left of `totals_us` ("caller", "callee")."""
    repetitions, count = (3, 2_000) if quick else (7, 20_000)
    method: Method = Echo.methods["echo"]
    metrics = AgentMetrics("Echo", Echo.methods)
    pack = values.Packer().pack
    body, answer = pack(ARGUMENTS), pack(PAYLOAD)
    request, reply = pack(codec.request_fields(1, "echo", 5000, {})), pack(codec.reply_fields(1))

    def us(step: Callable[[], Any]) -> float:
        return _time_us(step, repetitions, count)

    unpacked, check = us(lambda: values.unpack(body)), us(lambda: method.check(ARGUMENTS))
    result, counted = us(lambda: method.plain_result(PAYLOAD)), us(lambda: metrics.finished("echo", 0.001, "ok"))
    dispatch = median([uvloop.run(_dispatch_us(count)) for _ in range(repetitions)])
    table = Table("One call of ours, layer by layer (64 bytes)", ("step", "where", "us"))
    for step, where, cost in (
        ("arguments to msgpack", "caller", us(lambda: pack(ARGUMENTS))),
        ("header of the request", "caller", us(lambda: pack(codec.request_fields(1, "echo", 5000, {})))),
        ("read the header", "callee", us(lambda: codec.decode(request))),
        ("arguments from msgpack", "callee", unpacked),
        ("check arguments against annotations", "callee", check),
        ("gate, deadline, task, context, handler", "callee", dispatch - unpacked - check - result - counted),
        ("check the result", "callee", result),
        ("count it", "callee", counted),
        ("result to msgpack", "callee", us(lambda: pack(PAYLOAD))),
        ("header of the reply", "callee", us(lambda: pack(codec.reply_fields(1)))),
        ("read the header", "caller", us(lambda: codec.decode(reply))),
        ("result from msgpack", "caller", us(lambda: values.unpack(answer))),
    ):
        table.add(step, where, cost)
    for where, total in totals_us.items():
        steps = sum(cost for _, place, cost in table.rows if place == where)
        table.add("event loop, sockets, routing, tasks: the rest of what was measured", where, total - steps)
    return table
