"""Waiting for nodes of this host: until one listens, until one is down."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from agentkit.directory.locate import running_nodes
from agentkit.errors import NoNode
from startup.control import NodeConnection
from startup.errors import NodeLost
from startup.machines import orphans
from startup.node.logread import last_lines
from startup.node.paths import Places

#: A node listens a few ms after its boot process has ended; this long is for a machine that is very busy.
LISTENS_WITHIN_S: Final = 15.0
#: A node is given up after this long without an end of its agents; grace periods are seconds.
DOWN_WITHIN_S: Final = 120.0


def connect_when_listening(places: Places, *, within_s: float = LISTENS_WITHIN_S) -> NodeConnection:
    """A conversation with a node that is just starting. NoNode with the end of its log when it does not come."""
    deadline_s = time.monotonic() + within_s
    pause_s = 0.001
    while True:
        try:
            return NodeConnection.connect(places.control)
        except NoNode as exc:
            if time.monotonic() > deadline_s:
                words = "\n  ".join(last_lines(places.logs / "node.log", 10))
                raise NoNode(f"{exc}; its log {places.logs / 'node.log'} ends:\n  {words}") from exc
        time.sleep(pause_s)
        pause_s = min(0.02, pause_s * 1.5)


def wait_for_a_running_down(
    cluster: str, tell: Callable[[str], None], timeout_s: float = DOWN_WITHIN_S, machine: str | None = None
) -> None:
    """When nodes of `cluster` on this host (or only that of `machine`) are going down, until they have: `up` then starts new ones.

    `tell` is told who is waited for. TimeoutError when that takes too long."""
    going = {}
    for info in running_nodes(cluster):
        if machine not in (None, info.machine):
            continue
        with suppress(NoNode, NodeLost), NodeConnection.connect(info.control) as connection:
            revision = connection.ask("hello")["revision"]
            if revision and revision["down"]:
                going[info.pid] = info
    if not going:
        return
    tell(f"waiting for {', '.join(info.machine for info in going.values())} to be down")
    left = orphans.wait_gone(going, timeout_s)
    if left:
        raise TimeoutError(
            f"nodes are going down since long: pids {', '.join(map(str, left))}; `agentkit down` ends them"
        )
