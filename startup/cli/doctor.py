"""Is this machine fit to run the fleet, and are the others there? Every check with what was found, what is needed, and the fix.

    agentkit doctor                 for the fleet of the default file, if there is one
    agentkit doctor fleet.yaml
    agentkit doctor --agents 500    for that many agents on this machine

Exit 1 if a check fails; warnings do not count. --json: {"fit", "checks": [{"name", "verdict", "value", "need", "fix"}]}
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from agentkit.errors import ConfigError
from startup.cli import exits
from startup.cli.common import has_colour, note, say, say_json, width_of
from startup.cli.files import add_file_arguments
from startup.cli.fitness import Finding, examine
from startup.view.colour import GREEN, RED, YELLOW, paint
from startup.view.words import fit

if TYPE_CHECKING:
    from startup.spec.fleet import Fleet

_COLOURS = {"ok": GREEN, "warn": YELLOW, "fail": RED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser)
    parser.add_argument(
        "--agents", type=int, metavar="N", help="for N agents here (default: those of the file, else 84)"
    )


def run(arguments: argparse.Namespace) -> int:
    """0 fit, 1 not."""
    from startup.cli.elsewhere import elsewhere
    from startup.cli.facts import gather

    fleet = _fleet(arguments)
    far = elsewhere(fleet.machines) if fleet else []
    # a fresh checkout runs all machines of its file here
    ours = [machine.name for machine in fleet.machines if machine not in far] if fleet else []
    specs = [spec for spec in fleet.agents if spec.machine in ours] if fleet else []
    agents = arguments.agents if arguments.agents is not None else len(specs) if fleet else 84
    ports = {port for spec in specs for port in (spec.port, spec.health_port) if port}
    cluster = arguments.cluster or (fleet.cluster if fleet else "fleet")
    findings = examine(gather(cluster, ours[0] if ours else "local", agents=agents, ports=ports))
    if fleet and fleet.consul is not None:
        from startup.cli import registry_fitness

        findings += registry_fitness.examine(registry_fitness.ask(fleet, fleet.consul, tuple(ours)))
    if fleet and far:
        from startup.cli import neighbours

        findings += neighbours.examine(fleet, far)
    is_fit = not any(finding.verdict == "fail" for finding in findings)
    if arguments.json:
        say_json({"fit": is_fit, "checks": [asdict(finding) for finding in findings]})
    else:
        say(finding_lines(findings, width=width_of(sys.stdout), colour=has_colour(sys.stdout)))
    return exits.DONE if is_fit else exits.FAILED


def _fleet(arguments: argparse.Namespace) -> Fleet | None:
    """Of the file, when there is one that can be read: doctor also runs where nothing is configured yet."""
    from startup.cli.files import counted, load_file

    try:
        loaded = load_file(arguments, inspect=False)
    except ConfigError:
        if arguments.file or arguments.machine:
            raise
        return None
    if loaded.errors:
        note(f"{os.fspath(arguments.file or 'the file')} has {counted(loaded.errors)}; `agentkit validate` tells them")
    return loaded.fleet or (loaded.resolved.fleet if loaded.resolved else None)


def finding_lines(findings: Sequence[Finding], *, width: int, colour: bool = False) -> Iterator[str]:
    """A line per check; need and fix below those that are not ok."""
    label = max(len(finding.name) for finding in findings)
    for finding in findings:
        word = paint(f"{finding.verdict:<4}", _COLOURS[finding.verdict], on=colour)
        need = f"  (need {finding.need})" if finding.verdict == "ok" else ""
        yield f"{word}  {finding.name:<{label}}  {fit(finding.value + need, width - label - 8)}"
        if finding.verdict != "ok":
            yield f"      need: {finding.need}"
            yield f"      fix:  {finding.fix}"
    failed = sum(finding.verdict == "fail" for finding in findings)
    warned = sum(finding.verdict == "warn" for finding in findings)
    yield ""
    yield f"{len(findings)} checks: {failed} failed, {warned} warnings" + ("" if failed else "; this machine is fit")
