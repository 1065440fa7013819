"""List the methods of one agent: what they take, what they return, how long they may last.

With --json: {"result": {...}} with the JSON Schemas of arguments and results, or {"error": {...}}.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentkit.directory.locate import find_node
from agentkit.errors import CallError
from startup.cli import exits
from startup.cli.call import failed, hint_for, node_must_have_answered
from startup.cli.common import say, say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agent", metavar="AGENT", help="name, name#slot or machine/name")


def run(arguments: argparse.Namespace) -> int:
    """0, or 1 when the agent did not answer."""
    node = find_node(arguments.cluster)
    from agentkit.client import BlockingClient

    try:
        with BlockingClient(node=node.control) as client:
            told = client.describe(arguments.agent)
    except CallError as exc:
        node_must_have_answered(node, exc)
        return failed(exc, hint_for(exc, arguments), as_json=arguments.json)
    if arguments.json:
        say_json({"result": told})
    else:
        say(description_lines(told))
    return exits.DONE


def description_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """Signature, options and documentation of every method."""
    yield f"{told['machine']}/{told['instance']}: {told['type']}"
    yield from _indented(told["doc"], "  ")
    yield from _policies(told)
    for name, method in told["methods"].items():
        yield ""
        yield f"{name}({', '.join(_parameters(method['arguments']))}){_returns(method['result'])}"
        options = [
            *_words({key: method[key] for key in _OPTIONS if method.get(key) not in (None, "")}),
            "idempotent" if method.get("idempotent") else "",
            "high priority" if method.get("priority") == "high" else "",
            f"role {method['role']}" if method.get("role") else "",
        ]
        if any(options):
            yield f"    {', '.join(filter(None, options))}"
        yield from _indented(method["doc"], "    ")


def _policies(told: Mapping[str, Any]) -> Iterator[str]:
    """What counts for its calls, wherever it was said (docs/calls.md)."""
    if "serve" in told:
        yield f"  serves: {', '.join(_words(told['serve']))}"
    if "calls" in told:
        usual = {key: value for key, value in told["calls"].items() if key != "to" and value not in (None, "")}
        yield f"  calls: {', '.join(_words(usual))}"
        for name, said in told["calls"]["to"].items():
            yield f"  calls {name}: {', '.join(_words(said))}"


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    """`queue_wait_s: 0.05` as `queue wait 0.05 s`."""
    for key, value in values.items():
        name, unit = (key[:-2], " s") if key.endswith("_s") else (key, "")
        yield (
            f"{name.replace('_', ' ')} {value:g}{unit}"
            if isinstance(value, float)
            else f"{name.replace('_', ' ')} {value}{unit}"
        )


def _indented(text: str, indent: str) -> Iterator[str]:
    for line in text.strip().splitlines():
        yield f"{indent}{line.strip()}" if line.strip() else ""


def _parameters(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    for name, property_ in schema.get("properties", {}).items():
        yield f"{name}: {type_name(property_, schema)}" + ("" if name in required else " = ...")


def _returns(schema: Mapping[str, Any]) -> str:
    return f" -> {type_name(schema, schema)}" if schema else ""


def type_name(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """A JSON Schema in as many words as fit into a signature; `root` holds the $defs."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(type_name(each, root) for each in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(repr(value) for value in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list[{type_name(schema.get('items', {}), root)}]"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"dict[{type_name(schema['additionalProperties'], root)}]"
    if kind == "object" and schema.get("title") and schema.get("properties"):
        return str(schema["title"])
    return str(schema.get("format") or _PYTHON.get(kind, kind))


#: Of a method, in the order in which they are shown.
_OPTIONS: Final = ("timeout_s", "concurrency", "queue", "queue_wait_s", "cache_s", "balance", "key")
_PYTHON: Final = {
    "object": "dict",
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
}
