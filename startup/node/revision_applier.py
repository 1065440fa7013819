"""What a node does with a revision: every part that goes by it is told, in the order in which they need each other."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from agentkit.clock import SYSTEM_CLOCK
from agentkit.directory.locate import NodeInfo
from agentkit.observe.log import get_logger
from startup.node.cluster_observer import ClusterObserver
from startup.node.configs import Configs
from startup.node.errors.rules import ErrorRules
from startup.node.fence import Fence
from startup.node.hibernation.memory_budget import MemoryBudget
from startup.node.keys import NodeKeys
from startup.node.leadership.leaders import Leaders
from startup.node.mesh.mesh import Mesh
from startup.node.node_status import NodeStatus
from startup.node.options import NodeOptions
from startup.node.orders import machine_of, node_endpoint
from startup.node.registry.registry import Registry
from startup.node.store import Revisions
from startup.node.turns import Turns
from startup.node.zygote.keeper import ZygoteKeeper
from startup.plan.revision import Revision
from startup.plan.rows import LOOPBACK, Place

log = get_logger("node")

#: A node that is booted after `down` waits so long for an `up`, in seconds; then it ends as the old revision says.
NEW_REVISION_WITHIN_S: Final = 30.0


class RevisionApplier:
    """One for a node."""

    def __init__(
        self,
        options: NodeOptions,
        turns: Turns,
        revisions: Revisions,
        *,
        node_status: NodeStatus,
        mesh: Mesh,
        observer: ClusterObserver,
        keys: NodeKeys,
        zygote: ZygoteKeeper,
        fence: Fence,
        rules: ErrorRules,
        registry: Registry,
        leaders: Leaders,
        configs: Configs,
        memory_budget: MemoryBudget,
    ) -> None:
        self._options = options
        self._turns = turns
        self._core = turns.core
        self._revisions = revisions
        self._node_status = node_status
        self._mesh = mesh
        self._observer = observer
        self._keys = keys
        self._zygote = zygote
        self._fence = fence
        self._rules = rules
        self._registry = registry
        self._leaders = leaders
        self._configs = configs
        self._memory_budget = memory_budget

    def listen(self, revision: Revision | None) -> None:
        """Begin to listen for other machines, where `revision` says; OSError where that can't be."""
        if revision is not None:
            self._keys.use(revision.fleet)  # Refused without them: a node does not listen where it can't tell who comes
        self._turns.place = self._place(revision)
        self._mesh.start(*self._address(revision))

    def accept(self, revision: Revision, before: Revision | None, *, force_move: bool) -> None:
        """An operator's new one; `force_move`: agents that ran on another machine before are not waited for."""
        self._move_listener(revision)
        self._fence.revised(before, revision, force_move=force_move)
        self.act_on(revision)
        self.write_info()

    def act_on(self, revision: Revision) -> None:
        """Let every part go by it."""
        self._turns.place = self._place(revision)
        self._zygote.preload(revision.fleet.preload)
        self._rules.revised(revision)
        self._core.desire(revision, self._turns.now_s())
        self._mesh.pace(revision.fleet.mesh.suspect_s, revision.fleet.mesh.unreachable_s)
        self._registry.revised(revision.fleet)
        self._leaders.revised(revision.fleet)
        self._configs.revised(revision.fleet)
        self._memory_budget.revised(revision)
        self._mesh.expect({machine.name: node_endpoint(machine) for machine in revision.fleet.machines})
        self._observer.forget_removed()
        self._turns.soon()

    def act_later_on(self, revision: Revision) -> None:
        """Whoever booted this node is about to bring another; if nobody does, this one counts."""

        def unless_newer() -> None:
            if self._revisions.current is revision:
                self.act_on(revision)

        asyncio.get_running_loop().call_later(NEW_REVISION_WITHIN_S, unless_newer)

    def write_info(self) -> None:
        """Where this node is found."""
        places, facts = self._options.places, self._node_status.facts()
        info = NodeInfo(
            cluster=places.cluster,
            machine=places.machine,
            pid=os.getpid(),
            control=str(places.control),
            mesh=self._mesh.endpoint,
            file=facts["file"],
            project_root=facts["project_root"],
            started_s=facts["started_s"],
        )
        places.announce(info)

    def _move_listener(self, revision: Revision) -> None:
        """Where the revision says, if that is not where we do; a machine that the fleet no longer has stays where it is."""
        if any(machine.name == self._options.places.machine for machine in revision.fleet.machines):
            try:
                self._mesh.receiver.listen(*self._address(revision))
            except OSError as exc:
                log.error("node.not_listening", address=self._address(revision), error=str(exc))

    def _place(self, revision: Revision | None) -> Place:
        places = self._options.places
        host = machine_of(revision.fleet, places.machine).host if revision else LOOPBACK
        offset_s = SYSTEM_CLOCK.wall_s() - SYSTEM_CLOCK.now_s()
        return Place(
            host=host,
            wall_offset_s=offset_s,
            logs=str(places.logs),
            is_encrypted=self._keys.encrypts(host),
            encrypts_loopback=self._keys.encrypts(LOOPBACK),
        )

    def _address(self, revision: Revision | None) -> tuple[str, int | None]:
        """Where this node listens for others: by the revision; before the first, by its own command line."""
        if revision is None:
            host = self._options.host or LOOPBACK
            return (host if self._keys.use_before_revision(host) else LOOPBACK), self._options.node_port or None
        machine = machine_of(revision.fleet, self._options.places.machine)
        return machine.host, machine.node_port
