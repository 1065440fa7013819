"""What start, stop and restart have in common: naming agents, proposing who is stopped, waiting, telling how it went."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentkit.errors import ConfigError
from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import add_waiting_arguments, as_typed, has_colour, note, say, say_json, width_of
from startup.cli.follow import Aim, Outcome, follow, log_tails
from startup.plan.closure import closure
from startup.plan.revision import Revision
from startup.spec.fleet import Fleet
from startup.view import document
from startup.view.summary import summary_lines

#: What it means for a machine that it was not told.
RUN_ON = "its agents go on as they were; run the command again when it is reachable, or there"


def add_agents(parser: argparse.ArgumentParser) -> None:
    """The arguments of all three."""
    parser.add_argument("agents", nargs="+", metavar="AGENT", help="name, name#slot or machine/name")
    add_waiting_arguments(parser)


def current(cluster: Cluster) -> Revision:
    """The revision that is acted on; ConfigError when nothing was ever started, or all of it is going down."""
    revision = cluster.revision()
    if revision is None or revision.down:
        raise ConfigError(
            at=f"cluster {cluster.name}", got="no fleet" if revision is None else "a fleet going down", want="a running fleet",
            fix="`agentkit up` starts one",
        )  # fmt: skip
    return revision


def with_requirements(fleet: Fleet, chosen: Collection[AgentId]) -> set[AgentId]:
    """`chosen` and every agent that they require, directly or not."""
    known = set(fleet.ids())
    below = {
        spec.id: {target for dependency in spec.dependencies if dependency.required for target in dependency.agents}
        & known
        for spec in fleet.agents
    }
    return set(closure(below, chosen))


def with_dependants(fleet: Fleet, chosen: Collection[AgentId]) -> set[AgentId]:
    """`chosen` and every agent that requires one of them, directly or not."""
    above: dict[AgentId, set[AgentId]] = {}
    for spec in fleet.agents:
        for dependency in spec.dependencies:
            if dependency.required and len(dependency.agents) == 1:  # with a second provider it can do without this one
                above.setdefault(dependency.agents[0], set()).add(spec.id)
    return set(closure(above, chosen))


def machines_of(fleet: Fleet) -> list[str]:
    """Their names."""
    return [str(machine.name) for machine in fleet.machines]


def left_out(cluster: Cluster, machines: Collection[str], what: str) -> list[dict[str, str]]:
    """Those of `machines` that were not told, for --json, after saying so; `what` follows from it."""
    missing = cluster.unreached(machines)
    for machine, why in missing.items():
        because = "" if machine in cluster.has_told else f" ({why})"
        note(f"agentkit: {machine} was not reached{because}: {what}")
    return [{"machine": machine, "reason": why} for machine, why in missing.items()]


def wait_until_up(
    arguments: argparse.Namespace,
    cluster: Cluster,
    revision: Revision,
    ids: Sequence[AgentId],
    *,
    began: tuple[float, float],
    unreached: Sequence[Mapping[str, str]] = (),
    **aim: Any,
) -> int:
    """Follow `ids` until they are up, and tell. `began`: when the command did, (monotonic, epoch). Returns the exit code.

    `unreached`: machines (left_out) whose agents are not waited for."""
    missing = {it["machine"] for it in unreached}
    wanted = [id for id in ids if id.machine not in missing]
    optional = frozenset(spec.id for spec in revision.fleet.agents if not spec.required) - set(ids)
    goal = Aim(cluster=cluster.name, wanted=wanted, optional=optional, number=revision.number, **aim)
    with cluster.watch() as watch:
        outcome = follow(watch, goal, began_s=began[0], timeout_s=arguments.timeout)
    return report(arguments, cluster, goal, outcome, began=began, unreached=unreached)


def report(
    arguments: argparse.Namespace,
    cluster: Cluster,
    aim: Aim,
    outcome: Outcome,
    *,
    began: tuple[float, float],
    unreached: Sequence[Mapping[str, str]] = (),
    more: Mapping[str, Any] | None = None,
) -> int:
    """What came of it, as text or JSON; the exit code. `unreached`: machines that were not, already told as text. `more`: for JSON."""
    elapsed_s = time.monotonic() - began[0]
    tails = log_tails(cluster, outcome.rows, aim.wanted)
    facts: dict[str, Any] = {"began_s": began[1], "elapsed_s": elapsed_s, "log_tails": tails}
    if arguments.json:
        say_json(
            {
                **document.up(aim.cluster, outcome.rows, aim.wanted, **facts),
                "unreached": list(unreached),
                **(more or {}),
            }
        )
    else:
        look: dict[str, Any] = {
            "width": width_of(sys.stdout),
            "colour": has_colour(sys.stdout),
            "program": as_typed(sys.argv[0]),
        }
        say(summary_lines(outcome.rows, aim.wanted, outcome.verdict, **facts, **look))
    if outcome.message:
        sys.stderr.write(f"agentkit: {outcome.message}\n")
    return outcome.exit_code or (exits.FAILED if unreached else exits.DONE)
