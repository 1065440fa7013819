"""Everything that can be wrong with a fleet that was resolved. Pure; each check yields Problems, and all are run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from agentkit.names import AgentId, is_loopback
from startup.spec.cycles import cycles
from startup.spec.fleet import AgentSpec, AgentTarget, ProgramTarget
from startup.spec.modules import source_file
from startup.spec.pool_checks import pool_problems
from startup.spec.port_checks import port_problems
from startup.spec.problem import Problem, Severity, did_you_mean
from startup.spec.resolve import Resolved
from startup.spec.states import state_problems
from startup.spec.unserved import unserved
from startup.spec.verdict import SKIPPABLE, Order, Verdict

#: So many agents of one machine that each import a module for itself are worth a word: some 6 ms and 2 MB each.
SHARED_BY: Final = 4

Check = Callable[[Resolved], Iterator[Problem]]


def pure_problems(resolved: Resolved) -> Iterator[Problem]:
    """What all CHECKS find."""
    for check in CHECKS:
        yield from check(resolved)


def _cycles(resolved: Resolved) -> Iterator[Problem]:
    """Over names and not slots: a cycle through replicas is one cycle."""
    specs = {_label(spec): spec for spec in resolved.fleet.agents if spec.id.slot == 0}
    graph = {
        label: list(dict.fromkeys(f"{id.machine}/{id.name}" for edge in spec.dependencies for id in edge.agents))
        for label, spec in specs.items()
    }
    times = Counter(spec.name for spec in specs.values())
    shown = {label: label if times[spec.name] > 1 else str(spec.name) for label, spec in specs.items()}
    for cycle in cycles(graph):
        origin, target = cycle.cut
        spec = specs[origin]
        index = next(
            number
            for number, edge in enumerate(spec.dependencies)
            if any(f"{id.machine}/{id.name}" == target for id in edge.agents)
        )
        path = " -> ".join(shown[label] for label in (*cycle.path, cycle.path[0]))
        more = " (one of many among the same agents)" if cycle.more else ""
        yield Problem(
            check="cycle",
            place=_dependency_place(resolved, spec, index),
            at=f"{resolved.entries[spec.id].at}.dependencies",
            found=path + more,
            want="an order in which they can start",
            fix=f"remove `{spec.dependencies[index].name}` from {shown[origin]}'s dependencies: it can be called all the same, "
            "names are looked up at the first call",
        )


def _label(spec: AgentSpec) -> str:
    return f"{spec.machine}/{spec.name}"


def _dependency_place(resolved: Resolved, spec: AgentSpec, index: int) -> str:
    """Of the edge as resolved: edges that could not be resolved shift the numbers, so it is found by its name."""
    entry = resolved.entries[spec.id]
    written = entry.keys.get("dependencies", ())
    name = spec.dependencies[index].name
    number = next(
        (n for n, edge in enumerate(written) if edge == name or (isinstance(edge, dict) and edge.get("name") == name)),
        0,
    )
    return str(entry.place_of("dependencies", number))


def _dependencies(resolved: Resolved) -> Iterator[Problem]:
    """Edges that can't be fulfilled, or that make the other end more important than it says."""
    specs = resolved.specs
    for spec in resolved.fleet.agents:
        if spec.id.slot or not spec.enabled:
            continue
        for index, edge in enumerate(spec.dependencies):
            others = [specs[id] for id in edge.agents]
            if not others or not edge.required:
                continue
            where = _Where(resolved, spec, index)
            if not any(other.enabled for other in others):
                fix = f"enable {edge.name}, or write {{name: {edge.name}, required: false}}"
                yield where.problem("error", "disabled-dependency", f"needs {edge.name}, which is not enabled", "", fix)
            elif spec.required and not any(other.required for other in others):
                fix = f"make {edge.name} required, or write {{name: {edge.name}, required: false}}"
                yield where.problem(
                    "warning", "optional-dependency", f"is required and needs {edge.name}, which is optional", "", fix
                )
            if edge.condition == "completed" and all(other.kind == "service" for other in others):
                fix = f"give {edge.name} `kind: task`"
                yield where.problem(
                    "error", "never-completed", f"waits until {edge.name} has completed, which is a service", "", fix
                )


class _Where:
    def __init__(self, resolved: Resolved, spec: AgentSpec, index: int) -> None:
        self._place = _dependency_place(resolved, spec, index)
        self._at = f"{resolved.entries[spec.id].at}.dependencies"
        self._name = spec.name

    def problem(self, severity: Severity, check: str, found: str, want: str, fix: str) -> Problem:
        return Problem(
            severity=severity,
            check=check,
            place=self._place,
            at=self._at,
            found=f"{self._name} {found}",
            want=want,
            fix=fix,
        )


def _phases(resolved: Resolved) -> Iterator[Problem]:
    fleet, settings = resolved.fleet, resolved.settings
    groups = list(dict.fromkeys(spec.group for spec in fleet.agents))
    number: dict[str, int] = {}
    for index, phase in enumerate(fleet.phases):
        for group in phase:
            place = str(settings.place_of("phases", index))
            if group not in groups:
                fix = did_you_mean(group, groups)
                want = f"one of {', '.join(groups)}"
                yield Problem(
                    check="unknown-group", place=place, at="phases", found=f"the group `{group}`", want=want, fix=fix
                )
            elif group in number:
                yield Problem(
                    check="phases", place=place, at="phases", found=f"the group `{group}` twice", want="each group once"
                )
            number.setdefault(group, index)
    specs = {spec.id: spec for spec in fleet.agents}
    for spec in fleet.agents:
        for index, edge in enumerate(spec.dependencies):
            late = [
                specs[id] for id in edge.agents if number.get(specs[id].group, -1) > number.get(spec.group, len(number))
            ]
            if edge.agents and len(late) == len(edge.agents) and not spec.id.slot:
                found = f"needs {edge.name} of group `{late[0].group}`, whose phase comes after that of `{spec.group}`"
                fix = "swap the phases, or remove the dependency"
                yield _Where(resolved, spec, index).problem(
                    "error", "phases", found, "what it needs in the same phase or before", fix
                )


def _strategies(resolved: Resolved) -> Iterator[Problem]:
    groups = list(dict.fromkeys(spec.group for spec in resolved.fleet.agents))
    for group in resolved.fleet.restart_strategies:
        if group not in groups:
            place = str(resolved.settings.place_of("restart_strategies", group))
            found, want = f"the group `{group}`", f"one of {', '.join(groups)}"
            fix = did_you_mean(group, groups)
            yield Problem(check="unknown-group", place=place, at="restart_strategies", found=found, want=want, fix=fix)


def _machines(resolved: Resolved) -> Iterator[Problem]:
    used = {spec.machine for spec in resolved.fleet.agents}
    for machine in resolved.fleet.machines:
        place, at = str(resolved.settings.place_of("machines", machine.name)), f"machines.{machine.name}"
        if machine.name not in used:
            found = f"no agent runs on {machine.name}"
            yield Problem(
                severity="warning",
                check="unused-machine",
                place=place,
                at=at,
                found=found,
                fix="remove it, or give it agents",
            )
        if is_loopback(machine.host):
            continue
        if machine.node_port is None:
            found = f"no node_port, and {machine.host} is beyond loopback"
            yield Problem(
                check="node-port",
                place=place,
                at=at,
                found=found,
                want="a port that the other machines know",
                fix="node_port: 10001",
            )
        if machine.workdir is not None and not machine.workdir.startswith("/"):
            yield Problem(
                check="workdir",
                place=str(resolved.settings.place_of("machines", machine.name, "workdir")),
                at=f"{at}.workdir",
                found=f"{machine.workdir}, on another machine",
                want="an absolute path: where the project lies there",
                fix=f"workdir: /srv/{resolved.fleet.cluster}",
            )
        if resolved.fleet.security == "loopback":
            yield Problem(
                check="security",
                place=str(resolved.settings.place_of("machines", machine.name, "host")),
                at=f"{at}.host",
                found=f"{machine.host} is beyond loopback, and the file has no `security`",
                want="keys, or the risk written out",
                fix="`security: {keys: FOLDER}`, or `security: none` where every machine of the network is trusted",
            )


def _names(resolved: Resolved) -> Iterator[Problem]:
    names = {spec.name: spec for spec in resolved.fleet.agents}
    for external in resolved.fleet.externals:
        if external.name in names:
            place = str(resolved.settings.place_of("external", external.name))
            found = f"`{external.name}` is an agent too ({names[external.name].source})"  # type: ignore[index]
            yield Problem(
                check="duplicate-name",
                place=place,
                at=f"external.{external.name}",
                found=found,
                want="one meaning for each name",
            )


def _is_program(spec: AgentSpec) -> bool:
    """Not so where what it runs is what is wrong with it."""
    return isinstance(spec.target, ProgramTarget) and bool(spec.target.argv or spec.target.script)


def _programs(resolved: Resolved) -> Iterator[Problem]:
    programs = [spec for spec in resolved.fleet.agents if _is_program(spec) and not spec.id.slot]
    if programs:
        names = ", ".join(spec.name for spec in programs[:5]) + (
            f" and {len(programs) - 5} more" if len(programs) > 5 else ""
        )
        what = f"{len(programs)} ordinary program{'s' if len(programs) > 1 else ''}, no BaseAgent: {names}"
        gets = "they get logs, order, restart and stop, but no deep sleep and no hot swap"
        yield Problem(severity="note", check="programs", place=programs[0].source, at="", found=f"{what}; {gets}")


def _preload(resolved: Resolved) -> Iterator[Problem]:
    """A module that many agents of a machine import each for itself."""
    fleet = resolved.fleet
    times = Counter(
        (spec.machine, spec.target.module)
        for spec in fleet.agents
        if spec.enabled and isinstance(spec.target, AgentTarget) and spec.target.module is not None
    )
    shared: dict[str, int] = {}
    for (_, module), number in times.items():
        if number >= SHARED_BY and not any(
            module == loaded or module.startswith(f"{loaded}.") for loaded in fleet.preload
        ):
            shared[module] = max(number, shared.get(module, 0))
    if shared:
        worst = sorted(shared, key=lambda module: -shared[module])
        names = ", ".join(f"{module} ({shared[module]} agents)" for module in worst[:3])
        more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
        yield Problem(
            severity="note",
            check="preload",
            place=str(resolved.settings.place_of("preload")),
            at="preload",
            found=f"each agent imports for itself: {names}{more}",
            fix=f"preload: [{', '.join([*fleet.preload, *worst])}] starts them faster and smaller (some 6 ms and 2 MB each)",
        )


#: In the order in which their findings are shown.
CHECKS: Final[tuple[Check, ...]] = (
    _cycles, _dependencies, _names, port_problems, _phases, _strategies, _machines, _programs, _preload, pool_problems,
    unserved, state_problems,
)  # fmt: skip


def module_problems(resolved: Resolved, verdicts: Mapping[Order, Verdict]) -> Iterator[Problem]:
    """What the looked-at modules are like: one Problem per agent that has one."""
    numbers: Counter[Order] = Counter()
    unseen: dict[str, list[AgentId]] = {}
    for id, order in resolved.orders.items():
        number = numbers[order]
        numbers[order] += 1
        verdict = verdicts.get(order)
        if verdict is None:
            continue
        spec, entry = resolved.specs[id], resolved.entries[id]
        key = "agent" if order.script is None else "script_path"
        for at, found, want in verdict.errors.get(number, ()):
            path = at.split(".")
            place = str(entry.place_of(*path))
            check = "config" if path[0] == "config" else "policy"
            yield Problem(check=check, place=place, at=f"{entry.at}.{at}", found=found, want=want)
        if verdict.kind == "not-checked":
            unseen.setdefault(verdict.message, []).append(id)
        for doubt in verdict.doubts if not number else ():
            yield Problem(
                severity="warning", check="class", place=resolved.place(id, key), at=f"{entry.at}.{key}", found=doubt
            )
        if verdict.kind in ("agent", "program", "not-checked"):
            continue
        severity: Severity = "error"
        found, want, fix = _said(order, verdict)
        if verdict.kind in SKIPPABLE and not spec.required:
            severity, fix = "warning", "it is optional: it will be skipped"
        place = resolved.place(id, key)
        yield Problem(
            severity=severity, check="module", place=place, at=f"{entry.at}.{key}", found=found, want=want, fix=fix
        )
    for why, ids in unseen.items():
        names = ", ".join(id.name for id in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        found = f"not checked here: the code of {names}: {why}"
        yield Problem(severity="note", check="not-checked", place=resolved.place(ids[0]), at="", found=found)


def _said(order: Order, verdict: Verdict) -> tuple[str, str, str]:
    """(found, want, fix)"""
    name = order.script or order.module or ""
    file = source_file(order)
    spot = f"{file or name}:{verdict.line}" if verdict.line else name
    there = ", ".join(verdict.classes) or "none"
    match verdict.kind:
        case "several":
            return (
                f"{name} defines several agents: {there}",
                "one of them",
                f"write script_path: FILE:{verdict.classes[0]}",
            )
        case "no-class":
            return (
                f"{name} has no class {order.cls}",
                f"a BaseAgent; there: {there}",
                did_you_mean(order.cls or "", verdict.classes),
            )
        case "no-agent":
            return f"{order.cls} in {name} is no agent", f"a subclass of agentkit.BaseAgent; there: {there}", ""
        case "faulty":
            return verdict.message, "what agentkit can run", ""
        case "missing":
            return verdict.message, "a file or module below project_root", ""
        case _:
            return f"{spot} {verdict.message}", "a module that can be imported", ""
