"""Seeing to it that every machine of a fleet has a node: shared by up and apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from agentkit.errors import NoNode
from startup.cli.common import note
from startup.machines.local import Boot
from startup.node.paths import Places

if TYPE_CHECKING:
    from startup.cli.cluster import Cluster
    from startup.errors import MachineTrouble
    from startup.machines.remote import Remote
    from startup.spec.fleet import Fleet


def nodes_of(
    stack: ExitStack,
    fleet: Fleet,
    boot: Boot | None,
    greeted: Remote | None,
    *,
    is_pushed: bool,
    on_order: Callable[[], None] = lambda: None,
) -> tuple[Cluster, Mapping[str, MachineTrouble]]:
    """A node for every machine, and a conversation with each; and the machines whose nodes can't be had, after saying so.

    `boot`, `greeted`: what was begun ahead. `is_pushed`: code and configuration are copied to machines where they differ.
    `on_order`: called before the first node is started. NoNode: no machine could be had."""
    from agentkit.directory.locate import running_nodes
    from startup.cli.elsewhere import Elsewhere, elsewhere
    from startup.machines.waits import connect_when_listening, wait_for_a_running_down

    far = elsewhere(fleet.machines)
    others = Elsewhere(stack, fleet.cluster, far, greeted)
    others.begin_up(fleet, is_pushed=is_pushed)
    wait_for_a_running_down(fleet.cluster, note)
    running = {info.machine for info in running_nodes(fleet.cluster)}
    here = [str(machine.name) for machine in fleet.machines if machine not in far]
    missing = [machine for machine in here if machine not in running]
    if missing:
        boot = boot or stack.enter_context(Boot())
        on_order()
        boot.order(fleet.cluster, missing, file=fleet.file, preload=fleet.preload)
    # while nodes are forked
    from startup.cli import change, selection  # noqa: F401
    from startup.cli.cluster import Cluster

    if missing and boot is not None:
        boot.finish()
    # by path: a node listens before it has written down that it does
    opened = {machine: connect_when_listening(Places.of(fleet.cluster, machine)) for machine in here}
    found = others.finish()
    if not opened and not found.doors:
        raise NoNode(f"nothing was started: no machine of {fleet.cluster} could be had")
    cluster = stack.enter_context(Cluster.of(fleet.cluster, opened, doors=found.doors))
    cluster.missing |= {machine: str(trouble) for machine, trouble in found.troubles.items()}
    return cluster, found.troubles
