"""What a file may already say and this version does not act on: said aloud, so that nobody relies on it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from startup.spec.fleet import AgentSpec
from startup.spec.problem import Problem
from startup.spec.resolve import Resolved


def unserved(resolved: Resolved) -> Iterator[Problem]:
    """One Problem per setting, however many agents have it."""
    fleet = resolved.fleet
    if fleet.registry == "consul" and find_spec("consul") is None:
        yield Problem(
            check="registry",
            place=str(resolved.settings.place_of("registry")),
            at="registry",
            found="consul, but its client is not installed here",
            want="the package python-consul on every machine",
            fix="pip install 'agentkit[consul]', or leave the key out: the nodes keep the directory",
        )
    if fleet.registry != "consul" and resolved.file.consul is not None:
        place = str(resolved.settings.place_of("consul"))
        found = "how Consul is reached, but `registry` is not consul: it is not asked"
        yield Problem(severity="warning", check="registry", place=place, at="consul", found=found)
    deep = [spec for spec in fleet.agents if spec.hibernate.depth == "deep"]
    yield from _of_agents(resolved, "hibernate", deep, "not acted on in full yet: it sleeps lightly")


def _of_agents(resolved: Resolved, key: str, specs: list[AgentSpec], what: str) -> Iterator[Problem]:
    if specs:
        others = f" (and {len(specs) - 1} more)" if len(specs) > 1 else ""
        yield Problem(
            severity="warning",
            check="unserved",
            place=resolved.place(specs[0].id, key),
            at=f"{resolved.entries[specs[0].id].at}.{key}",
            found=f"`{key}` of {specs[0].name}{others} is {what}",
        )
