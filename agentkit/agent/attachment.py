"""An agent and its node: when it connects, and what the node gets to know then."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from agentkit.directory.base import AgentRecord, Directory
from agentkit.directory.mesh import MeshDirectory
from agentkit.directory.static import StaticDirectory
from agentkit.errors import CallError, Unreachable
from agentkit.observe import log as logs

if TYPE_CHECKING:
    from agentkit.runtime import AgentRuntime

log = logs.get_logger("agentkit.runtime")

#: The connection to the node is not needed for READY: it is made so long after, in seconds, when nobody looked a name up.
ATTACH_DELAY_S: Final = 0.5


class Attachment:
    """Of one runtime, whose parts it tells that there is a connection."""

    def __init__(self, runtime: AgentRuntime) -> None:
        self._runtime = runtime
        self._timer: asyncio.TimerHandle | None = None

    def directory(self) -> Directory:
        """The node's, where there is one; else the peers that the settings name."""
        settings = self._runtime.settings
        if settings.node_socket is None:
            return StaticDirectory(settings.peers, here=settings.id.machine)
        return MeshDirectory(
            settings.node_socket,
            here=settings.id.machine,
            on_connected=self._attach,
            on_records=self._on_records,
            on_asked=self._runtime.on_asked,
        )

    def begin(self) -> None:
        """READY: connect soon, if nobody has asked for it yet."""
        directory = self._runtime._directory
        if isinstance(directory, MeshDirectory):
            self._timer = self._runtime.loop.call_later(ATTACH_DELAY_S, directory.start)

    async def kept_events(self, offset: int) -> Any:
        """What the node has kept of events while no process was there to take them (events.handover)."""
        directory = self._runtime._directory
        if not isinstance(directory, MeshDirectory):
            raise Unreachable("there is no node that could have kept events")
        return await directory.ask("kept_events", **self._runtime.settings.sender, offset=offset)

    def close(self) -> None:
        """It is not begun any more; the directory is closed by who has it."""
        if self._timer is not None:
            self._timer.cancel()

    async def _attach(self, directory: MeshDirectory) -> None:
        """After every connect to a node. The node may be another one than before: it gets to know all that it needs."""
        runtime, settings = self._runtime, self._runtime.settings
        runtime._error_exporter.connected()
        try:
            await directory.ask("attach", id=str(settings.id), incarnation=settings.incarnation)
        except CallError as error:
            if error.message.startswith("gone"):
                log.warning("agent.not_wanted", why=error.message)
                runtime.request_stop()
            return
        runtime._keys.watch(directory)
        runtime.leading.connected()
        runtime._configuring.connected()
        await runtime.events.reconnected()
        if runtime._was_ready and runtime.running:
            runtime._teller.ready(runtime.agent.methods, runtime._checks.board.verdict, runtime.listening.sockets)
            runtime.hibernation.retell()

    def _on_records(self, name: str, records: tuple[AgentRecord, ...]) -> None:
        self._runtime.caller.on_records(name, records)
