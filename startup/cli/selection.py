"""Which part of a fleet `up` is about, and the revision that comes of it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from agentkit.errors import ConfigError
from agentkit.names import AgentId
from startup.cli.change import with_dependants, with_requirements
from startup.cli.common import choose
from startup.plan.revision import Revision
from startup.spec.fleet import Fleet
from startup.view.words import cut

#: Characters of a command that are kept as the reason why an agent was not started.
_MAX_COMMAND = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the command line names; nothing of it: everything."""

    agents: Sequence[str] = ()
    groups: Sequence[str] = ()
    without: Sequence[str] = ()  #: --except
    until: str | None = None  #: the last phase

    def __bool__(self) -> bool:
        return bool(self.agents or self.groups or self.without or self.until)

    def command(self) -> str:
        """As it is typed, for those that it leaves out: `up --until core`."""
        options = (
            ("--group", self.groups),
            ("--except", self.without),
            ("--until", [self.until] if self.until else []),
        )
        words = [*self.agents, *(f"{option} {name}" for option, names in options for name in names)]
        return cut(" ".join(["up", *words]), _MAX_COMMAND)

    def of(self, fleet: Fleet) -> set[AgentId]:
        """The ids meant, with all that they require and without all that requires what is left out. ConfigError: unknown names."""
        everything = set(fleet.ids())
        known_groups = {spec.group for spec in fleet.agents}
        for group in self.groups:
            if group not in known_groups:
                fix = f"groups of this file: {', '.join(sorted(known_groups))}"
                raise ConfigError(at="--group", got=group, want="a group of the file", fix=fix)
        chosen = set(choose(self.agents, everything)) | {spec.id for spec in fleet.agents if spec.group in self.groups}
        chosen = with_requirements(fleet, chosen) if self.agents or self.groups else everything
        left_out = with_dependants(fleet, [*choose(self.without, everything), *later(fleet, self.until)])
        needed = sorted(str(id) for id in set(choose(self.agents, everything)) & left_out)
        if needed:
            raise ConfigError(
                at="--until" if self.until else "--except", got=self.until or ", ".join(self.without),
                want="nothing that the named agents require",
                fix=f"{', '.join(needed)} can't start without it",
            )  # fmt: skip
        return chosen - left_out


def later(fleet: Fleet, until: str | None) -> list[AgentId]:
    """The agents of the phases behind `until`: a number, or a group. ConfigError when there is no such phase."""
    if until is None:
        return []
    numbers = {str(number): number for number in range(1, len(fleet.phases) + 1)}
    numbers |= {group: number for number, groups in enumerate(fleet.phases, 1) for group in groups}
    if until not in numbers:
        known = ", ".join(f"{number} ({'+'.join(groups)})" for number, groups in enumerate(fleet.phases, 1))
        fix = f"phases of this file: {known}" if known else "the file has no `phases`"
        raise ConfigError(at="--until", got=until, want="the number of a phase, or a group of it", fix=fix)
    behind = {group for groups in fleet.phases[numbers[until] :] for group in groups}
    return [spec.id for spec in fleet.agents if spec.group in behind]


def next_revision(fleet: Fleet, selection: Selection, current: Revision | None) -> tuple[Revision, list[AgentId]]:
    """The revision to propose (number and author are filled in then), and the ids that the command waits for, in file order.

    The whole file stands in it, with what is not selected stopped, with as many slots as operators said.
    On a running cluster a selection only adds: what runs
    stays as it is, also where the file has changed."""
    running = current if current is not None and not current.down else None
    numbers: Mapping[str, int] = {}
    if running is not None and running.scaled:
        from startup.spec.ports import ports_of
        from startup.spec.scale import scaled, slots_of

        known = {slots_of(id) for id in fleet.ids()}
        numbers = {agent: number for agent, number in running.scaled.items() if agent in known}
        fleet = scaled(fleet, numbers, ports_of(running.fleet))
    chosen = selection.of(fleet)
    if running is None or not selection:
        target, kept = fleet, frozenset[AgentId]()
    else:
        target = _merged(fleet, running.fleet, chosen)
        kept = frozenset(running.fleet.ids()) - running.stopped
    stopped = frozenset(target.ids()) - chosen - kept
    wanted = [spec.id for spec in target.agents if spec.id in chosen and spec.enabled]
    unstarted = dict.fromkeys((id for id in target.ids() if id in stopped), selection.command())
    if running is not None:
        unstarted = {id: command for id, command in unstarted.items() if id not in running.stopped} | {
            id: command for id, command in running.unstarted.items() if id in stopped
        }
    revision = Revision(
        number=0, author="", time_s=0.0, fleet=target, stopped=stopped, unstarted=unstarted, scaled=numbers
    )
    return revision, wanted


def _merged(new: Fleet, old: Fleet, chosen: Collection[AgentId]) -> Fleet:
    """`old` with the agents in `chosen` as `new` has them, and the rest of `new` beside."""
    fresh = {spec.id: spec for spec in new.agents}
    agents = [fresh[spec.id] if spec.id in chosen else spec for spec in old.agents]
    agents += [spec for spec in new.agents if spec.id not in {spec.id for spec in old.agents}]
    machines = {machine.name: machine for machine in (*new.machines, *old.machines)}
    externals = {external.name: external for external in (*old.externals, *new.externals)}
    return replace(new, agents=tuple(agents), machines=tuple(machines.values()), externals=tuple(externals.values()))
