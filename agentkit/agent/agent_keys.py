"""The keys of one agent's process: read when something needs them, read again when the node says that they changed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from agentkit.agent.dialing import Dialer
from agentkit.directory.base import INBOX, INBOX_LOCAL
from agentkit.directory.mesh import MeshDirectory
from agentkit.settings import AgentSettings

if TYPE_CHECKING:
    from agentkit.security.ring import Keyring

#: The node's operation that tells of changes: startup.node.keys.
WATCH_KEYS: Final = "watch_keys"


class AgentKeys:
    """Nothing is imported, read or kept unless the agent's settings say that its cluster has keys, and something needs one."""

    def __init__(self, settings: AgentSettings, on_change: Callable[[], None]) -> None:
        self.ring: Keyring | None = None
        self._settings = settings
        self._on_change = on_change
        self._others: list[Dialer] = []

    @property
    def _are_used(self) -> bool:
        return self._settings.security == "curve"

    def needed_for(self, listeners: Mapping[str, socket.socket]) -> frozenset[str]:
        """The names of those that take known keys only; the keys are read if there are any. ConfigError when they can't be."""
        if not self._are_used:
            return frozenset()
        names = {name for name in (INBOX_LOCAL, INBOX) if name in listeners}
        encrypted = frozenset(
            name for name in names if name == INBOX or self._settings.is_encrypted(listeners[name].getsockname()[0])
        )
        if encrypted:
            self.read()
        return encrypted

    def read(self) -> Keyring:
        """The ring of the loop, as the folder is now. ConfigError: it can't be read, or has no key of this machine."""
        if self.ring is None:
            self.ring = self._fresh()
            self.ring.on_change(self._changed)
        else:
            self.ring.reload()
        return self.ring

    def dialer(self, *, for_threads: bool = False) -> Dialer:
        """For a caller of this process. `for_threads`: with a ring of its own, as the loop's belongs to the loop."""
        here = self._settings.id.machine
        if not self._are_used:
            return Dialer(here)
        dialer = Dialer(here, self._fresh if for_threads else self.read, is_strict=True)
        if for_threads:
            self._others.append(dialer)
        return dialer

    def watch(self, directory: MeshDirectory) -> None:
        """After every connect to a node: what changed meanwhile is read now, later changes when they are told."""
        if self._are_used:
            directory.watch(WATCH_KEYS, self._on_word)

    def _on_word(self, _: Any) -> None:
        if self.ring is not None:
            self.ring.reload()
        else:
            self._changed()

    def _changed(self) -> None:
        for dialer in self._others:
            dialer.renew()
        self._on_change()

    def _fresh(self) -> Keyring:
        from agentkit.security.folder import KeyFolder, folder_of
        from agentkit.security.ring import Keyring

        settings = self._settings
        folder = KeyFolder(folder_of(settings.keys, {}))
        return Keyring.of_machine(folder, settings.id.machine, settings.key)
