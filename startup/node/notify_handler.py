"""What processes say of themselves (sd_notify and X_AGENTKIT_*), told to the reconciler."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from agentkit.names import AgentId
from agentkit.observe.log import get_logger
from startup.node.executor import Executor
from startup.node.notify import WATCHDOG, Notification
from startup.node.running import Running
from startup.node.sockets import named
from startup.node.turns import Turns
from startup.node.zygote.keeper import ZygoteKeeper
from startup.node.zygote.wire import close_all
from startup.plan import sleep_status, transitions
from startup.plan.phase import Health, Phase
from startup.plan.process import Process

log = get_logger("node.notify_handler")

#: Messages of processes that are not known yet (the zygote's word of the fork is on its way): the last so many are kept.
MAX_UNCLAIMED: Final = 2000
#: Longest text kept of what a process says, in characters.
MAX_TEXT: Final = 500

_TEXTS: Final = {"STATUS": "status_text", "X_AGENTKIT_FAILED": "excuse", "X_AGENTKIT_ERROR": "last_error"}


class NotifyHandler:
    """Hears every notification of one node."""

    def __init__(self, turns: Turns, executor: Executor, zygote: ZygoteKeeper) -> None:
        self._turns = turns
        self._core = turns.core
        self._executor = executor
        self._zygote = zygote
        self._unclaimed: deque[Notification] = deque()
        self.on_events: Callable[[AgentId, str], None] = lambda *_: None  #: an agent tells of its events
        executor.on_known = self._claim

    def hear(self, said: Notification) -> None:
        """One message. The kernel says who sent it."""
        running = self._executor.by_pid.get(said.pid)
        if running is None and said.is_guest and said.fds:
            close_all(said.fds)  # another user's processes that are no agents could leave us without descriptors
        elif running is None:
            self._unclaimed.append(said)
            if len(self._unclaimed) > MAX_UNCLAIMED:
                close_all(self._unclaimed.popleft().fds)
        elif said.fields == WATCHDOG:
            if self._core.fed(running.id, running.incarnation, self._turns.now_s()):
                self._turns.soon()
        elif said.fields.keys() == {"X_AGENTKIT_EVENTS"}:
            self.on_events(running.id, said.fields["X_AGENTKIT_EVENTS"])
        else:
            self._take(running, said)

    def close(self) -> None:
        for said in self._unclaimed:
            close_all(said.fds)
        self._unclaimed.clear()

    def _claim(self, running: Running) -> None:
        """A process is known from now on: what it said before counts."""
        if any(said.pid == running.pid for said in self._unclaimed):
            mine = [said for said in self._unclaimed if said.pid == running.pid]
            self._unclaimed = deque(said for said in self._unclaimed if said.pid != running.pid)
            for said in mine:
                self.hear(said)

    def _take(self, running: Running, said: Notification) -> None:
        if said.fds:
            self._take_sockets(running.id, said)
        now_s = self._turns.now_s()
        fields = said.fields

        def change(p: Process) -> Process:
            return heard(p, fields, now_s)

        self._turns.on(running.id, change, incarnation=running.incarnation)

    def _take_sockets(self, id: AgentId, said: Notification) -> None:
        """An agent hands its sockets to a node that may have none of them (FDSTORE=1)."""
        fds = named(said.fields.get("FDNAME", ""), said.fds)
        if not fds or self._executor.sockets.has(id):
            close_all(said.fds)
            return
        self._executor.sockets.take(id, fds)
        self._zygote.keep(str(id), self._executor.sockets.all()[id])
        log.info("agent.sockets_handed_back", agent=str(id), names=sorted(fds))


def heard(p: Process, fields: Mapping[str, str], now_s: float) -> Process:
    """What one message makes of a process: the same value when it says nothing new. Fields that can't be read are left out."""
    match fields.get("X_AGENTKIT_PHASE"):
        case "importing":
            p = transitions.progressed(p, Phase.IMPORTING, now_s)
        case "parked":
            p = transitions.progressed(p, Phase.PARKED, now_s)
        case "starting":
            p = transitions.progressed(p, Phase.STARTING, now_s)
    said = {name: value for name, value in _said(p, fields).items() if getattr(p, name) != value}
    if said:
        p = replace(p, **said)
    if fields.get("WATCHDOG") == "1":
        p = transitions.fed(p, now_s)
    if fields.get("READY") == "1":
        timeouts_s, traits = _timeouts(fields.get("X_AGENTKIT_TIMEOUTS")), _traits(fields.get("X_AGENTKIT_TRAITS"))
        p = transitions.ready(p, now_s, timeouts_s, traits)
    if fields.get("STOPPING") == "1":
        p = transitions.leaves(p, now_s)
    return p


def _said(p: Process, fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a Process that the message is about."""
    said: dict[str, Any] = {}
    for name, field in _TEXTS.items():
        if name in fields:
            said[field] = fields[name][:MAX_TEXT]
    if "X_AGENTKIT_HEALTH" in fields:
        said["health"] = _health(fields["X_AGENTKIT_HEALTH"])
        said["health_reason"] = fields.get("X_AGENTKIT_REASON", "")[:MAX_TEXT]
    if "X_AGENTKIT_SLEEP" in fields and (sleep := sleep_status.read_light(fields["X_AGENTKIT_SLEEP"])) is not None:
        said["light_sleep"] = sleep
    if "X_AGENTKIT_REQUESTS" in fields:
        said["requests"] = _count(fields["X_AGENTKIT_REQUESTS"], p.requests)
        said["errors"] = _count(fields.get("X_AGENTKIT_ERRORS", ""), p.errors)
    if fields.get("X_AGENTKIT_CONFIG") == "1":
        said["takes_config"] = True
    if "X_AGENTKIT_STATE" in fields:
        said["state"] = _state(fields["X_AGENTKIT_STATE"]) or p.state
    return said


def _health(text: str) -> Health:
    try:
        return Health(text)
    except ValueError:
        return Health.DEGRADED


def _count(text: str, otherwise: int) -> int:
    return int(text) if text.isascii() and text.isdigit() else otherwise


def _state(text: str) -> dict[str, Any]:
    """Only what `status` shows; empty: it can't be read."""
    try:
        told = json.loads(text)
        numbers = {name: float(told[name]) for name in ("bytes", "saved_s", "number") if name in told}
        texts = {name: str(told[name])[:MAX_TEXT] for name in ("store", "fallback", "trouble") if name in told}
    except (ValueError, TypeError):
        return {}
    return {**texts, **numbers} if all(map(math.isfinite, numbers.values())) else {}


def _timeouts(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        return {str(name): float(value) for name, value in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return None


def _traits(text: str | None) -> dict[str, dict[str, Any]] | None:
    if text is None:
        return None
    try:
        return {str(name): dict(traits) for name, traits in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return None
