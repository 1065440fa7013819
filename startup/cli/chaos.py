"""Carry out a written plan of kills, stops, delays and partitions against the running fleet, and tell what was lost.

    agentkit chaos plan.yaml             asks before it begins
    agentkit chaos plan.yaml --dry-run   what would be done, when

docs/chaos.md describes the file. Ctrl-C ends at once and heals whatever was done; what lasts also ends by itself. Exit code 1 when a limit
of the plan was broken, or not everything that was up at the beginning is up at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentkit.errors import ConfigError
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import is_terminal, note, say, say_json
from startup.view.words import count

if TYPE_CHECKING:
    from startup.plan.chaos import Strike
    from startup.plan.row import AgentRow
    from startup.spec.chaos import ChaosPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the plan")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the plan's")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")


def run(arguments: argparse.Namespace) -> int:
    """0: nothing was lost; 1: something was; 2: the plan can't be used."""
    plan = _plan(arguments)
    with Cluster.reach(arguments.cluster) as cluster:
        from startup.plan.phase import UP

        _, rows = cluster.status()
        wanted = [row for row in rows if row.phase in UP]
        strikes = _strikes(plan, wanted, sorted(cluster.connections), arguments.file)
        if arguments.dry_run:
            return _shown(arguments, strikes)
        if not (arguments.yes or _confirmed(cluster, plan, strikes)):
            return exits.FAILED
        return _performed(arguments, cluster, plan, strikes, wanted)


def _plan(arguments: argparse.Namespace) -> ChaosPlan:
    from startup.spec.chaos import load
    from startup.spec.problem import Problem

    problems: list[Problem] = []
    plan = load(arguments.file, problems)
    for problem in problems:
        note(str(problem))
    if plan is None:
        raise ConfigError(
            at=str(arguments.file), got=count(len(problems), "problem"), want="a plan as in docs/chaos.md"
        )
    return plan if arguments.seed is None else plan.model_copy(update={"seed": arguments.seed})


def _strikes(plan: ChaosPlan, wanted: Sequence[AgentRow], machines: Sequence[str], file: Path) -> list[Strike]:
    from startup.plan.chaos import strikes

    try:
        return strikes(plan, [row.id for row in wanted], machines)
    except ValueError as exc:
        raise ConfigError(at=str(file), got=str(exc), want="agents that are up, machines that answer") from exc


def _shown(arguments: argparse.Namespace, strikes: Sequence[Strike]) -> int:
    if arguments.json:
        say_json({"strikes": [{"at_s": it.at_s, "fault": str(it)} for it in strikes]})
    else:
        say(f"{it.at_s:7.2f} s  {it}" for it in strikes)
    return exits.DONE


def _confirmed(cluster: Cluster, plan: ChaosPlan, strikes: Sequence[Strike]) -> bool:
    what = f"{len(strikes)} faults within {plan.duration:g} s in cluster {cluster.name} on {', '.join(cluster.connections)}"
    if not is_terminal(sys.stdin):
        raise ConfigError(at="chaos", got=what, want="somebody who says yes", fix="--yes says so beforehand")
    note(f"{what}: processes of running agents are killed. Go on? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _performed(
    arguments: argparse.Namespace,
    cluster: Cluster,
    plan: ChaosPlan,
    strikes: Sequence[Strike],
    wanted: Sequence[AgentRow],
) -> int:
    from startup.cli.chaos_probes import Probes
    from startup.cli.chaos_run import Run
    from startup.node.paths import Places
    from startup.view.chaos import broken, report

    here = sorted(cluster.here)
    if plan.probe and not here:
        raise ConfigError(at="probe", got="no node on this host", want="a machine of the fleet to call from")
    going = Run({machine: cluster.doors[machine] for machine in cluster.connections}, wanted)
    node = str(Places.of(cluster.name, here[0]).control) if here else ""
    interrupted = False
    with Probes(plan.probe, node) as probes:
        try:
            going.perform(strikes, plan.settle)
        except KeyboardInterrupt:
            interrupted = True
            note("interrupted: healing")
        finally:
            going.heal()
    found: dict[str, Any] = {
        "cluster": cluster.name,
        "seed": plan.seed,
        "faults": [it.to_wire() for it in going.struck],
        "probes": [it.to_wire() for it in probes.tallies],
        **going.audit(),
    }
    found["broken"] = broken(found, plan.expect)
    if arguments.json:
        say_json(found)
    else:
        say(report(found))
    if interrupted:
        return exits.INTERRUPTED
    return exits.FAILED if found["broken"] else exits.DONE
