"""One connection to the zygote, in its single-threaded loop: messages that the socket does not take at once wait for POLLOUT."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from startup.node.zygote import wire


class Peer:
    """Whoever has connected. It is the node's once it has said hello."""

    __slots__ = ("_outgoing", "_poll", "is_node", "since_s", "sock")

    def __init__(self, sock: socket.socket, poll: select.poll, since_s: float, *, is_node: bool = False) -> None:
        """From now on `poll` reports it. `since_s`: monotonic, when it connected."""
        self.sock = sock
        self.since_s = since_s
        self.is_node = is_node
        self._poll = poll
        self._outgoing: deque[tuple[list[Any], list[int]]] = deque()
        sock.setblocking(False)
        poll.register(sock.fileno(), select.POLLIN)

    @property
    def is_flushed(self) -> bool:
        """Whether everything has been sent."""
        return not self._outgoing

    def send(self, message: list[Any], fds: Sequence[int] = ()) -> None:
        """Queue a message; its descriptors are closed once they are sent."""
        self._outgoing.append((message, list(fds)))
        if len(self._outgoing) == 1:
            self.flush()

    def flush(self) -> None:
        """Send what the socket takes now."""
        while self._outgoing:
            message, fds = self._outgoing[0]
            try:
                wire.send(self.sock, message, fds)
            except BlockingIOError:
                self._poll.modify(self.sock.fileno(), select.POLLIN | select.POLLOUT)
                return
            except OSError:
                break  # it is gone; poll says so too, and who it was is decided there
            wire.close_all(fds)
            self._outgoing.popleft()
        self._poll.modify(self.sock.fileno(), select.POLLIN)

    def flush_all(self) -> None:
        """Send everything, however long that takes. OSError: it is gone."""
        self.sock.setblocking(True)
        while self._outgoing:
            message, fds = self._outgoing.popleft()
            wire.send(self.sock, message, fds)
            wire.close_all(fds)

    def close(self) -> None:
        """What was not sent is lost."""
        self._poll.unregister(self.sock.fileno())
        for _, fds in self._outgoing:
            wire.close_all(fds)
        self._outgoing.clear()
        self.sock.close()
