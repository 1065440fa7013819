"""The control conversation with the node of another machine, as startup.control has it on this one: AK1, with an operator's key.

Blocking, like `NodeConnection`. Imports ZeroMQ and pydantic: only commands that reach for another machine pay for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.errors import CallError, DeadlineExceeded, Draining, NoNode, PeerLost, Unreachable
from agentkit.names import AgentId, AgentName, MachineName
from agentkit.resilience.deadline import Deadline
from agentkit.transport.blocking import QUIET, BlockingChannel
from agentkit.transport.dealer import Dial
from agentkit.transport.peer import Identity
from agentkit.wire import values
from agentkit.wire.envelope import MAX_BUDGET_MS
from agentkit.wire.frames import FrameBuffer
from startup.control import ANSWER_WITHIN_S, refusal
from startup.errors import NodeLost

#: A node that is there answers within this, in seconds: connecting, both handshakes, and one question.
REACHED_WITHIN_S: Final = 4.0
#: Silence after which a node is asked for a sign of life while it tells, and after which it is lost, in seconds.
PING_AFTER_S: Final = 2.0
LOST_AFTER_S: Final = 10.0
#: A conversation that goes on telling ends with the connection; AK1 wants a deadline for every call.
_LONGEST_S: Final = MAX_BUDGET_MS / 1000 - 1
#: The method of startup.node.remote_control.
_CONTROL: Final = "control"


class RemoteTalk:
    """One open conversation. Implements startup.control.Talk."""

    def __init__(self, channel: BlockingChannel, *, timeout_s: float) -> None:
        self._channel = channel
        self._timeout_s = timeout_s

    def ask(self, operation: str, **arguments: Any) -> Any:
        """As NodeConnection.ask; also Forbidden, when the key is no operator's."""
        body = values.pack({"operation": operation, "arguments": arguments})
        try:
            kind, value = self._channel.request(_CONTROL, body, Deadline.after(self._timeout_s))
        except DeadlineExceeded as exc:
            raise TimeoutError(
                f"{self._channel.label} did not answer `{operation}` within {self._timeout_s:g} s"
            ) from exc
        except (PeerLost, Draining, Unreachable) as exc:
            raise NodeLost(f"{operation}: {exc.message}") from exc
        if kind == "error":
            raise refusal(value)
        return value

    def events(self, operation: str, *, tick_s: float | None = None, **arguments: Any) -> Iterator[Any]:
        """As NodeConnection.events."""
        body = values.pack({"operation": operation, "arguments": arguments})
        buffer = FrameBuffer()
        try:
            for told in self._channel.stream(_CONTROL, body, Deadline.after(_LONGEST_S), tick_s=tick_s):
                if told is QUIET:
                    yield None
                    continue
                for _, kind, value in buffer.feed(told):
                    if kind == "error":
                        raise refusal(value)
                    yield value
        except (PeerLost, Draining, Unreachable):
            return

    def descriptors(self) -> tuple[int, ...]:
        return self._channel.descriptors()

    def has_arrived(self) -> bool:
        return self._channel.has_arrived()

    def is_silent(self) -> bool:
        """A cut link tells nobody: it is asked for a sign of life, and lost when none has come for long."""
        silent_s = now_s() - self._channel.heard_s
        if silent_s >= PING_AFTER_S and not self._channel.has_arrived():
            self._channel.ping()
        return silent_s >= LOST_AFTER_S

    def close(self) -> None:
        self._channel.close()


@dataclass(frozen=True, slots=True)
class RemoteDoor:
    """The inbox of another machine's node."""

    machine: str
    place: str  #: tcp://host:port
    dial: Dial | None = None  #: the operator's key, and the one that the node must have

    def open(self, *, timeout_s: float = ANSWER_WITHIN_S) -> RemoteTalk:
        me = Identity(AgentId(MachineName("operator"), AgentName(f"control-{os.getpid()}")))
        channel = BlockingChannel(f"the node of {self.machine}", self.place, me, dial=self.dial)
        try:
            RemoteTalk(channel, timeout_s=min(timeout_s, REACHED_WITHIN_S)).ask("ping")
        except (CallError, NodeLost, TimeoutError) as exc:
            channel.close()
            why = exc.__cause__ if isinstance(exc.__cause__, CallError) else exc
            raise NoNode(f"{getattr(why, 'message', why)} ({self.place})") from exc
        except BaseException:
            channel.close()
            raise
        return RemoteTalk(channel, timeout_s=timeout_s)

    def is_gone(self) -> bool:
        """It can't be told from a machine that is away."""
        return False
