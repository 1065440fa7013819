"""Show what agents have reported: one line for each kind of error, with its count, the latest first.

    agentkit errors                            what is not resolved, of the whole cluster
    agentkit errors --agent TaskManager --severity error
    agentkit errors -f                         and what comes, until Ctrl-C
    agentkit errors show 3fa9c1d2              one in full: context, traceback
    agentkit errors resolve 3fa9c1d2           dealt with; when it happens again it is back, and says so

An ID may be shortened to what is unambiguous. With --json: one document {"errors": [...]}, with -f one object per line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from agentkit.errors import ConfigError
from agentkit.names import matching
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import author, has_colour, near, note, say, say_json, width_of
from startup.view import errors as view

SEVERITIES: Final = ("info", "warning", "error", "critical")
#: Seconds between two questions of -f: an agent sends its errors once a second.
ASK_EVERY_S: Final = 1.0
#: An error's id, or its beginning.
_ID: Final = re.compile(r"[0-9a-fA-F]{4,16}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="show|resolve ID", help="one error in full; one that is dealt with")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--agent", metavar="AGENT", help="only of this one: name, name#slot or machine/name")
    parser.add_argument("--severity", choices=SEVERITIES, default="info", help="this or worse (default: all)")
    parser.add_argument("--all", action="store_true", help="also those that are resolved")
    parser.add_argument(
        "-n", "--lines", type=int, default=50, metavar="N", help="at most N of each machine (default 50)"
    )


def run(arguments: argparse.Namespace) -> int:
    """0, however many errors there are: it is the question that succeeded."""
    action, *ids = arguments.words or ["list"]
    if action not in ("list", "show", "resolve") or (action == "list") == bool(ids):
        fix = (
            f"for one agent's errors: --agent {action}" if action not in ("show", "resolve") else f"errors {action} ID"
        )
        raise ConfigError(at="errors", got=" ".join(arguments.words), want="show ID, resolve ID, or nothing", fix=fix)
    with Cluster.find(arguments.cluster) as cluster:
        if action == "show":
            return _show(cluster, arguments, ids)
        if action == "resolve":
            return _resolve(cluster, arguments, ids)
        return _follow(cluster, arguments) if arguments.follow else _list(cluster, arguments)


def _list(cluster: Cluster, arguments: argparse.Namespace) -> int:
    groups, notes, _ = _ask(cluster, arguments, {})
    if not groups and arguments.agent:  # there may be errors of one that the fleet does not have any more
        known = [row.id for row in cluster.status()[1]]
        if not matching(arguments.agent, known):
            fix = near(arguments.agent, known)
            raise ConfigError(at="--agent", got=arguments.agent, want="an agent of this cluster", fix=fix)
    if arguments.json:
        say_json({"cluster": cluster.name, "errors": groups, "notes": notes})
        return exits.DONE
    if groups:
        say(view.table(groups, now_s=time.time(), width=width_of(sys.stdout), colour=has_colour(sys.stdout)))
    else:
        note("no errors" if arguments.all else "no errors that are not resolved")
    note(notes)
    return exits.DONE


def _follow(cluster: Cluster, arguments: argparse.Namespace) -> int:
    after: dict[str, str] = {}
    told: set[str] = set()
    while True:
        groups, notes, after = _ask(cluster, arguments, after)
        fresh = [text for text in notes if text not in told]
        told.update(fresh)
        note(fresh)
        for group in reversed(groups):
            if arguments.json:
                say(json.dumps(group, default=str))
            else:
                say(view.line(group, width=width_of(sys.stdout), colour=has_colour(sys.stdout)))
        time.sleep(ASK_EVERY_S)


def _ask(
    cluster: Cluster, arguments: argparse.Namespace, after: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[str], dict[str, str]]:
    """Groups of the whole cluster, the latest first; what has to be said beside; the cursors for the next time."""
    answer = cluster.ask(
        "errors",
        agent=arguments.agent or "",
        severity=arguments.severity,
        resolved=arguments.all,
        limit=arguments.lines,
        after=dict(after),
    )
    groups: list[dict[str, Any]] = []
    notes: list[str] = []
    cursors = dict(after)
    for machine, told in sorted(answer["machines"].items()):
        if told is None:
            notes.append(f"{machine} does not answer: its errors are missing")
            continue
        groups += told["groups"]
        notes += [f"{machine}: {text}" for text in told["notes"]]
        cursors[machine] = told["cursor"]
    return sorted(groups, key=lambda group: -group["last_s"]), notes, cursors


def _show(cluster: Cluster, arguments: argparse.Namespace, ids: list[str]) -> int:
    groups = [_one(cluster, id) for id in ids]
    if arguments.json:
        say_json({"cluster": cluster.name, "errors": groups})
        return exits.DONE
    width, colour = width_of(sys.stdout), has_colour(sys.stdout)
    for place, group in enumerate(groups):
        say([*([""] if place else []), *view.details(group, now_s=time.time(), width=width, colour=colour)])
    return exits.DONE


def _resolve(cluster: Cluster, arguments: argparse.Namespace, ids: list[str]) -> int:
    groups = []
    for found in [_one(cluster, id) for id in ids]:
        done = cluster.ask("resolve", id=found["id"], by=author())["group"] or found
        groups.append(done)
        if not arguments.json:
            already = " already" if found["resolved_s"] else ""
            say(f"{done['id'][: view.ID_DIGITS]} is resolved{already}: {done['agent']} {view.what(done)}")
    if arguments.json:
        say_json({"cluster": cluster.name, "errors": groups})
    return exits.DONE


def _one(cluster: Cluster, id: str) -> dict[str, Any]:
    """The error that `id` means; ConfigError when that is none, or several."""
    if not _ID.fullmatch(id):
        fix = "`agentkit errors` shows them"
        raise ConfigError(at="error id", got=id, want="4 to 16 hexadecimal digits", fix=fix)
    answer = cluster.ask("error", id=id)
    groups: list[dict[str, Any]] = answer["groups"]
    if len(groups) == 1:
        return groups[0]
    if groups:
        each = ", ".join(f"{group['id']} ({group['agent']})" for group in groups)
        raise ConfigError(at="error id", got=id, want="one error", fix=f"it may mean {each}")
    silent = (
        f"{', '.join(answer['silent'])} did not answer" if answer["silent"] else "`agentkit errors --all` lists them"
    )
    raise ConfigError(at="error id", got=id, want="an error that is known", fix=silent)
