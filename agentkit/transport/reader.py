"""Drains one ZeroMQ socket on the event loop.

The descriptor of a ZeroMQ socket is edge triggered, and *every* operation on the socket (a send too) may eat the edge. So the
rule is: after any operation, one check is scheduled (`poke`), and a drain that stops before it saw `Again` schedules itself.
Without the rule 1,079 of 8,000 calls stalled, with it none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import zmq

from agentkit.observe.log import get_logger
from agentkit.transport.frames import Frames, is_readable, receive

log = get_logger("agentkit.reader")

#: Messages taken in one turn of the loop, so that one busy socket leaves room for timers and other sockets.
DRAIN_LIMIT: Final = 64


class Reader:
    """Calls `on_message(frames)` for everything that arrives on `sock`, until closed. Belongs to the running loop."""

    def __init__(
        self,
        sock: zmq.Socket[Any],
        on_message: Callable[[Frames], None],
        *,
        take: Callable[[zmq.Socket[Any]], Frames] = receive,
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._fd: int = sock.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._is_scheduled = False
        self._is_closed = False
        self._has_enough = False
        self._loop.add_reader(self._fd, self._drain)
        self.poke()

    def poke(self) -> None:
        """To be called after every operation on the socket: what it may have hidden is found in the next turn."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._drain)

    def enough(self) -> None:
        """The message being handled is the last of this turn: what was garbage must not keep good work waiting."""
        self._has_enough = True

    def drain_now(self) -> int:
        """Take what is there at once; how many messages that was. For the safety tick and before closing."""
        return self._drain()

    def close(self) -> None:
        """Stops listening; the socket stays its owner's."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._fd)

    def _drain(self) -> int:
        self._is_scheduled = False
        taken = 0
        take, sock, on_message = self._take, self._sock, self._on_message
        while not self._is_closed:
            if taken == DRAIN_LIMIT or self._has_enough:
                self._has_enough = False
                self.poke()
                break
            try:
                # Nothing left is what a drain finds after most wake-ups that brought one message, and after most sends.
                if taken < 2 and not is_readable(sock):
                    break
                frames = take(sock)
            except zmq.Again:
                break
            except zmq.ZMQError:
                # closed or terminated under us: the owner knows, there is nothing left to read
                self.close()
                break
            taken += 1
            try:
                on_message(frames)
            except Exception as exc:
                # A message that trips us up must not end the draining: what lies behind it would wait for the next edge
                log.error("reader.message_failed", exc_info=exc)
        return taken
