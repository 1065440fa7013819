"""What an agent tells whoever started it: ready, healthy, busy, stopping, failed. sd_notify with our own X_AGENTKIT_* fields beside.

Nothing here blocks the loop: when the other side's queue is full (it holds ten datagrams by default), what must arrive is sent
again a little later until it does, the watchdog's food too (tick.py); counters come again by themselves."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Mapping
from typing import Final

from agentkit.agent.handlers import Method, traits_of
from agentkit.health.checks import Verdict
from agentkit.resilience.deadline import DEFAULT_TIMEOUT_S
from agentkit.settings import AgentSettings
from agentkit.transport.notify import Notifier, Outcome

#: Pause before a full queue is tried again, in seconds.
RETRY_S: Final = 0.02


class Teller:
    """Belongs to the running loop."""

    def __init__(self, notifier: Notifier, settings: AgentSettings) -> None:
        self._notifier = notifier
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._state: dict[str, object] = {}
        self.takes_config = False  #: its class has `on_config`
        self._unsent: deque[tuple[Mapping[str, object], tuple[int, ...]]] = deque()

    def ready(
        self, methods: Mapping[str, Method], verdict: Verdict, listeners: Mapping[str, socket.socket] | None = None
    ) -> None:
        """It takes calls. `listeners`: for a node that does not have them (FDSTORE): it gets duplicates to keep."""
        timeouts = {
            name: method.options.timeout_s
            for name, method in methods.items()
            if method.options.timeout_s != DEFAULT_TIMEOUT_S
        }
        fields: dict[str, object] = {
            "X_AGENTKIT_ID": self._settings.id,
            "X_AGENTKIT_INCARNATION": self._settings.incarnation,
            "X_AGENTKIT_TIMEOUTS": json.dumps(timeouts),
            "X_AGENTKIT_TRAITS": json.dumps(traits_of(methods)),
            **_health(verdict),
            **self._state,
            **({"X_AGENTKIT_CONFIG": 1} if self.takes_config else {}),
            "READY": 1,
        }
        if listeners:
            fields |= {"FDSTORE": 1, "FDNAME": ":".join(listeners)}
        self._tell(fields, tuple(sock.fileno() for sock in (listeners or {}).values()))

    def health(self, verdict: Verdict) -> None:
        """The verdict has changed."""
        self._tell(_health(verdict))

    def alive(self) -> bool:
        """The loop still turns. False: there was no room for that, and a little later there may be."""
        return self._notifier.send_now({"WATCHDOG": 1}) is not Outcome.FULL

    def stopping(self) -> None:
        """It takes no new calls."""
        self._tell({"STOPPING": 1})

    def error(self, severity: str, message: str) -> None:
        """The last error, for `status`. From any thread."""
        self._notifier.send_now({"X_AGENTKIT_ERROR": f"{severity}: {message}"})

    def counters(self, requests: int, errors: int) -> None:
        """How much was served so far."""
        self._notifier.send_now({"X_AGENTKIT_REQUESTS": requests, "X_AGENTKIT_ERRORS": errors})

    def state(self, summary: Mapping[str, object]) -> None:
        """How the agent's state is kept (agent.state_keeper); a node that comes later is told with READY."""
        self._state = {"X_AGENTKIT_STATE": json.dumps(summary)}
        self._tell(self._state)

    def events(self, summary: Mapping[str, object]) -> None:
        """What was published and received so far (agent.events)."""
        self._notifier.send_now({"X_AGENTKIT_EVENTS": json.dumps(summary)})

    def sleep(self, summary: Mapping[str, object]) -> None:
        """It sleeps, is awake again, or something keeps it awake (agent.hibernation)."""
        told: dict[str, object] = {"X_AGENTKIT_SLEEP": json.dumps(summary)}
        if self._settings.node_socket is None:  # systemd shows this line, and knows nothing of the other
            told["STATUS"] = _in_words(summary)
        self._tell(told)

    def close(self) -> None:
        """What was not sent by now is not sent."""
        self._unsent.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self, fields: Mapping[str, object], fds: tuple[int, ...] = ()) -> None:
        self._unsent.append((fields, fds))
        if self._timer is None:
            self._send_unsent()

    def _send_unsent(self) -> None:
        """In order; the first that finds no room waits, and the others behind it."""
        self._timer = None
        while self._unsent:
            fields, fds = self._unsent[0]
            if self._notifier.send_now(fields, fds=fds) is Outcome.FULL:
                self._timer = self._loop.call_later(RETRY_S, self._send_unsent)
                return
            self._unsent.popleft()


def _health(verdict: Verdict) -> dict[str, object]:
    return {"X_AGENTKIT_HEALTH": verdict.health.value, "X_AGENTKIT_REASON": verdict.reason}


def _in_words(sleep: Mapping[str, object]) -> str:
    how = f"asleep ({sleep['depth']})" if sleep["depth"] else "awake"
    return f"{how}: {sleep['kept_by']}" if sleep["kept_by"] else how
