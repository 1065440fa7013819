"""What counts for one agent: its class's policies under those of the fleet file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from agentkit.agent.handlers import Method
from agentkit.errors import ConfigError
from agentkit.resilience.policy import CallPolicies, CallPolicy, FilePolicy, ServePolicy


class Policed(Protocol):
    """As much of a BaseAgent."""

    call_policy: CallPolicy
    call_policies: Mapping[str, CallPolicy]
    serve_policy: ServePolicy
    _file_policy: FilePolicy


def methods_under(methods: Mapping[str, Method], said: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Method]:
    """An agent's methods as the fleet file wants them; ConfigError: it names one that is not there, or asks what can't be."""
    if not said:
        return methods
    changed = dict(methods)
    for name, policy in said.items():
        if name not in methods:
            raise ConfigError(
                at=f"serve.methods.{name}", got="no such method", want=f"one of {', '.join(sorted(methods)) or 'none'}"
            )
        try:
            changed[name] = methods[name].under(policy)
        except ConfigError as exc:
            raise ConfigError(at=f"serve.methods.{name}", got=exc.got, want=exc.want, fix=exc.fix) from exc
    return changed


def serving_of(agent: Policed) -> ServePolicy:
    """What it lets in."""
    return agent._file_policy.serve.over(agent.serve_policy)


def calling_of(agent: Policed) -> CallPolicies:
    """How it calls others."""
    return CallPolicies(agent.call_policy, agent.call_policies, file=agent._file_policy)


def told(agent: Policed) -> dict[str, Any]:
    """For `describe`: what counts, wherever it was said; of some peers and methods, only what differs for them."""
    calls = calling_of(agent)
    return {
        "serve": asdict(serving_of(agent)),
        "calls": {**asdict(calls.usual), "to": {name: calls.said_of(name) for name in calls.names()}},
    }
