"""Pools that are overrun, or that nobody is in; and what this machine does not have of what its agents ask for."""

from __future__ import annotations

from collections.abc import Iterator

from startup.spec.hosts import LOOPBACK
from startup.spec.pools import Machine, Misfit, misfits, overruns
from startup.spec.problem import Problem, did_you_mean
from startup.spec.resolve import Resolved


def pool_problems(resolved: Resolved) -> Iterator[Problem]:
    """Of the file alone."""
    fleet, settings = resolved.fleet, resolved.settings
    for found in overruns(fleet):
        place, at = str(settings.place_of("pools", found.klass, "memory")), f"pools.{found.klass}.memory"
        yield _problem(found, place, at, "pool")
    classes = {spec.klass for spec in fleet.agents}
    for klass in resolved.file.pools:
        if klass not in classes:
            yield Problem(
                severity="warning",
                check="pool",
                place=str(settings.place_of("pools", klass)),
                at=f"pools.{klass}",
                found=f"no agent is of class `{klass}`",
                fix=did_you_mean(klass, classes),
            )


def machine_problems(resolved: Resolved, there: Machine) -> Iterator[Problem]:
    """Of the machines of the file that are this one."""
    for machine in resolved.fleet.machines:
        if resolved.hosts[machine.name] != LOOPBACK:
            continue
        for found in misfits(resolved.fleet, machine.name, there):
            assert found.id is not None
            entry = resolved.entries[found.id]
            key = "user" if found.is_user else "resources"
            yield _problem(found, resolved.place(found.id, key), f"{entry.at}.{key}", "machine")


def _problem(found: Misfit, place: str, at: str, check: str) -> Problem:
    return Problem(check=check, place=place, at=at, found=found.found, want=found.want, fix=found.fix)
