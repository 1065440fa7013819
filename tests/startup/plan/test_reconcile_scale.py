"""1,000 agents: what deciding alone costs must stay far below what their processes cost."""

from __future__ import annotations

from random import Random

from startup.plan.phase import Phase
from startup.spec.fleet import AgentSpec
from tests.startup.plan.builders import agent, revision
from tests.startup.plan.simulation import Behaviour, Simulation


def fleet(count: int) -> list[AgentSpec]:
    """Like a real one: a few hubs that nearly everybody needs, up to five others, several levels."""
    random = Random(3)
    specs: list[AgentSpec] = []
    for number in range(count):
        machine = random.choice("mn")
        hubs = [f"{spec.id}" for spec in specs[:5] if number > 5]
        others = [str(random.choice(specs).id) for _ in range(random.randint(0, 5))] if specs else []
        specs.append(agent(f"{machine}/a{number}", *dict.fromkeys([*hubs, *others])))
    return specs


def test_a_step_costs_what_changed_and_not_the_size_of_the_fleet() -> None:
    """Looks per agent for a whole start: bounded by its own edges and phases, so the total grows like the edges do."""
    looks = {}
    for count in (100, 1000):
        sim, specs = Simulation("m", "n"), fleet(count)
        counted = 0
        for machine in sim.machines.values():
            consider = machine.core._decisions.consider

            def counting(id, consider=consider):  # type: ignore[no-untyped-def]
                nonlocal counted
                counted += 1
                consider(id)

            machine.core._decisions.consider = counting  # type: ignore[method-assign]
        random = Random(5)
        sim.behaviours = {spec.id: Behaviour(ready_after_s=random.uniform(0.1, 0.4)) for spec in specs}
        sim.desire(revision(*specs))
        sim.run(60.0)
        assert {sim.phase(spec.id) for spec in specs} == {Phase.READY}
        looks[count] = counted / sum(len(spec.dependencies) + 1 for spec in specs)
    assert looks[1000] < 2 * looks[100]
    assert looks[1000] < 6
