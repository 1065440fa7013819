"""What a file may already say and this version does not act on: said aloud, so that nobody relies on it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

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
