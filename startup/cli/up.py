"""Bring up a fleet, or bring a running one to what its file says now; waits until that is decided.

    agentkit up                                    configs/startup_config.yaml, then startup_config.yaml
    agentkit up fleet.yaml TaskManager             only this agent and what it requires; stops nothing
    agentkit up fleet.yaml --group core --except Vision
    agentkit up fleet.yaml --until core            the phases up to that of `core`; a later `up` goes on

Checks everything first: any error, and nothing is started (exit 2). Then starts the nodes that are missing, hands them
the desired state and shows how far it is. Exit 0 when everything required is ready, 1 when something required can't
be, 3 when --timeout comes first. Ctrl-C detaches (130): the nodes carry on. On a running cluster it prints what
changes, restarts changed agents in order, and leaves the others alone.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentkit.directory.locate import cluster_of, node_files, run_root
from agentkit.errors import ConfigError, NoNode
from startup.cli import exits
from startup.cli.common import add_waiting_arguments, note, say, say_json
from startup.cli.files import add_file_arguments, add_machine_arguments, checked_fleet, file_of
from startup.cli.nodes import nodes_of
from startup.machines.local import Boot

if TYPE_CHECKING:
    from agentkit.names import AgentId
    from startup.cli.cluster import Cluster
    from startup.cli.selection import Selection
    from startup.errors import MachineTrouble
    from startup.machines.remote import Remote
    from startup.plan.revision import Revision
    from startup.spec.fleet import Fleet
    from startup.spec.ports import PortPair

#: What ends in one of these is the FILE, not an agent.
_FILE_ENDINGS = (".yaml", ".yml", ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser)
    parser.add_argument("agents", nargs="*", metavar="AGENT", help="only these, and what they require")
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="GROUP",
        help="only this group, and what it requires; may be repeated",
    )
    parser.add_argument(
        "--except",
        dest="without",
        action="append",
        default=[],
        metavar="AGENT",
        help="not this agent, nor what requires it; may be repeated",
    )
    parser.add_argument(
        "--until",
        metavar="PHASE",
        help="only the phases up to this one: its number, or a group of it; what is in later ones stays as it is",
    )
    add_machine_arguments(parser)
    add_waiting_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """See the module's text for the codes."""
    began = (time.monotonic(), time.time())
    _sort_words(arguments)
    work = _Up(arguments, began)
    # almost all that is made from here on is kept, most of it modules: looking through it again and again took 12 %
    gc.disable()
    try:
        with ExitStack() as stack:
            return work.run(stack)
    except KeyboardInterrupt:
        carries_on = "detached: the nodes carry on; `agentkit down` stops them"
        note(carries_on if work.has_ordered else "interrupted: nothing was started")
        return exits.INTERRUPTED


def _sort_words(arguments: argparse.Namespace) -> None:
    """`up A B` without a FILE: the first word is an agent, too."""
    word = arguments.file
    if word is not None and not word.endswith(_FILE_ENDINGS) and "/" not in word and not Path(word).is_file():
        arguments.agents.insert(0, word)
        arguments.file = None


class _Up:
    """One `up`, step by step."""

    def __init__(self, arguments: argparse.Namespace, began: tuple[float, float]) -> None:
        self._arguments = arguments
        self._began = began
        self._current: Revision | None = None  #: as the nodes had it before the file was read
        self._troubles: Mapping[str, MachineTrouble] = {}  #: machines whose nodes could not be had
        self._changes: Mapping[str, Any] | None = None  #: of a cluster that ran; for --json
        self.has_ordered = False  #: nodes have been told something: from here on the fleet goes its way without us

    def run(self, stack: ExitStack) -> int:
        boot = self._boot_ahead(stack)
        greeted = self._greet_ahead(stack)
        fleet = checked_fleet(self._arguments, self._previous_ports(), "nothing was started")
        if fleet is None:
            return exits.USAGE
        refuse_strangers(fleet)
        if self._current is None and (selection := self._selection()):
            selection.of(fleet)  # a wrong name is told before there are nodes that would have to be ended
        cluster, self._troubles = nodes_of(
            stack, fleet, boot, greeted, is_pushed=self._arguments.push, on_order=self._ordered
        )
        gc.freeze()
        gc.enable()
        return self._hand_over(cluster, fleet)

    def _ordered(self) -> None:
        self.has_ordered = True

    def _boot_ahead(self, stack: ExitStack) -> Boot | None:
        """Begin the imports of a boot process, before any of our own, unless there seem to be nodes of this cluster."""
        if self._guess is not None and any(node_files(run_root(), self._guess)):
            return None
        return stack.enter_context(Boot())

    def _greet_ahead(self, stack: ExitStack) -> Remote | None:
        """Begin to log in on the other machines, as they were the last time."""
        from startup.cli.elsewhere import greet_ahead

        return greet_ahead(stack, self._guess) if self._guess is not None else None

    @cached_property
    def _guess(self) -> str | None:
        """The cluster that the file seems to be of, before anything is parsed."""
        path = file_of(self._arguments)
        return self._arguments.cluster or (cluster_of(path) if path else None)

    def _previous_ports(self) -> Mapping[AgentId, PortPair] | None:
        """Of the revision that runs: an agent whose port is not written keeps the one that it was given."""
        if self._guess is None or not any(node_files(run_root(), self._guess)):
            return None
        from startup.cli.cluster import Cluster
        from startup.spec.ports import ports_of

        try:
            with Cluster.of(self._guess) as cluster:
                self._current = cluster.revision()
        except NoNode:  # it was killed
            return None
        return ports_of(self._current.fleet) if self._current else None

    def _hand_over(self, cluster: Cluster, fleet: Fleet) -> int:
        """Propose, retry what failed, wait, report."""
        from startup.cli.change import report
        from startup.cli.follow import Aim, follow
        from startup.cli.selection import next_revision
        from startup.view.phases import PhaseLines, aims

        arguments = self._arguments
        summaries = {machine: hello["revision"] for machine, hello in cluster.ask_each("hello").items()}
        bases = {machine: int(summary["number"]) if summary else 0 for machine, summary in summaries.items()}
        current = self._running(cluster, summaries.values())
        revision, wanted = next_revision(fleet, self._selection(), current)
        if current is not None:
            self._show(cluster, current, revision)
        self.has_ordered = True
        revision = cluster.propose(revision, bases, force_move=arguments.force_move)
        if current is not None:
            cluster.ask_each("retry")
        if arguments.no_wait:
            return self._told(cluster, revision)
        specs = {spec.id: spec for spec in revision.fleet.agents}
        wanted = [id for id in wanted if id.machine not in self._troubles]
        aim = Aim(
            cluster=cluster.name,
            wanted=wanted,
            optional=frozenset(id for id in wanted if not specs[id].required),
            unwanted=frozenset(current.fleet.ids() if current else ()) - set(specs),
            number=revision.number,
        )
        phases = PhaseLines(aims(revision.fleet, wanted), self._began[1])
        with cluster.watch() as watch:
            outcome = follow(watch, aim, began_s=self._began[0], timeout_s=arguments.timeout, news=phases.new)
        note(phases.last(outcome.rows))
        self._dismiss(cluster, revision.fleet)
        unreached = self._unreached(cluster, revision.fleet)
        more = {"changes": self._changes, "phases": phases.to_wire(outcome.rows)}
        return report(arguments, cluster, aim, outcome, began=self._began, unreached=unreached, more=more)

    def _selection(self) -> Selection:
        from startup.cli.selection import Selection

        words = self._arguments
        return Selection(agents=words.agents, groups=words.group, without=words.without, until=words.until)

    def _unreached(self, cluster: Cluster, fleet: Fleet) -> list[dict[str, str]]:
        """Machines without a node from the first, and those that were lost on the way; the latter are told here."""
        from startup.cli.change import left_out

        rest = [str(machine.name) for machine in fleet.machines if machine.name not in self._troubles]
        lost = left_out(cluster, rest, "it may not have this revision; run the command again")
        return [*(trouble.to_wire() for trouble in self._troubles.values()), *lost]

    def _running(self, cluster: Cluster, summaries: Collection[Mapping[str, Any] | None]) -> Revision | None:
        """The revision that the nodes follow; None when nothing shall run so far."""
        alive = [summary for summary in summaries if summary and not summary["down"]]
        if not alive:
            return None
        known = self._current  # reading one takes 50 ms: a fifth of what is left to do on a running cluster
        newest = max(summary["number"] for summary in alive)
        return known if known is not None and known.number == newest else cluster.revision()

    def _show(self, cluster: Cluster, current: Revision, revision: Revision) -> None:
        """What changes on a running cluster, in the words of `apply`."""
        from startup.cli.rollout import show
        from startup.plan.changes import changes
        from startup.plan.phase import Phase

        _, rows = cluster.status()
        failed = {row.id for row in rows if row.phase in (Phase.FAILED, Phase.BACKOFF)}
        found = changes(current, revision, {row.id for row in rows if row.takes_config}, failed)
        show(cluster.name, current, found, str(self._arguments.file or revision.fleet.file))
        self._changes = found.to_wire()

    def _told(self, cluster: Cluster, revision: Revision) -> int:
        elapsed_s = round(time.monotonic() - self._began[0], 4)
        unreached = self._unreached(cluster, revision.fleet)
        if self._arguments.json:
            facts = {"cluster": cluster.name, "elapsed_s": elapsed_s, "revision": revision.number}
            say_json({**facts, "changes": self._changes, "unreached": unreached})
        else:
            say(
                f"{cluster.name}: the nodes have revision {revision.number}; `agentkit status --watch` shows how far they are"
            )
        return exits.FAILED if unreached else exits.DONE

    def _dismiss(self, cluster: Cluster, fleet: Fleet) -> None:
        """Nodes of machines that the fleet no longer has."""
        machines: Sequence[str] = [machine.name for machine in fleet.machines]
        for machine, connection in cluster.connections.items():
            if machine not in machines:
                note(f"machine {machine} is no longer part of the fleet: its node stops")
                connection.ask("stop_node")


def refuse_strangers(fleet: Fleet) -> None:
    """ConfigError when a cluster of that name runs here from another project."""
    from agentkit.directory.locate import running_nodes

    for info in running_nodes(fleet.cluster):
        if info.project_root is not None and Path(info.project_root).resolve() != Path(fleet.project_root).resolve():
            raise ConfigError(
                at=f"cluster {fleet.cluster}",
                got=f"a running one of that name, from {info.file} (project root {info.project_root})",
                want="one fleet per name",
                fix="stop that with `agentkit down`, or choose another `cluster:` or --cluster",
            )
