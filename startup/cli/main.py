"""The `agentkit` command: finds the command's own module in a table, imports that and nothing else, and runs it.

A command is a module with

    __doc__                          its manual page; the first line says what it does
    add_arguments(parser)            what it takes besides --json and --cluster, which every command has
    run(arguments) -> int            the work; returns an exit code of startup.cli.exits

and a row in COMMANDS. Modules import what is heavy (pydantic, rich, yaml) inside `run`, so that `status` and
`--version` stay under 100 ms. argparse and not typer: typer 0.29 took 90 ms to import and 130 ms more to parse the
first command line (it builds pydantic adapters for that), argparse 12 ms for both.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from agentkit._version import VERSION
from agentkit.errors import AgentkitError, ConfigError, NoNode
from startup.cli import exits


class Command(NamedTuple):
    module: str
    summary: str


#: In the order of the help text: run a fleet, look at it, change it, check a file, look after a machine.
COMMANDS: Final[Mapping[str, Command]] = {
    "up": Command("startup.cli.up", "bring up a fleet, or bring a running one to what its file says"),
    "apply": Command("startup.cli.apply", "show what a file changes, ask, and replace agent by agent"),
    "rollback": Command("startup.cli.rollback", "back to an earlier revision, in the same way"),
    "scale": Command("startup.cli.scale", "how many replicas of an agent run"),
    "down": Command("startup.cli.down", "stop everything, nodes included"),
    "start": Command("startup.cli.start", "start agents that were stopped or have failed"),
    "stop": Command("startup.cli.stop", "stop agents; the rest runs on"),
    "restart": Command("startup.cli.restart", "restart agents"),
    "hibernate": Command("startup.cli.hibernate", "send agents to sleep; the first call wakes them"),
    "wake": Command("startup.cli.wake", "wake agents that sleep"),
    "status": Command("startup.cli.status", "how every agent fares, or one in full"),
    "top": Command("startup.cli.top", "what every agent uses now, in full screen"),
    "logs": Command("startup.cli.logs", "what agents have logged, merged by time"),
    "errors": Command("startup.cli.errors", "what agents have reported: counted, shown in full, resolved"),
    "events": Command("startup.cli.events", "topics with counts and rates, or events as they come"),
    "trace": Command("startup.cli.trace", "which calls belong together, and where their time went"),
    "debug": Command("startup.cli.debug", "look into a running agent: stacks, tasks, heap, gc, slow calls"),
    "call": Command("startup.cli.call", "call one method of one agent"),
    "describe": Command("startup.cli.describe", "the methods of one agent"),
    "chaos": Command(
        "startup.cli.chaos", "a written plan of kills, stops and cuts against the fleet, and what was lost"
    ),
    "run": Command("startup.cli.run", "one agent of the running fleet in this terminal"),
    "timeline": Command("startup.cli.timeline", "the last start as a Gantt chart, and its slowest path"),
    "validate": Command("startup.cli.validate", "every problem of a configuration file, with its line and its fix"),
    "plan": Command("startup.cli.plan", "the start order: graph, levels, longest path"),
    "export": Command("startup.cli.export", "a Prometheus configuration that finds the fleet's agents"),
    "schema": Command("startup.cli.schema", "the JSON Schema of startup_config.yaml"),
    "node": Command("startup.cli.node", "the node of one machine: run, status, stop, unit, upgrade"),
    "keys": Command("startup.cli.keys", "keys of machines and operators: make, carry, list, revoke, rotate"),
    "doctor": Command("startup.cli.doctor", "is this machine fit to run a fleet"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return exits.DONE if words else exits.USAGE
    if words[0] in ("-V", "--version"):
        print(f"agentkit {VERSION}")
        return exits.DONE
    name, *rest = words
    command = COMMANDS.get(name)
    if command is None:
        return _unknown(name)
    module = importlib.import_module(command.module)
    try:
        arguments = _parser(name, module, as_json="--json" in rest).parse_intermixed_args(rest)
    except SystemExit as exc:  # argparse has said what is wrong, or shown the help
        return exc.code if isinstance(exc.code, int) else exits.USAGE
    return _run(module, arguments)


def _run(module: Any, arguments: argparse.Namespace) -> int:
    if getattr(arguments, "follow", False) or getattr(arguments, "watch", False):
        _end_with_reader()
    try:
        code: int = module.run(arguments)
        sys.stdout.flush()
        return code
    except ConfigError as exc:
        return _failed(arguments, exc, exits.USAGE)
    except NoNode as exc:
        return _failed(arguments, exc, exits.NO_NODE)
    except TimeoutError as exc:
        return _failed(arguments, exc, exits.TIMED_OUT)
    except AgentkitError as exc:
        return _failed(arguments, exc, exits.FAILED)
    except KeyboardInterrupt:
        goes_on = getattr(arguments, "follow", False) or getattr(arguments, "watch", False)
        return _unread() if goes_on and _has_lost_reader() else exits.INTERRUPTED
    except BrokenPipeError:
        return _unread()
    except OSError as exc:
        if exc.filename is None:
            raise
        return _failed(
            arguments, ConfigError(at=exc.filename, got=exc.strerror, want="a file that can be used"), exits.USAGE
        )


def _end_with_reader() -> None:
    """What goes on for ever ends when nobody reads it any more, not first with the next line: there may be none (`logs -f | head -1`)."""
    import signal
    import stat
    import threading

    if not stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        return

    def watch() -> None:
        if _has_lost_reader(None):
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, name="reader", daemon=True).start()


def _has_lost_reader(timeout_s: float | None = 0.0) -> bool:
    """Whether nobody reads the pipe that stdout is, within so long."""
    import select

    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(None if timeout_s is None else timeout_s * 1000))


def _unread() -> int:
    # the reader (head, less) has enough; without this the interpreter complains once more at exit
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exits.DONE


def _failed(arguments: argparse.Namespace, exc: Exception, code: int) -> int:
    """Say why on stderr, and as the one document on stdout where --json asked for one."""
    message = str(exc) or type(exc).__name__
    sys.stderr.write(f"agentkit: {message}\n")
    if arguments.json:
        import json

        kind = getattr(exc, "code", None) or type(exc).__name__
        sys.stdout.write(json.dumps({"error": {"code": kind, "message": message}}) + "\n")
    return code


class _Parser(argparse.ArgumentParser):
    """Its errors are a document, too, where one was asked for."""

    as_json = False

    def error(self, message: str) -> NoReturn:
        if self.as_json:
            import json

            sys.stdout.write(json.dumps({"error": {"code": "ConfigError", "message": message}}) + "\n")
        super().error(message)


def _parser(name: str, module: Any, *, as_json: bool) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"agentkit {name}",
        description=(module.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.as_json = as_json
    module.add_arguments(parser)
    every = parser.add_argument_group("every command")
    every.add_argument("--json", action="store_true", help="one JSON document on stdout, nothing else there")
    every.add_argument("--cluster", metavar="NAME", help="the cluster meant")
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        f"agentkit {VERSION}: starts, wires and supervises a fleet of agents.\n\n"
        f"usage: agentkit COMMAND [ARGUMENTS]        (also: python -m startup COMMAND)\n\n{rows}\n\n"
        "`agentkit COMMAND --help` is the manual page of one. Exit codes: 0 done, 1 failed or done\n"
        "in part, 2 bad usage or configuration, 3 timed out, 4 no node reachable, 130 interrupted."
    )


def _unknown(name: str) -> int:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean `{near[0]}`?" if near else "`agentkit --help` lists the commands."
    sys.stderr.write(f"agentkit: there is no command `{name}`; {hint}\n")
    return exits.USAGE
