"""Run one agent of the running fleet in this terminal, in its slot and directory entry: callers come here.

    agentkit run TaskManager

Its own process is stopped first, and started again when this one ends. pdb works: neither the start's time limit nor the
watchdog count, and the log comes to the terminal. Ctrl-C stops the agent as SIGTERM would.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agentkit.errors import ConfigError, NoNode
from agentkit.names import AgentId
from startup.cli.change import current
from startup.cli.cluster import Cluster
from startup.cli.common import choose, note
from startup.control import NodeConnection
from startup.node.paths import Places

#: How long the dependencies of the agent may take, and its own process to stop.
FREE_WITHIN_S: Final = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agent", metavar="AGENT", help="name, name#slot or machine/name")


def run(arguments: argparse.Namespace) -> int:
    """The agent's exit code."""
    with Cluster.find(arguments.cluster) as cluster:
        ids = choose([arguments.agent], current(cluster).fleet.ids())
        name = cluster.name
    if len(ids) > 1:
        raise ConfigError(at="agent", got=arguments.agent, want="one slot", fix=f"write {' or '.join(map(str, ids))}")
    order, names, fds = borrow(name, ids[0])
    note(f"{ids[0]} runs here now (pid {os.getpid()}); Ctrl-C ends it, and the node starts its own again")
    target = dict(order, env={**order["env"], "AGENTKIT_LOG_FORMAT": "auto"})
    feed_watchdog(target["env"])
    # only now: it brings in what an agent needs
    from startup.node.zygote.child import become_here

    sys.stdout.flush()
    return become_here(target, names, fds, nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def borrow(cluster: str, id: AgentId) -> tuple[dict[str, Any], list[str], list[int]]:
    """Take the slot over: what a fork would be ordered, the names of its listening sockets, and those."""
    places = Places.of(cluster, id.machine)
    path = places.run / f"run-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        try:
            path.chmod(0o600)
            listener.listen(1)
            try:
                connection = NodeConnection.connect(places.control, timeout_s=FREE_WITHIN_S)
            except NoNode as exc:
                raise NoNode(f"{exc}; `run` works on the agent's own machine, {id.machine}") from exc
            with connection:
                note(f"waiting until the slot of {id} is free and what it requires is ready")
                order = connection.ask("lend", id=str(id), pid=os.getpid(), socket=str(path))
            names, fds = _received(listener)
        finally:
            Path(path).unlink(missing_ok=True)
    return order, names, fds


def _received(listener: socket.socket) -> tuple[list[str], list[int]]:
    """Names and descriptors; the node had sent them before it answered."""
    sock, _ = listener.accept()
    with sock:
        data, fds, _, _ = socket.recv_fds(sock, 4096, 16)
    return json.loads(data), list(fds)


def feed_watchdog(environment: Mapping[str, str]) -> None:
    """From a thread: an agent that is stepped through is not stuck. It ends with the process."""
    interval_s = int(environment.get("WATCHDOG_USEC") or 0) / 3e6
    if not interval_s:
        return

    def feed() -> None:
        from agentkit.transport.notify import Notifier

        while True:
            time.sleep(interval_s)
            tell = Notifier.from_environment(environment)
            tell.send({"WATCHDOG": "1"})
            tell.close()

    threading.Thread(target=feed, name="watchdog", daemon=True).start()
