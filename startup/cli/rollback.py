"""Bring a running fleet back to an earlier revision: the same difference, question and rollout as `apply`, under a new number.

    agentkit rollback --list       the revisions that are kept, with what each changed
    agentkit rollback              to the last one that wanted something else, and was not itself rolled back
    agentkit rollback 7            to that one

A revision is what a fleet file said then, with what operators had stopped and scaled. Each machine keeps the last 20.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from agentkit.errors import ConfigError
from startup.cli import exits
from startup.cli.change import current
from startup.cli.cluster import Cluster
from startup.cli.common import note, say, say_json, width_of
from startup.cli.rollout import add_rollout_arguments, roll_out
from startup.plan.changes import changes
from startup.plan.revision import Revision
from startup.view.changes import summary_of
from startup.view.words import columns

_HEADINGS: Final = ("REVISION", "TIME", "AUTHOR", "DIGEST", "CHANGED")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "revision",
        nargs="?",
        type=int,
        metavar="REVISION",
        help="default: the last that differs and was not itself rolled back",
    )
    parser.add_argument("--list", action="store_true", help="show the revisions that are kept")
    add_rollout_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Codes as `apply`."""
    began = (time.monotonic(), time.time())
    try:
        with Cluster.reach(arguments.cluster) as cluster:
            running = current(cluster)
            numbers = [int(it) for it in cluster.ask("revisions")["numbers"]]
            if arguments.list:
                return _listed(arguments, cluster, [_revision(cluster, it) for it in numbers], running)
            number = arguments.revision
            if number is None:
                earlier = before((_revision(cluster, it) for it in reversed(numbers)), running)
                number = earlier.number if earlier else running.number - 1
            if number not in numbers:
                kept = ", ".join(map(str, numbers))
                raise ConfigError(
                    at="REVISION",
                    got=str(number),
                    want=f"one that is kept: {kept}",
                    fix="`agentkit rollback --list` shows them",
                )
            earlier = _revision(cluster, number)
            target = replace(earlier, number=running.number, down=False)
            what = f"what revision {number} was"
            return roll_out(arguments, cluster, running, target, what=what, began=began)
    except KeyboardInterrupt:
        note("detached: what the nodes have been told, they carry on; `agentkit status --watch` shows it")
        return exits.INTERRUPTED


def before(kept: Iterable[Revision], running: Revision) -> Revision | None:
    """What `rollback` means without a number: of `kept`, newest first, the last that wanted something else than `running`, and that
    was neither a `down` nor rolled back."""
    undone: set[int] = set()
    for revision in kept:
        if revision.note and revision.rollout is not None:
            undone.add(revision.rollout.base)
        wants_else = revision.number < running.number and revision.digest() != running.digest()
        if wants_else and not revision.down and revision.number not in undone:
            return revision
    return None


def _revision(cluster: Cluster, number: int) -> Revision:
    return Revision.from_wire(cluster.ask("revision", number=number))


def _listed(arguments: argparse.Namespace, cluster: Cluster, kept: Sequence[Revision], running: Revision) -> int:
    rows = [_row(revision, before) for revision, before in zip(kept, [None, *kept], strict=False)]
    if arguments.json:
        say_json({"cluster": cluster.name, "current": running.number, "revisions": rows})
        return exits.DONE
    table = [_HEADINGS, *_cells(rows, running.number)]
    say(columns(table, width=width_of(sys.stdout)))
    return exits.DONE


def _row(revision: Revision, before: Revision | None) -> dict[str, Any]:
    """`before`: the one that is kept in front of it."""
    changed = "" if before is None else summary_of(changes(before, revision))
    if revision.down:
        changed = "down"
    return {
        "number": revision.number,
        "time_s": revision.time_s,
        "author": revision.author,
        "digest": revision.digest(),
        "changed": changed,
        "note": revision.note,
    }


def _cells(rows: Sequence[dict[str, Any]], current_number: int) -> Iterator[tuple[str, ...]]:
    for row in rows:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["time_s"]))
        words = "; ".join(filter(None, ("current" * (row["number"] == current_number), row["note"], row["changed"])))
        yield (str(row["number"]), at, row["author"], row["digest"], words)
