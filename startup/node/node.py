"""One machine's node: wires the parts together, lives until the machine or the cluster goes down.

Start: what is remembered, the sockets on which agents and operators speak, the zygote, what it has of an earlier node, then the
stored revision. From then on everything happens in turns.py. End: nothing of this machine runs any more, the others are told,
the zygote ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from random import Random
from typing import Final

from agentkit.observe import log as logs
from agentkit.transport.notify import Notifier
from startup.node.adoption import adopt
from startup.node.attached import Attached
from startup.node.chaos import Chaos
from startup.node.cluster_observer import ClusterObserver
from startup.node.configs import Configs
from startup.node.control_server import ControlServer
from startup.node.debugging import Debugging
from startup.node.errors.desk import OTHERS_S, ErrorDesk
from startup.node.errors.rules import ErrorRules
from startup.node.events import NodeEvents
from startup.node.executor import Executor
from startup.node.exits import Exit, ExitWatch, gone
from startup.node.feeds import Feeds
from startup.node.fence import Fence
from startup.node.heirs import UP, Heir
from startup.node.hibernation.memory_budget import MemoryBudget
from startup.node.hibernation.operations import HibernationOperations
from startup.node.journal import Journal
from startup.node.key_operations import KeyOperations
from startup.node.keys import NodeKeys
from startup.node.leadership.leaders import Leaders
from startup.node.listeners import backlog_warning
from startup.node.liveness import Liveness
from startup.node.mesh.mesh import Mesh
from startup.node.mesh.peer import MeshTimes
from startup.node.node_status import NodeStatus
from startup.node.notify import NotifyServer
from startup.node.notify_handler import NotifyHandler
from startup.node.operations import Operations
from startup.node.options import NodeOptions
from startup.node.other_users import OtherUsers
from startup.node.readiness import probe_of
from startup.node.registry.registry import Registry
from startup.node.remote_control import RemoteControl
from startup.node.revision_applier import RevisionApplier
from startup.node.rollbacks import Rollbacks
from startup.node.rotation import Rotation
from startup.node.running import Running
from startup.node.store import Incarnations, Revisions
from startup.node.table import ClusterTable
from startup.node.turns import Turns
from startup.node.upgrade import Upgrade
from startup.node.usage import Usage
from startup.node.views import Views
from startup.node.zygote.keeper import ZygoteKeeper
from startup.plan.process import Process
from startup.plan.reconcile import Reconciler
from startup.plan.revision import Revision
from startup.plan.row import AgentRow

log = logs.get_logger("node")

#: How long the zygote may take to end, in seconds; after that it is left to itself.
ZYGOTE_ENDS_WITHIN_S: Final = 3.0


class Node:
    """The parts of one node, and its life. Implements operations.Owner."""

    def __init__(self, options: NodeOptions, *, times: MeshTimes | None = None, random: Random | None = None) -> None:
        places = options.places
        loop = asyncio.get_running_loop()
        self.options = options
        self.is_ending = False
        self.ended: asyncio.Future[Heir | None] = loop.create_future()
        self._loop = loop
        self._random = random or Random()
        self._early_exits: list[Exit] | None = []
        self._rotation = Rotation(places.logs, beside=lambda: self._journal.retry())
        self._revisions = Revisions(places)
        incarnations = Incarnations(places)
        self._table = ClusterTable()
        self._core = Reconciler(places.machine, self._random)
        self._journal = Journal(places, self._core)
        self.turns = Turns(self._core, self._table, on_finished=self._on_finished)
        self._zygote = ZygoteKeeper(
            options, on_exit=self._on_exit, on_replaced=self._give_sockets, on_lost=self._watch_orphans
        )
        self._keys = NodeKeys(places.machine)
        self._executor = Executor(
            self.turns,
            places,
            incarnations,
            self._zygote,
            nofile=options.nofile,
            random=self._random,
            key=lambda: self._keys.for_new,
        )
        self.turns.performer = self._executor
        self.turns.on_change = self._on_change
        self._exits = ExitWatch(self._on_exit)
        self._executor.on_lent = self._watch_exit
        self._notify_handler = NotifyHandler(self.turns, self._executor, self._zygote)
        self._observer = ClusterObserver(places.machine, self.turns, self._table, self._revisions)
        self._mesh = self._observer.mesh = Mesh(places, incarnations.take(), self._observer, times)
        self._fence = self._observer.fence = Fence(places, self.turns, self._revisions, self._mesh)
        self._mesh.keys = self._keys
        self._rollbacks = self._observer.rollbacks = Rollbacks(
            self._revisions, self._keys, self._mesh, self.accept, lambda: self.is_ending
        )
        self.turns.on_failure = self._rollbacks.failed
        self._events = NodeEvents(places, self._mesh, self._revisions, self._keys)
        self._hibernation_operations = HibernationOperations(
            self.turns, self._executor, places.run, self._events.ensure
        )
        self._notify_handler.on_events = self._events.told
        self._key_operations = self._observer.key_operations = KeyOperations(self._keys, self._mesh, self._events)
        self._keys.on_change = self._on_keys
        self._node_status = NodeStatus(options, self._revisions, self.turns, self._executor, self._zygote, self._events)
        self._node_status.trouble = lambda: self._journal.trouble
        self._memory_budget = self._node_status.memory_budget = MemoryBudget(
            self.turns, self._executor, self._hibernation_operations
        )
        self._views = Views(places.machine, self._node_status, self._mesh)
        usage = Usage(places.machine, self._node_status, self._mesh)
        self._errors = ErrorDesk(places, partial(self._mesh.ask_others, within_s=OTHERS_S))
        self._rules = ErrorRules(places, self.turns, self._errors)
        self._errors.on_stored = self._rules.stored
        self._executor.bounds.on_refused = self._rules.report
        self._memory_budget.on_short = self._rules.warn
        self._registry = self._observer.registry = Registry(
            places.machine, self._table, on_sighted=self._observer.see_others
        )
        self._executor.before_end = self._registry.leaving
        self._chaos = Chaos(self.turns, self._executor, self._zygote, self._mesh)
        self._leaders = Leaders(places, incarnations, self._executor.looks_after)
        self._executor.on_left = self._leaders.ended
        self._configs = self._executor.forks.configs = Configs(self.turns, places, self._executor.looks_after)
        self._observer.offer(
            {
                **self._key_operations.answers,
                "mesh.errors": self._errors.answer,
                "mesh.claims": self._fence.answer,
                "mesh.revision": self._rollbacks.answer,
                **self._views.answers,
                **usage.answers,
            }
        )
        self._revision_applier = RevisionApplier(
            options,
            self.turns,
            self._revisions,
            node_status=self._node_status,
            mesh=self._mesh,
            observer=self._observer,
            keys=self._keys,
            zygote=self._zygote,
            fence=self._fence,
            rules=self._rules,
            registry=self._registry,
            leaders=self._leaders,
            configs=self._configs,
            memory_budget=self._memory_budget,
        )
        self._liveness = Liveness(self.turns, lambda spec: probe_of(spec, self.turns.place.host))
        feeds = Feeds(self._table)
        self._table.listen(self._tell_others)
        attached = Attached(self._executor)
        operations = Operations(
            self,
            self._node_status,
            self.turns,
            self._executor,
            self._table,
            feeds,
            self._revisions,
            self._mesh,
            self._views,
            self._keys,
            more={
                "events": self._events.ensure,
                "registry": lambda _: self._registry.facts(),
                **usage.operations,
                "chaos": self._chaos.perform,
                "upgrade": Upgrade(
                    options, lambda: self._server.listener(), self._hand_on, lambda: self.is_ending
                ).perform,
                **self._errors.operations,
                **self._hibernation_operations.operations,
                **self._key_operations.operations,
                **self._leaders.operations,
                **self._configs.operations,
                **attached.operations,
                **Debugging(attached, self._executor, places).operations,
            },
            telling={**self._leaders.telling, **self._configs.telling, **attached.telling},
        )
        self._server = ControlServer(
            places.control,
            operations.handle,
            OtherUsers(self._executor.doors, self._core, operations.handle),
            listener_fd=options.control_fd,
        )
        self._mesh.receiver.control = RemoteControl(operations.handle)
        self._notify: NotifyServer | None = None

    # -- start and end

    async def start(self) -> None:
        """Up to answering operators; agents are on their way from here on."""
        places = self.options.places
        places.prepare()
        if warning := backlog_warning():
            log.warning("node.backlog", hint=warning)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.leave)
        self._notify = self._node_status.notify = NotifyServer(
            places.notify, self._notify_handler.hear, self._executor.doors.uids
        )
        inherited = await self._zygote.start()
        if self.options.channel is not None:
            self._zygote.renew()
        revision = self._revisions.current
        self._revision_applier.listen(revision)
        if revision is not None:
            remembered = self._journal.load()
            found = adopt(
                self._core,
                self._executor,
                self._exits,
                fleet=revision.fleet,
                remembered=remembered,
                inherited=inherited,
                ended=self._early_exits or (),
                node=str(places.control),
                now_s=self.turns.now_s(),
                random=self._random,
            )
            self._executor.settle()
            self._rules.begin(remembered)
            self._leaders.begin()
            self._fence.begin(revision)
            self._node_status.found = found
            (log.warning if found.unheld else log.info)("node.adopted", **found.to_wire())
            if revision.down and not (found.adopted or found.outlived):
                # the cluster was taken down and is down: whoever boots this node is about to bring it up again
                self._revision_applier.act_later_on(revision)
            else:
                self._revision_applier.act_on(revision)
        self._early_exits = None
        self._journal.renew()
        await self._server.start()
        self._executor.doors.renew()
        self._revision_applier.write_info()
        self._mesh.discover()
        self._rotation.begin()
        log.info(
            "node.started",
            pid=os.getpid(),
            zygote=self._zygote.pid,
            mesh=self._mesh.endpoint,
            revision=self._revisions.number,
        )
        if self.options.supervised:
            tell = Notifier.from_environment(os.environ)
            tell.send_now(
                {"MAINPID": str(os.getpid()), "READY": "1", "STATUS": f"node of {places.cluster}/{places.machine}"}
            )
            tell.close()
        if self.options.channel is not None:
            self.options.channel.send(UP)
            self.options.channel.close()

    async def stop(self, *, is_handed_on: bool = False) -> None:
        """The end on purpose: others are told, the zygote ends, nothing is left but the state directory. `is_handed_on`: everything is let
        go of as it is, for another node of this machine."""
        zygote = self._zygote.pid
        self.turns.close()
        self._liveness.close()
        await self._registry.close(deregister=not is_handed_on)
        await self._leaders.close(lets_go=not is_handed_on)
        self._memory_budget.close()
        await self._configs.close()
        self._chaos.close()
        if not is_handed_on:
            await self._mesh.bye()
        self._journal.renew()
        self._journal.close()
        self._rotation.close()
        if is_handed_on:
            self._zygote.leave()
        else:
            await self._zygote.stop()
        self._rules.close()
        self._fence.close()
        self._rollbacks.close()
        await self._errors.close()
        await self._executor.close()
        await self._key_operations.close()
        await self._mesh.close()
        self._hibernation_operations.close()
        self._events.close()
        if self._notify is not None:
            self._notify.close()
        self._notify_handler.close()
        if zygote is not None and not is_handed_on:
            await gone(zygote, ZYGOTE_ENDS_WITHIN_S)
        self._exits.close()
        if not is_handed_on:
            for path in (self.options.places.node, self.options.places.zygote):
                path.unlink(missing_ok=True)
        await self._server.close(is_handed_on=is_handed_on)
        log.info("node.ended", is_handed_on=is_handed_on)

    def _hand_on(self, heir: Heir) -> None:
        if self.ended.done():  # `down` was faster
            os.close(heir.control_fd)
            heir.end()
        else:
            self.ended.set_result(heir)

    def _on_finished(self) -> None:
        self.is_ending = True
        if not self.ended.done():
            self.ended.set_result(None)

    # -- operations.Owner

    def accept(self, revision: Revision, before: Revision | None, *, force_move: bool) -> None:
        self._revision_applier.accept(revision, before, force_move=force_move)

    def leave(self) -> None:
        self._core.leave()
        self.turns.soon()

    def _on_keys(self) -> None:
        self._events.rekeyed()
        self._hibernation_operations.rekeyed(self._keys.for_new)

    def _tell_others(self, rows: list[AgentRow]) -> None:
        own = [row for row in rows if row.id.machine == self.options.places.machine]
        if own:
            self._mesh.copies.publish(own)
            self._registry.tell(own)

    # -- processes that end, sockets that are kept

    def _on_exit(self, exit: Exit) -> None:
        if self._early_exits is not None:
            self._early_exits.append(exit)  # the zygote's list of what ended while there was no node
        else:
            self._executor.ended(exit)

    def _watch_orphans(self) -> None:
        """The zygote is gone: its agents are our children now, or init's; either way we see their end."""
        for running in self._executor.running.values():
            self._watch_exit(running)

    def _watch_exit(self, running: Running) -> None:
        self._exits.watch(
            key=str(running.id), incarnation=int(running.incarnation), pid=running.pid, pidfd=os.dup(running.pidfd)
        )

    def _give_sockets(self) -> None:
        for id, fds in self._executor.sockets.all().items():
            self._zygote.keep(str(id), fds)

    # -- what changes

    def _on_change(self, changed: tuple[Process, ...], removed: tuple[Process, ...]) -> None:
        self._journal.note(changed, removed)
        if removed:
            self._mesh.copies.publish_all()
        self._rules.changed(changed, removed)
        self._hibernation_operations.changed(changed, removed)
        self._liveness.changed(changed, removed)
