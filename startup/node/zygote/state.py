"""What a zygote knows of its processes and sockets, apart from what it does with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

from startup.node.zygote import wire

#: Exits that a new node is told of, whether the one before had heard of them or not.
EXITS_KEPT: Final = 500

#: Processes told in one message.
_ENTRIES_PER_MESSAGE: Final = 200


@dataclass(slots=True)
class State:
    """What survives a change of image. Descriptors are plain numbers: nothing may close them by being collected."""

    children: dict[int, tuple[str, int]] = field(default_factory=dict)  #: pid -> key, incarnation
    kept: dict[str, dict[str, int]] = field(default_factory=dict)  #: key -> name -> listening socket
    exits: list[dict[str, Any]] = field(default_factory=list)  #: the last ones, oldest first
    refused: dict[str, str] = field(default_factory=dict)  #: modules that must not be preloaded -> why
    node_pid: int = 0  #: the node, if we started it
    node_fd: int = -1  #: its connection
    stopping: bool = False
    had_node: bool = False
    path_id: tuple[int, int] = (0, 0)  #: device and inode of our socket's name

    def pack(self) -> bytes:
        return bytes(msgpack.packb([getattr(self, name) for name in self.__slots__]))

    @classmethod
    def unpack(cls, data: bytes) -> State:
        state = cls(*msgpack.unpackb(data, strict_map_key=False))
        state.children = {pid: (key, incarnation) for pid, (key, incarnation) in state.children.items()}
        state.path_id = (state.path_id[0], state.path_id[1])
        return state

    def remember(self, exit_: dict[str, Any]) -> None:
        """Keep an exit for the next node: what was sent to one that was just being killed, it may never have read."""
        self.exits.append(exit_)
        del self.exits[:-EXITS_KEPT]

    def fds(self) -> list[int]:
        return [fd for sockets in self.kept.values() for fd in sockets.values()] + (
            [self.node_fd] if self.node_fd >= 0 else []
        )

    def inventory(self) -> Iterator[tuple[list[Any], list[int], bool]]:
        """The inventory in messages of few enough descriptors: [[key, incarnation, pid, [what each descriptor is]]], fds, more."""
        living = {key: (pid, incarnation) for pid, (key, incarnation) in self.children.items()}
        wanted = [(key, incarnation, pid) for pid, (key, incarnation) in self.children.items()]
        wanted += [(key, 0, 0) for key in self.kept if key not in living]
        entries: list[Any] = []
        fds: list[int] = []
        for key, incarnation, pid in wanted:
            newest = not pid or living[key] == (pid, incarnation)  # two of one key while one follows the other
            sockets = self.kept.get(key, {}) if newest else {}
            if len(fds) + len(sockets) + 1 > wire.MAX_FDS or len(entries) >= _ENTRIES_PER_MESSAGE:
                yield entries, fds, True
                entries, fds = [], []
            if pid:
                fds.append(os.pidfd_open(pid))
            fds += [os.dup(fd) for fd in sockets.values()]
            entries.append([key, incarnation, pid, list(sockets)])
        yield entries, fds, False


def path_id(path: Path) -> tuple[int, int]:
    """Device and inode of a name; zeros when it is gone."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino
