"""What commands share: where output goes, how wide it is, how agents are named on a command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TextIO

from agentkit.errors import ConfigError
from agentkit.names import AgentId, matching

#: Columns when nobody tells: what a pipe or a file gets.
WIDTH_WITHOUT_TERMINAL: Final = 200


def say(lines: str | Iterable[str]) -> None:
    """To stdout: what was asked for."""
    sys.stdout.write(lines + "\n" if isinstance(lines, str) else "".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def note(lines: str | Iterable[str]) -> None:
    """To stderr: progress and remarks, which `--json` must not meet."""
    sys.stderr.write(lines + "\n" if isinstance(lines, str) else "".join(f"{line}\n" for line in lines))
    sys.stderr.flush()


def say_json(document: Mapping[str, Any]) -> None:
    """The one document on stdout."""
    sys.stdout.write(json.dumps(document, default=str) + "\n")
    sys.stdout.flush()


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: TextIO) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def width_of(stream: TextIO) -> int:
    """Columns to write into."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) >= 40:
        return int(columns)
    try:
        return max(40, os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):
        return WIDTH_WITHOUT_TERMINAL


def as_typed(program: str, path: Sequence[str] | None = None) -> str:
    """How this command is typed again from here: `agentkit` where PATH finds that very file, else where it is."""
    name = os.path.basename(program)  # noqa: PTH119 - pathlib's import is not free, and every command comes by here
    if name == "__main__.py":
        return "python -m startup"
    for folder in os.get_exec_path() if path is None else path:
        candidate = os.path.join(folder, name)  # noqa: PTH118
        if os.path.exists(candidate):  # noqa: PTH110
            if os.path.samefile(candidate, program):  # noqa: PTH121
                return name
            break
    return min(os.path.relpath(program), program, key=len)


def duration_s(text: str) -> float:
    """A duration as options take it (`30s`, `500ms`, `5m`, or seconds without a unit), in seconds; for argparse."""
    import argparse

    from agentkit.units import seconds

    try:
        return seconds(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ConfigError:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 30s, 500ms, 5m, or seconds") from None


def add_waiting_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of commands that tell nodes something and then wait for what comes of it."""
    parser.add_argument(
        "--timeout",
        type=duration_s,
        metavar="TIME",
        help="stop waiting after this long (exit 3), 90s or 5m; the nodes go on",
    )
    parser.add_argument("--no-wait", action="store_true", help="return as soon as the nodes have been told")


def choose(wanted: Sequence[str], known: Collection[AgentId]) -> list[AgentId]:
    """The ids that the words on a command line mean, in that order, each once; ConfigError for a word that means none or
    agents of several machines."""
    chosen: dict[AgentId, None] = {}
    for word in wanted:
        ids = matching(word, known)
        machines = sorted({id.machine for id in ids})
        if not ids:
            raise ConfigError(at="agent", got=word, want="an agent of this cluster", fix=near(word, known))
        if len(machines) > 1:
            choices = " or ".join(f"{machine}/{ids[0].name}" for machine in machines)
            raise ConfigError(at="agent", got=word, want="one agent", fix=f"it is on several machines: write {choices}")
        chosen |= dict.fromkeys(ids)
    return list(chosen)


def near(word: str, known: Collection[AgentId]) -> str:
    """Whom of `known` a word that means nobody was probably for, in words."""
    from startup.spec.problem import did_you_mean

    name = word.rpartition("/")[2].partition("#")[0]
    return did_you_mean(name, {str(id.name) for id in known}) or "`agentkit status` lists them"


def author() -> str:
    """`user@host`, for revisions."""
    import pwd
    import socket

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's arbitrary uid
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
