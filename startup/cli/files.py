"""How commands that read a configuration file find it, and how its problems are shown."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Final

from agentkit.directory.locate import DEFAULT_FILES, default_file
from agentkit.errors import ConfigError
from startup.cli.common import note, say_json, width_of

if TYPE_CHECKING:
    from agentkit.names import AgentId
    from startup.spec.fleet import Fleet
    from startup.spec.load import Loaded
    from startup.spec.ports import PortPair
    from startup.spec.problem import Problem

#: Lines longer than this are hard to read, however wide the terminal is.
WIDEST: Final = 110
_HEADINGS: Final = {"error": "errors", "warning": "warnings", "note": "notes"}


def add_file_arguments(parser: argparse.ArgumentParser, *, none: str = "") -> None:
    """FILE, --machine NAME=FILE and --port-offset, alike in every command that reads a file. `none`: what is meant without FILE."""
    parser.add_argument("file", nargs="?", metavar="FILE", help=f"default: {none or ', then '.join(DEFAULT_FILES)}")
    parser.add_argument(
        "--machine", action="append", default=[], metavar="NAME=FILE",
        help="the agents of machine NAME, from a file of an older shape; may be repeated. FILE then adds what those leave out",
    )  # fmt: skip
    parser.add_argument("--port-offset", type=int, default=0, metavar="N", help="added to every port")


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """What commands that act on a file may do to other machines."""
    parser.add_argument(
        "--push", action="store_true", help="copy code and configuration to machines where they differ (never data)"
    )
    parser.add_argument(
        "--force-move",
        action="store_true",
        help="start agents that moved here although the machine where they were does not answer",
    )


def file_of(arguments: argparse.Namespace) -> Path | None:
    """FILE, or the first default that exists; None when --machine names the files and FILE is left out. ConfigError: none."""
    if arguments.file is not None:
        return Path(arguments.file)
    if arguments.machine:
        return None
    if found := default_file(Path()):
        return found
    raise ConfigError(
        at="FILE", got="nothing", want="a configuration file", fix=f"there is no {' or '.join(DEFAULT_FILES)} here"
    )


def machines_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """NAME -> file of the `--machine` options."""
    found: dict[str, Path] = {}
    for text in arguments.machine:
        name, equals, file = text.partition("=")
        if not (name and equals and file) or name in found:
            want = "NAME=FILE, each NAME once"
            raise ConfigError(
                at="--machine", got=text, want=want, fix="for example --machine pc2=pc2/startup_config.yaml"
            )
        found[name] = Path(file)
    return found


def load_file(
    arguments: argparse.Namespace, *, inspect: bool = True, previous_ports: Mapping[AgentId, PortPair] | None = None
) -> Loaded:
    """What the arguments of `add_file_arguments` name, loaded in this process's environment."""
    from startup.spec.load import load

    return load(
        file_of(arguments),
        environ=os.environ,
        machines=machines_of(arguments),
        cluster=arguments.cluster,
        port_offset=arguments.port_offset,
        previous_ports=previous_ports,
        inspect=inspect,
    )


def checked_fleet(
    arguments: argparse.Namespace, previous_ports: Mapping[AgentId, PortPair] | None, outcome: str
) -> Fleet | None:
    """The fleet of a file that has been loaded and checked; None when it has errors. Problems are told; `outcome`: what errors mean."""
    from startup.spec.load import check

    loaded = load_file(arguments, previous_ports=previous_ports)
    cluster = loaded.resolved.fleet.cluster if loaded.resolved else None
    problems = (*loaded.problems, *check(loaded, own_pids=own_pids(cluster) if cluster else ()))
    if problems:
        note(shown(problems, min(WIDEST, width_of(sys.stderr))))
    if not any(problem.severity == "error" for problem in problems):
        return loaded.fleet
    message = f"{outcome}: {counted(problems)}"
    note(f"agentkit: {message}")
    if arguments.json:
        told = [problem.to_wire() for problem in problems]
        say_json({"error": {"code": "ConfigError", "message": message, "problems": told}})
    return None


def shown(problems: Iterable[Problem], width: int) -> Iterator[str]:
    """Lines for a person: worst first, by file and line, each with what is wanted and the fix."""
    from startup.spec.problem import SEVERITIES

    ordered = sorted(problems, key=lambda problem: (SEVERITIES.index(problem.severity), *_place(problem.place)))
    for severity, group in groupby(ordered, key=lambda problem: problem.severity):
        found = list(group)
        yield f"{len(found)} {_HEADINGS[severity] if len(found) > 1 else severity}"
        for problem in found:
            yield f"  {problem.place}" + (f"  {problem.at}" if problem.at else "")
            yield from _wrapped("", problem.found, width)
            yield from _wrapped("want: ", problem.want, width)
            yield from _wrapped("fix:  ", problem.fix, width)
        yield ""


def counted(problems: Iterable[Problem]) -> str:
    """`2 errors, 1 warning`; `no problems`."""
    from startup.spec.problem import SEVERITIES

    severities = [problem.severity for problem in problems]
    parts = [f"{n} {s if n == 1 else _HEADINGS[s]}" for s in SEVERITIES if (n := severities.count(s))]
    return ", ".join(parts) or "no problems"


def _wrapped(label: str, text: str, width: int) -> list[str]:
    """Paths are not broken: they are there to be copied."""
    indent = " " * (6 + len(label))
    return wrap(
        text, width, initial_indent=f"      {label}", subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def _place(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    return (file, int(line)) if line.isdigit() else (place, 0)


def own_pids(cluster: str) -> frozenset[int]:
    """Processes of the cluster of that name, whose ports are not a stranger's: those of its nodes, and those that a dead node
    left behind."""
    from agentkit.directory.locate import node_files, run_root
    from agentkit.errors import AgentkitError
    from startup.cli.cluster import Cluster
    from startup.machines import orphans
    from startup.node.paths import Places

    pids: set[int | None] = set()
    machines = set()
    try:
        with Cluster.of(cluster) as running:
            answers, rows = running.status()
    except (AgentkitError, OSError):
        pass
    else:
        machines = {answer["machine"] for answer in answers}
        pids |= {answer["node"].get(key) for answer in answers for key in ("pid", "zygote_pid")}
        pids |= {row.pid for row in rows}
    for info in node_files(run_root(), cluster):
        if info.machine not in machines:
            pids |= orphans.processes_of(Places.of(cluster, info.machine))
    return frozenset(pid for pid in pids if pid)
