"""How many connections an inbox has, and when to look whose went: a ROUTER is told that one ended, but not which."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import zmq

from agentkit.transport.endpoints import Endpoints
from agentkit.transport.monitor import TURNED_AWAY, Monitor

#: After a connection went, its pipe needs a moment to go from the routing table, in seconds.
PROBE_DELAY_S: Final = 0.01

#: A handshake that fails is told twice, as itself and as DISCONNECTED: only the latter counts.
_EVENTS: Final = int(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | TURNED_AWAY)


class Connections:
    """Those of one ROUTER. Belongs to the running loop."""

    def __init__(
        self,
        sock: zmq.Socket[Any],
        endpoints: Endpoints,
        *,
        on_gone: Callable[[], None],
        probe: Callable[[], None],
    ) -> None:
        """`on_gone`: one ended. `probe`: a moment later, to find whose it was by sending to everybody."""
        self.open = 0  #: accepted, and not ended
        self._endpoints = endpoints
        self._on_gone = on_gone
        self._probe = probe
        self._loop = asyncio.get_running_loop()
        self._probe_timer: asyncio.TimerHandle | None = None
        self._monitor = Monitor(sock, _EVENTS, self._on_event)

    def drain_now(self) -> None:
        """Takes what an unseen edge left lying."""
        self._monitor.drain_now()

    def close(self) -> None:
        """Before the socket."""
        self._monitor.close()
        if self._probe_timer is not None:
            self._probe_timer.cancel()

    def _on_event(self, event: int, _value: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self.open += 1
        elif event == zmq.EVENT_DISCONNECTED:
            self.open -= 1
            if self._probe_timer is None:
                self._probe_timer = self._loop.call_later(PROBE_DELAY_S, self._look)
            self._on_gone()
        elif self._endpoints.door is not None:
            self._endpoints.door.note(event)

    def _look(self) -> None:
        self._probe_timer = None
        self._probe()
