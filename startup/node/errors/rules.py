"""What the node does about errors: restarts, quarantines and webhooks as `on_error` says, and its own reports of processes that fail.

Decisions are plan/reactions.py's and plan/incidents.py's. Who is quarantined stands in a file: it survives node and machine, until an
operator starts the agent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgpack

from agentkit.clock import SYSTEM_CLOCK
from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from agentkit.observe.reports import shown
from startup.node.errors.desk import ErrorDesk
from startup.node.errors.webhooks import Webhooks
from startup.node.paths import Places, write_atomically
from startup.node.turns import Turns
from startup.plan import process as proc
from startup.plan import transitions
from startup.plan.incidents import Incidents, word_of_the_node
from startup.plan.phase import Phase
from startup.plan.process import QUARANTINED, Process
from startup.plan.reactions import Reaction, Reactions, Seen
from startup.plan.revision import Revision

if TYPE_CHECKING:
    from startup.node.errors.store import Offered, Stored

log = get_logger("node.rules")

#: Longest reason shown in `status`, in characters.
MAX_REASON: Final = 300


class ErrorRules:
    """One for a node, on its loop."""

    def __init__(self, places: Places, turns: Turns, desk: ErrorDesk) -> None:
        self.webhooks = Webhooks()
        self._turns = turns
        self._core = turns.core
        self._desk = desk
        self._where = {"cluster": places.cluster, "machine": places.machine}
        self._file = places.state / "quarantine.msgpack"
        self._quarantined: dict[AgentId, str] = self._load()
        self._reactions = Reactions()
        self._incidents = Incidents()

    def begin(self, remembered: Mapping[str, Mapping[str, Any]]) -> None:
        """After what an earlier node left was adopted: its quarantines hold, and what it reported is not reported again."""
        for key, facts in remembered.items():
            self._incidents.remember(AgentId.parse(key), facts)
        now_s = self._turns.now_s()
        for id, why in tuple(self._quarantined.items()):
            if id in self._core.processes:
                self._core.on(id, partial(transitions.quarantined, why=why, now_s=now_s), now_s)

    def revised(self, revision: Revision) -> None:
        """Rules of a new revision. Quarantined slots of which nothing is known (the machine was booted) stay out of service."""
        own = {spec.id: spec for spec in revision.fleet.on(self._where["machine"])}
        self._reactions.keep({id: spec.on_error for id, spec in own.items()})
        now_s = self._turns.now_s()
        for id in [id for id in self._quarantined if id not in own or revision.down]:
            self._release(id)
        for id, why in self._quarantined.items():
            if id not in self._core.processes:
                p, _ = transitions.quarantined(proc.new(own[id], now_s), why, now_s)
                self._core.remember(p)

    def changed(self, processes: Iterable[Process], removed: Iterable[Process]) -> None:
        """Own slots that are not what they were."""
        wall_s = SYSTEM_CLOCK.wall_s()
        for p in processes:
            if (group := self._incidents.noticed(p, wall_s)) is not None:
                self._desk.add(p.id, int(p.incarnation), group)
            if p.id in self._quarantined and not p.is_quarantined and not self._core.is_leaving:
                self._release(p.id)
        for p in removed:
            self._incidents.forget(p.id)
            self._release(p.id)

    def stored(self, batch: Offered, stored: list[Stored]) -> None:
        """Reports that are new: act on them, and show the last of them in `status`."""
        id = AgentId.parse(batch.agent)
        p = self._core.processes.get(id)
        if p is None:
            return
        for found in stored:
            group = found.group
            seen = Seen(
                id=id,
                incarnation=batch.incarnation,
                group=found.id,
                severity=group.severity,
                kind=group.kind,
                message=group.message,
                count=group.count,
            )
            for reaction in self._reactions.consider(p.spec.on_error, seen, self._turns.now_s()):
                self._act(reaction, found)
        if batch.source:
            latest = max(stored, key=lambda found: found.group.last_s).group
            self._show_last(p, batch.incarnation, f"{latest.severity}: {latest.message}")

    def report(self, id: AgentId, incarnation: Incarnation, message: str) -> None:
        """What somebody of the node's found out about a process that goes on."""
        self._desk.add(id, int(incarnation), word_of_the_node("error", message, SYSTEM_CLOCK.wall_s()))
        if (p := self._core.processes.get(id)) is not None:
            self._show_last(p, int(incarnation), message)

    def warn(self, id: AgentId, incarnation: Incarnation, message: str) -> None:
        """What an operator should know of, and the process is not to blame for."""
        self._desk.add(id, int(incarnation), word_of_the_node("warning", message, SYSTEM_CLOCK.wall_s()))

    def close(self) -> None:
        self.webhooks.close()

    # -- acting

    def _act(self, reaction: Reaction, found: Stored) -> None:
        seen = reaction.seen
        log.warning("rule.acts", agent=str(seen.id), do=reaction.rule.do, error=found.id, count=reaction.count)
        match reaction.rule.do:
            case "webhook":
                document = {**self._where, **_document(reaction, found)}
                if reaction.rule.url is not None and not self.webhooks.post(reaction.rule.url, document):
                    log.warning("webhook.dropped", agent=str(seen.id), error=found.id)
            case "restart":
                self._restart(reaction)
            case "quarantine":
                self._quarantine(reaction)

    def _restart(self, reaction: Reaction) -> None:
        id, now_s = reaction.seen.id, self._turns.now_s()
        p = self._core.processes[id]
        if int(p.incarnation) != reaction.seen.incarnation or p.phase is not Phase.READY or p.swap is not None:
            return  # the last words of a process that is gone, or that comes up or goes down anyway
        why = shown(f"restarted by a rule: {reaction.why}", MAX_REASON)
        is_restarted = self._core.restart_by_rule(id, why, now_s)
        self._turns.soon()
        if not is_restarted:
            budget = p.spec.restart
            why = f"not restarted by its rule: {budget.max_attempts} restarts within {budget.window_s:g} s are used up"
        self._desk.add(id, int(p.incarnation), word_of_the_node("warning", why, SYSTEM_CLOCK.wall_s()))

    def _quarantine(self, reaction: Reaction) -> None:
        id, now_s = reaction.seen.id, self._turns.now_s()
        why = shown(f"{reaction.why}; `agentkit start {id}` puts it back", MAX_REASON)
        if id in self._quarantined:
            return
        self._quarantined[id] = why
        self._save()
        self._turns.on(id, partial(transitions.quarantined, why=why, now_s=now_s))
        self._desk.add(
            id, reaction.seen.incarnation, word_of_the_node("warning", QUARANTINED + why, SYSTEM_CLOCK.wall_s())
        )

    def _show_last(self, p: Process, incarnation: int, text: str) -> None:
        def show(now: Process) -> Process:
            return now if now.last_error == text else replace(now, last_error=text)

        self._turns.on(p.id, show, incarnation=Incarnation(incarnation))

    # -- who is quarantined

    def _release(self, id: AgentId) -> None:
        if self._quarantined.pop(id, None) is not None:
            log.info("quarantine.over", agent=str(id))
            self._save()

    def _save(self) -> None:
        write_atomically(self._file, msgpack.packb({str(id): why for id, why in self._quarantined.items()}))

    def _load(self) -> dict[AgentId, str]:
        try:
            found = msgpack.unpackb(self._file.read_bytes())
            return {AgentId.parse(id): str(why) for id, why in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            log.error("quarantine.unreadable", file=str(self._file), error=str(exc), hint="nobody is quarantined now")
            return {}


def _document(reaction: Reaction, found: Stored) -> dict[str, Any]:
    """What a webhook is sent; the traceback is for `agentkit errors show`."""
    group, rule = found.group, reaction.rule
    return {
        "agent": str(reaction.seen.id),
        "id": found.id,
        "severity": group.severity,
        "kind": group.kind,
        "place": group.where,
        "message": group.message,
        "context": group.context,
        "count": reaction.count,
        "total": found.total,
        "first_s": group.first_s,
        "last_s": group.last_s,
        "new": found.is_new,
        "reopened": found.is_reopened,
        "rule": {"severity": rule.severity, "after": rule.after, "within_s": rule.within_s},
    }
