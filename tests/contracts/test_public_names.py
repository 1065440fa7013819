"""What agentkit promises to its users: the names, where they live, what they cost to import, and the error codes."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import agentkit
from agentkit import errors
from agentkit.names import is_name

ROOT = Path(__file__).parents[2]

#: The promise. A name may be added; taking one away or renaming it breaks its users.
PUBLIC = {
    "__version__",
    *("BaseAgent", "AgentConfig", "rpc", "every", "health_check", "keeps_awake", "NotRunning"),
    *("Client", "BlockingClient", "AgentId", "Deadline"),
    *("AgentState", "StateError", "StateFenced", "StateNotSaved"),
    *("Event", "Delivery", "subscribe"),
    *("Leader", "Term", "LeadershipLost"),
    *("CallPolicy", "ServePolicy", "fallback", "LAST_ANSWER"),
    *("resource", "ResourcePool", "ResourceStatistics", "ResourceFailed", "ResourcesFull"),
    *("Shared", "SocketPool", "PoolStatistics", "PoolFull", "PoolClosed"),
    *("AgentkitError", "ConfigError", "StartupError", "NoNode", "CallError"),
    *("AgentUnknown", "Unreachable", "Unauthenticated", "Forbidden", "BadRequest", "UnknownMethod", "NotFound"),
    *("Overloaded", "Draining", "DeadlineExceeded", "CallCancelled", "PeerLost", "TooLarge", "UnsupportedVersion"),
    *("HandlerError", "InternalError"),
}

#: Wire code -> public class. The codes are AK1's: they never change.
CODES = {
    "bad_request": "BadRequest", "unknown_method": "UnknownMethod", "no_such_agent": "AgentUnknown",
    "unreachable": "Unreachable", "unauthenticated": "Unauthenticated", "forbidden": "Forbidden", "not_found": "NotFound",
    "overloaded": "Overloaded", "draining": "Draining", "deadline_exceeded": "DeadlineExceeded",
    "cancelled": "CallCancelled", "peer_lost": "PeerLost", "too_large": "TooLarge",
    "unsupported_version": "UnsupportedVersion", "handler_error": "HandlerError", "internal": "InternalError",
}  # fmt: skip


def test_the_public_names_are_those_that_are_promised() -> None:
    assert set(agentkit.__all__) == PUBLIC
    assert len(agentkit.__all__) == len(PUBLIC)
    assert set(dir(agentkit)) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_a_public_name_lives_where_it_is_said_to(name: str) -> None:
    home = agentkit._HOMES[name]
    thing = getattr(agentkit, name)
    assert thing is getattr(importlib.import_module(home), name)
    assert thing.__module__ == home
    assert inspect.getdoc(thing), f"{name} says nothing of itself"


def test_the_names_that_type_checkers_see_are_the_same() -> None:
    tree = ast.parse((ROOT / "agentkit/__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (alias.asname, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == set(agentkit._HOMES.items())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'BaseAgnet'"):
        _ = agentkit.BaseAgnet


@pytest.mark.process
def test_names_and_errors_cost_neither_zeromq_nor_pydantic() -> None:
    program = (
        "import sys, agentkit; agentkit.AgentId; agentkit.PeerLost\n"
        "heavy = {'zmq', 'pydantic', 'asyncio', 'structlog', 'msgpack', 'uvloop'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_every_code_has_its_class_and_every_class_its_code() -> None:
    assert {code: cls.__name__ for code, cls in errors.BY_CODE.items()} == CODES
    assert set(CODES.values()) <= PUBLIC


def test_an_error_crosses_the_wire_as_its_class_with_its_facts() -> None:
    for code, name in CODES.items():
        error = errors.from_wire(code, "because", True, {"a": 1})
        assert type(error).__name__ == name
        assert (error.code, error.message, error.retry_safe, error.details) == (code, "because", True, {"a": 1})
        assert isinstance(error, agentkit.CallError)
    newer = errors.from_wire("quota_exceeded", "too much", True, {})
    assert (type(newer), newer.message) == (agentkit.InternalError, "quota_exceeded: too much")


def test_only_what_certainly_did_not_run_is_retry_safe_by_default() -> None:
    safe = {cls.code for cls in errors.BY_CODE.values() if cls().retry_safe}
    assert safe == {"no_such_agent", "unreachable", "overloaded", "draining", "unsupported_version"}


def test_errors_are_also_what_pythons_own_code_catches() -> None:
    assert issubclass(agentkit.DeadlineExceeded, TimeoutError)
    assert issubclass(agentkit.PeerLost, ConnectionError)
    assert issubclass(agentkit.ConfigError, ValueError)
    assert issubclass(agentkit.NotRunning, RuntimeError)


def test_a_config_error_holds_place_value_expectation_and_fix() -> None:
    error = agentkit.ConfigError(at="a.b", got=0, want="1 or more", fix="leave it out")
    assert str(error) == "a.b: got 0, want 1 or more; leave it out"
    assert (error.at, error.got, error.want, error.fix) == ("a.b", 0, "1 or more", "leave it out")


def test_the_facts_of_errors_are_attributes() -> None:
    assert agentkit.Overloaded(details={"retry_after_ms": 7}).retry_after_ms == 7
    assert agentkit.Overloaded().retry_after_ms == 100
    assert agentkit.AgentUnknown(details={"directory_stale": True}).directory_stale
    assert agentkit.TooLarge.frame("the request", 2000, 1000).details == {"size_bytes": 2000, "limit_bytes": 1000}
    assert agentkit.NotFound().message == "not_found"


def test_the_version_is_a_version() -> None:
    assert all(part.isdigit() for part in agentkit.__version__.split(".")[:2])
    assert not is_name(agentkit.__version__)
