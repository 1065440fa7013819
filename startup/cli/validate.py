"""Report every problem of a configuration file, in one run, and start nothing.

Each problem has its file and line, what was found, what is wanted, and the fix.
Errors keep a fleet from starting (exit code 2), warnings and notes do not. Modules
are imported in child processes that are thrown away; ports are looked at as they
are on this machine now, so a fleet that runs already is no stranger to its own.

    agentkit validate                                   configs/startup_config.yaml
    agentkit validate fleet.yaml --port-offset 1000
    agentkit validate --machine main_pc=old/main.yaml --machine pc2=old/pc2.yaml

--json: {"file", "cluster", "ok", "problems": [{"severity", "check", "place", "at",
"found", "want", "fix"}], "agents", "machines"}
"""

from __future__ import annotations

import argparse
import sys

from startup.cli import exits
from startup.cli.common import say, say_json, width_of
from startup.cli.files import add_file_arguments, counted, load_file, own_pids, shown
from startup.view.words import count

#: Lines longer than this are hard to read, however wide the terminal is.
WIDEST = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE and what goes with it."""
    add_file_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """0: it can be started; 2: it can't."""
    from startup.spec.load import check

    loaded = load_file(arguments)
    fleet = loaded.resolved.fleet if loaded.resolved else None
    own = own_pids(fleet.cluster) if fleet else ()
    problems = (*loaded.problems, *check(loaded, own_pids=own))
    is_good = not any(problem.severity == "error" for problem in problems)
    if arguments.json:
        say_json(
            {
                "file": fleet.file if fleet else arguments.file,
                "cluster": fleet.cluster if fleet else None,
                "ok": is_good,
                "problems": [problem.to_wire() for problem in problems],
                "agents": len(fleet.agents) if fleet else 0,
                "machines": len(fleet.machines) if fleet else 0,
            }
        )
    else:
        say(shown(problems, min(WIDEST, width_of(sys.stdout))))
        size = f"{count(len(fleet.agents), 'agent')} on {count(len(fleet.machines), 'machine')}; " if fleet else ""
        say(f"{fleet.cluster if fleet else arguments.file}: {size}{counted(problems)}")
    return exits.DONE if is_good else exits.USAGE
