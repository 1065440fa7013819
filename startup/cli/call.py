"""Call one method of one agent.

    agentkit call TaskManager create title="buy milk" priority=3
    agentkit call TaskManager list --payload '{"limit": 10}' --timeout 2
    agentkit call Writer words n=100 --stream

A value is read as JSON where it is JSON (3, true, null, [1,2], "3"), else it is text. key=value pairs come on top of
--payload. With --json: {"result": ...} or {"error": {"code", "message", ...}}. --trace has the call and all that come of it
traced, and names the trace on stderr (`agentkit trace ID` shows it). --stream shows what a method yields, a line for
each as it comes; with --json each line is such an object. Exit code 1 when the call failed, 4 when the
node does not answer, so that nobody can be found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from agentkit.directory.locate import NodeInfo, find_node
from agentkit.errors import AgentkitError, AgentUnknown, BadRequest, CallError, ConfigError, NoNode, UnknownMethod
from startup.cli import exits
from startup.cli.common import duration_s, near, note, say, say_json

if TYPE_CHECKING:
    from agentkit.observe.trace import Tracer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agent", metavar="AGENT", help="name, name#slot or machine/name")
    parser.add_argument("method", metavar="METHOD", help="`agentkit describe AGENT` lists them")
    parser.add_argument("values", nargs="*", metavar="key=value", help="arguments")
    parser.add_argument("--payload", metavar="JSON", help="arguments as one JSON object")
    parser.add_argument(
        "--timeout",
        type=duration_s,
        metavar="TIME",
        help="how long to wait (30s, 500ms); default: what the method says, else 5s",
    )
    parser.add_argument("--trace", action="store_true", help="trace it, and say under which id")
    parser.add_argument("--stream", action="store_true", help="the method yields its results: show each as it comes")


def run(arguments: argparse.Namespace) -> int:
    """0 with a result, 1 with an error of the call."""
    payload = read_arguments(arguments.values, arguments.payload)
    node = find_node(arguments.cluster)
    from agentkit.client import BlockingClient

    try:
        with (
            BlockingClient(node=node.control, trace_sample=float(arguments.trace)) as client,
            _naming_trace(client.tracer),
        ):
            if arguments.stream:
                for value in client.stream(arguments.agent, arguments.method, payload, timeout=arguments.timeout):
                    say(json.dumps({"result": value}, default=str) if arguments.json else as_text(value))
                return exits.DONE
            result = client.call(arguments.agent, arguments.method, payload, timeout=arguments.timeout)
    except CallError as exc:
        node_must_have_answered(node, exc)
        return failed(exc, hint_for(exc, arguments), as_json=arguments.json)
    if arguments.json:
        say_json({"result": result})
    else:
        say(as_text(result))
    return exits.DONE


@contextmanager
def _naming_trace(tracer: Tracer) -> Iterator[None]:
    """Whatever becomes of the call: where to look for its trace, if it has one."""
    try:
        yield
    finally:
        for span in tracer.spans:
            note(f"agentkit trace {span.trace_id}")


def read_arguments(values: list[str], payload: str | None) -> dict[str, Any]:
    """The arguments of a call from `key=value` words and a JSON object; ConfigError names the word that is neither."""
    arguments: dict[str, Any] = {}
    if payload is not None:
        try:
            arguments = json.loads(payload)
        except ValueError as exc:
            raise ConfigError(at="--payload", got=payload, want="a JSON object", fix=str(exc)) from exc
        if not isinstance(arguments, dict):
            raise ConfigError(at="--payload", got=payload, want="a JSON object", fix="write '{\"name\": value}'")
    for word in values:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(
                at="argument", got=word, want="key=value", fix="quote values with spaces: 'text=two words'"
            )
        try:
            arguments[key] = json.loads(text)
        except ValueError:
            arguments[key] = text
    return arguments


def node_must_have_answered(node: NodeInfo, exc: CallError) -> None:
    """NoNode when `exc` only means that nobody could be asked: whether there is such an agent is not known then."""
    if isinstance(exc, AgentUnknown) and exc.directory_stale:
        raise NoNode(
            f"the node of {node.cluster} on {node.machine} (pid {node.pid}) does not answer, so that nobody can be found through it; "
            f"is it stopped or stuck? `agentkit down` ends it with all its agents"
        ) from exc


def hint_for(exc: CallError, arguments: argparse.Namespace) -> str:
    """What was probably meant; empty where nothing is known of that."""
    from startup.spec.problem import did_you_mean

    agent, method = arguments.agent, getattr(arguments, "method", "")
    match exc:
        case AgentUnknown():
            from startup.cli.cluster import Cluster

            with suppress(AgentkitError), Cluster.find(arguments.cluster) as cluster:
                return near(agent, {row.id for row in cluster.status()[1]})
        case UnknownMethod():
            methods = [name for name in exc.details.get("methods", ()) if not name.startswith("agentkit.")]
            return did_you_mean(method, methods) or f"`agentkit describe {agent}` lists its methods"
        case BadRequest():
            return f"`agentkit describe {agent}` says what `{method}` takes"
    return ""


def failed(exc: CallError, hint: str = "", *, as_json: bool) -> int:
    """Say why a call failed, and `hint`; the exit code."""
    details = {key: value for key, value in exc.details.items() if key != "traceback"}
    if as_json:
        error = {"code": exc.code, "message": exc.message, "retry_safe": exc.retry_safe, "details": dict(exc.details)}
        if hint:
            error["hint"] = hint
        say_json({"error": error})
    else:
        note(f"agentkit: {exc.code}: {exc.message}" + (f"; {hint}" if hint else ""))
        if details:
            note(f"  {json.dumps(details, default=str)}")
        if exc.details.get("traceback"):
            note(str(exc.details["traceback"]).rstrip())
    return exits.FAILED


def as_text(result: Any) -> str:
    """Text as it is, anything else as JSON that can be read."""
    return result if isinstance(result, str) else json.dumps(result, indent=2, default=str)
