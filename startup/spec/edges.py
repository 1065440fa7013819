"""Dependency names become AgentIds. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agentkit.names import AgentId, matching
from startup.spec.fleet import Dependency
from startup.spec.members import Member
from startup.spec.model import DependencyModel
from startup.spec.problem import Problem, did_you_mean


class Names:
    """Resolves dependency names; indexed, since a thousand agents have ten thousand of them."""

    def __init__(self, ids: Iterable[AgentId], externals: Iterable[str]) -> None:
        self._by_name: dict[str, list[AgentId]] = {}
        for id in ids:
            self._by_name.setdefault(id.name, []).append(id)
        self._externals = frozenset(externals)

    def dependency(self, member: Member, index: int, problems: list[Problem]) -> Dependency | None:
        written = member.settings.dependencies[index]
        wanted = written if isinstance(written, DependencyModel) else DependencyModel(name=written)
        place = str(member.entry.place_of("dependencies", index))
        at = f"{member.entry.at}.dependencies"
        name = wanted.name.rpartition("/")[2].partition("#")[0]
        found = matching(wanted.name, self._by_name.get(name, ()), here=member.machine)
        machines = sorted({id.machine for id in found})
        if not found and wanted.name in self._externals:
            return Dependency(
                name=wanted.name, external=wanted.name, required=wanted.required, condition=wanted.condition
            )  # fmt: skip
        if not found:
            known = (*self._by_name, *self._externals)
            elsewhere = sorted({id.machine for id in self._by_name.get(name, ())})
            fix = f"`{name}` is on {', '.join(elsewhere)}" if elsewhere else did_you_mean(wanted.name, known)
            problems.append(
                Problem(
                    check="missing-dependency", found=f"`{wanted.name}`, which nobody here is called",
                    want="an agent or a name of `external`",
                    fix=fix or "add it, or remove it here", place=place, at=at,
                )
            )  # fmt: skip
            return None
        if len(machines) > 1:
            choices = " or ".join(f"`{machine}/{name}`" for machine in machines)
            problems.append(
                Problem(
                    check="ambiguous-dependency", found=f"`{wanted.name}`, which is on {' and '.join(machines)}, not on {member.machine}",
                    want="one of them", fix=f"write {choices}", place=place, at=at,
                )
            )  # fmt: skip
            return None
        return Dependency(name=wanted.name, agents=found, required=wanted.required, condition=wanted.condition)
