"""Coming to another revision agent by agent: shared by apply and rollback. Shows what changes, asks, proposes, follows, tells.

The nodes do the work and decide about it (plan/rollout.py); when this command goes away, they carry on."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final, Literal

from agentkit.errors import ConfigError
from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.change import left_out, machines_of
from startup.cli.cluster import Cluster
from startup.cli.common import (
    add_waiting_arguments,
    as_typed,
    has_colour,
    is_terminal,
    note,
    say,
    say_json,
    width_of,
)
from startup.cli.follow import Aim, Outcome, follow, log_tails
from startup.cli.nodes import nodes_of
from startup.plan.changes import Changes, changes
from startup.plan.revision import Revision, Rollout
from startup.view import document
from startup.view.changes import change_lines, heading, summary_of
from startup.view.summary import summary_lines

#: What it means for a machine that it was not told.
_DIFFERS: Final = "it does not have this revision; run the command again when it is reachable"


def add_rollout_arguments(parser: argparse.ArgumentParser) -> None:
    """What both commands take."""
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    parser.add_argument(
        "--max-unavailable",
        type=_part,
        metavar="N|PART",
        help="so many agents are being replaced at a time: a number, or a part such as 25%% (default: as the file says)",
    )
    parser.add_argument(
        "--no-rollback",
        action="store_true",
        help="when one does not become ready, leave it at that: those that changed stay",
    )
    add_waiting_arguments(parser)


def _part(text: str) -> str:
    number = text.removesuffix("%")
    if not (number.isascii() and number.isdigit() and int(number) >= 1 and (text == number or int(number) <= 100)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 on nor a part such as 25%")
    return text


def limit_of(text: str, changed: int) -> int:
    """How many at a time: `3`, or `25%` of `changed` (at least one)."""
    if text.endswith("%"):
        return max(1, math.floor(changed * int(text[:-1]) / 100))
    return int(text)


def roll_out(
    arguments: argparse.Namespace,
    cluster: Cluster,
    current: Revision,
    target: Revision,
    *,
    what: str,
    began: tuple[float, float],
    is_pushed: bool | None = None,
) -> int:
    """From `current` to `target`, which is `what` in words. `began`: when the command did, (monotonic, epoch). The exit code.

    `is_pushed`: machines' files are compared with ours, and copied there if it is true; None: not looked at."""
    _, rows = cluster.status()
    found = changes(current, target, {row.id for row in rows if row.takes_config})
    show(cluster.name, current, found, what)
    if not found and _is_everywhere(cluster, current):
        if arguments.json:
            facts = {"cluster": cluster.name, "revision": current.number, "elapsed_s": 0.0, "applied": False}
            say_json({**facts, "changes": found.to_wire()})
        return exits.DONE
    if not arguments.yes and (refused := _ask(arguments, cluster.name, found)) is not None:
        return refused
    if is_pushed is None and not cluster.unreached(machines_of(target.fleet)):
        return _roll(arguments, cluster, current, target, found, began)
    with ExitStack() as stack:
        everywhere, _ = nodes_of(stack, target.fleet, None, None, is_pushed=bool(is_pushed))
        return _roll(arguments, everywhere, current, target, found, began)


def show(name: str, current: Revision, found: Changes, what: str) -> None:
    """To an operator: what comes of `current`, by `what`."""
    look: dict[str, Any] = {"width": width_of(sys.stderr), "colour": has_colour(sys.stderr)}
    note([heading(name, current.number, what, **look), *change_lines(found, **look)])


def _is_everywhere(cluster: Cluster, current: Revision) -> bool:
    """Whether every machine has that revision: `apply` also heals those that differ."""
    summaries = [hello["revision"] for hello in cluster.ask_each("hello").values()]
    return not cluster.missing and all(it is not None and it["digest"] == current.digest() for it in summaries)


def _ask(arguments: argparse.Namespace, name: str, found: Changes) -> int | None:
    """The exit code when it shall not be; None when it shall."""
    if arguments.json or not (sys.stdin.isatty() and is_terminal(sys.stderr)):
        message = "not applied: there is no terminal to ask at; --yes applies it without asking"
        note(f"agentkit: {message}")
        if arguments.json:
            error = {"code": "ConfigError", "message": message}
            say_json({"cluster": name, "applied": False, "changes": found.to_wire(), "error": error})
        return exits.USAGE
    sys.stderr.write("apply this? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().casefold() in ("y", "yes"):
        return None
    note("nothing was changed")
    return exits.FAILED


def _roll(
    arguments: argparse.Namespace,
    cluster: Cluster,
    current: Revision,
    target: Revision,
    found: Changes,
    began: tuple[float, float],
) -> int:
    bases = cluster.numbers()
    newest = max(bases.values(), default=0)
    if newest != current.number:
        raise ConfigError(
            at=f"cluster {cluster.name}", got=f"revision {newest}, made meanwhile", want=f"revision {current.number}, which this is about",
            fix="run the command again",
        )  # fmt: skip
    text = arguments.max_unavailable or target.fleet.rollout.max_unavailable
    on_failure: Literal["roll back", "halt"] = "roll back"
    if arguments.no_rollback or not target.fleet.rollout.rollback:
        on_failure = "halt"
    rollout = Rollout(
        base=current.number,
        base_digest=current.digest(),
        max_unavailable=limit_of(text, len(found.replaced)),
        on_failure=on_failure,
    )
    revision = cluster.propose(
        replace(target, rollout=rollout, note=""), bases, force_move=getattr(arguments, "force_move", False)
    )
    unreached = left_out(cluster, machines_of(revision.fleet), _DIFFERS)
    facts = {"cluster": cluster.name, "revision": revision.number, "applied": True}
    if arguments.no_wait:
        if arguments.json:
            say_json({**facts, "changes": found.to_wire(), "unreached": unreached})
        else:
            say(
                f"{cluster.name}: the nodes have revision {revision.number}; `agentkit status --watch` shows how far they are"
            )
        return exits.FAILED if unreached else exits.DONE
    return _Following(arguments, cluster, facts, found, unreached, began).to_the_end(current, revision)


class _Following:
    """Waits until the nodes are through, or have undone it."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        cluster: Cluster,
        facts: Mapping[str, Any],
        found: Changes,
        unreached: Sequence[Mapping[str, str]],
        began: tuple[float, float],
    ) -> None:
        self._arguments = arguments
        self._cluster = cluster
        self._facts = {**facts, "changes": found.to_wire()}
        self._summary = summary_of(found)
        self._unreached = list(unreached)
        self._began = began

    def to_the_end(self, current: Revision, revision: Revision) -> int:
        aim = self._aim(revision, gone=set(current.fleet.ids()) - set(revision.fleet.ids()))
        outcome = self._follow(aim)
        if outcome.end == "undone":
            note(f"agentkit: {outcome.message}; going back to what revision {current.number} was")
            tails = self._tails_of(outcome.message, outcome)
            back = self._aim(
                replace(current, number=revision.number + 1), gone=set(revision.fleet.ids()) - set(current.fleet.ids())
            )
            return self._told(back, self._follow(back), failed=outcome.message, tails=tails)
        self._dismiss(revision)
        return self._told(aim, outcome, failed=outcome.message)

    def _aim(self, revision: Revision, gone: set[AgentId]) -> Aim:
        missing = {it["machine"] for it in self._unreached}
        wanted = [
            spec for spec in revision.fleet.agents
            if spec.enabled and spec.id not in revision.stopped and spec.machine not in missing
        ]  # fmt: skip
        return Aim(
            cluster=self._cluster.name,
            wanted=[spec.id for spec in wanted],
            optional=frozenset(spec.id for spec in wanted if not spec.required),
            unwanted=frozenset(id for id in gone if id.machine not in missing),
            number=revision.number,
            rolls=True,
        )

    def _follow(self, aim: Aim) -> Outcome:
        with self._cluster.watch() as watch:
            return follow(watch, aim, began_s=self._began[0], timeout_s=self._arguments.timeout)

    def _tails_of(self, message: str, outcome: Outcome) -> Mapping[AgentId, list[str]]:
        """The end of the log of the agent that the message is about."""
        about = [id for id in outcome.rows if f" {id} " in f"{message} "]
        rows = {id: replace(outcome.rows[id], roll_error=message) for id in about}
        return log_tails(self._cluster, rows, about)

    def _dismiss(self, revision: Revision) -> None:
        """Nodes of machines that the fleet no longer has."""
        machines = machines_of(revision.fleet)
        for machine, connection in self._cluster.connections.items():
            if machine not in machines:
                note(f"machine {machine} is no longer part of the fleet: its node stops")
                connection.ask("stop_node")

    def _told(
        self, aim: Aim, outcome: Outcome, *, failed: str = "", tails: Mapping[AgentId, list[str]] | None = None
    ) -> int:
        elapsed_s = time.monotonic() - self._began[0]
        own = log_tails(self._cluster, outcome.rows, aim.wanted)
        facts: dict[str, Any] = {"began_s": self._began[1], "elapsed_s": elapsed_s, "log_tails": own}
        if self._arguments.json:
            told = document.up(aim.cluster, outcome.rows, aim.wanted, **facts)
            log_tail = [line for lines in (tails or {}).values() for line in lines]
            more = {
                "rolled_back": failed if tails is not None else "",
                "log_tail": log_tail,
                "unreached": self._unreached,
            }
            say_json({**self._facts, **told, "revision": aim.number, **more})
        else:
            look: dict[str, Any] = {
                "width": width_of(sys.stdout),
                "colour": has_colour(sys.stdout),
                "program": as_typed(sys.argv[0]),
            }
            if not failed and outcome.end == "decided":
                say(f"{aim.cluster}: revision {aim.number}: {self._summary}")
            say(summary_lines(outcome.rows, aim.wanted, outcome.verdict, **facts, **look))
        if failed:
            note(f"agentkit: {failed}")
            for id, lines in (tails or {}).items():
                note([f"the end of the log of {id}:", *(f"  | {line}" for line in lines)])
            return outcome.exit_code or exits.FAILED
        return outcome.exit_code or (exits.FAILED if self._unreached else exits.DONE)
