"""Slots lent to an operator's own process (`agentkit run`): the next process of such a slot is not forked, it is there already.

The process asks, then waits until the slot is free and its dependencies are ready. It is handed what a fork would have got
(environment, listening sockets) and from then on is looked after like any other; when it ends, the slot starts its next
process as usual."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentkit.names import AgentId
from startup.errors import Refused
from startup.node.zygote.link import Forked, ForkOrder


@dataclass(frozen=True, slots=True, eq=False)
class Loan:
    """One process that wants to be the next of one slot."""

    id: AgentId
    pid: int
    pidfd: int
    path: str  #: a unix stream socket where it waits for descriptors
    handed: asyncio.Future[dict[str, Any]]

    def hand_over(self, order: ForkOrder, fds: Mapping[str, int]) -> Forked:
        """Give it what the zygote would give a child. OSError when it is not there any more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(1.0)  # it listens already: connecting and sending do not wait for it
            sock.connect(self.path)
            socket.send_fds(sock, [json.dumps(list(fds)).encode()], list(fds.values()))
        if not self.handed.done():
            self.handed.set_result(order._asdict())
        return Forked(self.pid, os.dup(self.pidfd))


class Lending:
    """The loans that wait; one per slot at most."""

    def __init__(self) -> None:
        self._loans: dict[AgentId, Loan] = {}

    def ask(self, id: AgentId, pid: int, path: str) -> Loan:
        """Refused when another process waits for the slot already; OSError when there is no process `pid`."""
        if id in self._loans:
            raise Refused("lent", f"process {self._loans[id].pid} already waits to run {id}")
        handed = asyncio.get_running_loop().create_future()
        loan = self._loans[id] = Loan(id, pid, os.pidfd_open(pid), path, handed)
        return loan

    def take(self, id: AgentId) -> Loan | None:
        """The loan that the next process of `id` is to come from."""
        return self._loans.pop(id, None)

    def end(self, loan: Loan) -> None:
        """It was handed over, or the process no longer waits."""
        if self._loans.get(loan.id) is loan:
            del self._loans[loan.id]
        os.close(loan.pidfd)
