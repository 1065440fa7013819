"""Who starts an agent again that sleeps deep: its node, or systemd, which listens on its sockets while nobody serves them (`Accept=no`).

Both hold the listeners; the node also counts what wakes are for nothing, answers probes and knows of timers that are due, systemd
only looks whether somebody connects. See docs/hibernation.md, "Under systemd"."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from agentkit.agent.orders import EXIT_ASLEEP
from agentkit.directory.base import INBOX, INBOX_LOCAL, Directory
from agentkit.directory.mesh import MeshDirectory
from agentkit.errors import CallError
from agentkit.settings import AgentSettings


class StaysAwake(Exception):
    """Why it does not sleep deep."""


class NotAllowed(StaysAwake):
    """Who would wake it says so."""


class Activator(Protocol):
    """Starts the agent again when somebody connects to its inbox."""

    exit_code: int  #: of a process that sleeps
    shows_counters: bool  #: it answers scrapes meanwhile

    async def allow(self, wish: Mapping[str, Any]) -> None:
        """From now on it counts on the end of the process. NotAllowed: the agent must not sleep deep."""
        ...

    async def stays(self, why: str) -> None:
        """What was allowed did not come to be."""
        ...


class NodeActivator:
    """The agent's node, which is asked."""

    exit_code: int = EXIT_ASLEEP
    shows_counters: bool = True

    def __init__(self, node: MeshDirectory, sender: Mapping[str, Any]) -> None:
        self._node, self._sender = node, sender

    async def allow(self, wish: Mapping[str, Any]) -> None:
        try:
            answer = await self._node.ask("sleep", **self._sender, **wish)
        except CallError as exc:
            raise NotAllowed(exc.message.removeprefix("awake: ")) from exc
        if wish["patterns"] and not answer.get("listens"):
            raise StaysAwake("its node is of a version that does not listen to events for it")

    async def stays(self, why: str) -> None:
        with contextlib.suppress(CallError):
            await self._node.ask("awake", **self._sender, why=why)


class SystemdActivator:
    """systemd, by the .socket unit that the listeners came from. Exit code 0: anything else is a failure to it, and `Restart=on-failure`
    would start the agent at once."""

    exit_code: int = 0
    shows_counters: bool = False

    async def allow(self, wish: Mapping[str, Any]) -> None:
        if wish["wake_in_s"] is not None:
            raise NotAllowed("its @every methods would be missed: systemd wakes it for connections only")
        if wish["patterns"]:
            raise NotAllowed("it subscribes to events, which systemd does not hear (`events: count`)")

    async def stays(self, why: str) -> None:
        """It was not told, so there is nothing to take back."""


_INBOXES: Final = frozenset({INBOX, INBOX_LOCAL})


def activator_of(settings: AgentSettings, directory: Directory, handed_down: Iterable[str]) -> Activator | None:
    """Who wakes this agent; None: nobody. `handed_down`: names of the listeners that a service manager has given it."""
    if isinstance(directory, MeshDirectory):
        return NodeActivator(directory, settings.sender)
    if settings.node_socket is None and not _INBOXES.isdisjoint(handed_down):
        return SystemdActivator()
    return None
