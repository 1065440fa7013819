"""Show in which order a fleet would start, and start nothing.

Levels: an agent starts the moment what it needs is ready, at the earliest with its
level. The longest path is the chain that a start has to wait for. A file with
errors is refused with its problems (`agentkit validate`), exit code 2.

    agentkit plan                                       text
    agentkit plan fleet.yaml -f mermaid                 for Markdown
    agentkit plan fleet.yaml -f dot | dot -Tsvg         with Graphviz

-f json, or --json: {"cluster", "machines", "agents": [{"id", "level", "port",
"health_check_port", "dependencies", ...}], "levels", "critical_path", "phases"}
"""

from __future__ import annotations

import argparse
import sys

from startup.cli import exits
from startup.cli.common import note, say, say_json, width_of
from startup.cli.files import add_file_arguments, counted, load_file, shown

#: Lines longer than this are hard to read, however wide the terminal is.
WIDEST = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE and what goes with it, and the format."""
    add_file_arguments(parser)
    parser.add_argument(
        "-f", "--format", choices=["text", "json", "mermaid", "dot"], default="text", help="default: text"
    )


def run(arguments: argparse.Namespace) -> int:
    """0; 2 when the file has errors."""
    from startup.view import graph

    loaded = load_file(arguments)
    if loaded.errors or loaded.fleet is None:
        if arguments.json:
            say_json({"problems": [problem.to_wire() for problem in loaded.problems]})
        note(shown(loaded.errors, min(WIDEST, width_of(sys.stderr))))
        note(f"agentkit: no plan: {counted(loaded.errors)}")
        return exits.USAGE
    if arguments.json or arguments.format == "json":
        say_json(graph.document(loaded.fleet))
    elif arguments.format == "mermaid":
        say(graph.mermaid(loaded.fleet))
    elif arguments.format == "dot":
        say(graph.dot(loaded.fleet))
    else:
        say(graph.text(loaded.fleet, min(WIDEST, width_of(sys.stdout))))
    return exits.DONE
