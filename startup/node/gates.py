"""The node's end of a successor's gate (agentkit.transport.gate)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress


class Gate:
    """A pipe that is written to once, or never. Who makes it opens or closes it; a node that dies closes it by that."""

    def __init__(self, predecessor: int | None) -> None:
        """`predecessor`: a pidfd, which stays the caller's."""
        self._theirs, self._ours = os.pipe2(os.O_CLOEXEC)
        self._predecessor = None if predecessor is None else os.dup(predecessor)

    @property
    def handed_down(self) -> Mapping[str, int]:
        """What the child gets, by the names of zygote_wire.PRIVATE and in their order."""
        gate = {"gate": self._theirs}
        return gate if self._predecessor is None else {**gate, "predecessor": self._predecessor}

    def was_handed_down(self) -> None:
        """The child has its own now."""
        for fd in (self._theirs, self._predecessor):
            if fd is not None:
                os.close(fd)
        self._theirs, self._predecessor = -1, None

    def open(self) -> None:
        """Let it pass; nothing is left to be closed, unless it has not been handed down yet."""
        with suppress(BrokenPipeError):  # it has just ended
            os.write(self._ours, b"\x01")
        os.close(self._ours)
        self._ours = -1

    def close(self) -> None:
        if self._theirs >= 0:
            self.was_handed_down()
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1
