"""A fleet's start order as text, Mermaid, Graphviz and data. Pure: a fleet in, lines out. Arrows mean `needs`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from textwrap import wrap
from typing import Any

from agentkit.names import AgentId
from startup.plan.graph import Graph
from startup.spec.fleet import AgentSpec, Fleet
from startup.view.words import count


def labels(fleet: Fleet) -> Mapping[AgentId, str]:
    """`name#slot` where that is enough, `machine/name#slot` where two machines have the name."""
    machines = Counter(spec.name for spec in fleet.agents if not spec.id.slot)
    return {spec.id: str(spec.id) if machines[spec.name] > 1 else spec.id.instance for spec in fleet.agents}


def text(fleet: Fleet, width: int) -> list[str]:
    """Levels, then the longest path. The graph has no cycle."""
    graph, names = Graph.of(fleet), labels(fleet)
    levels, path = graph.levels(), graph.longest_path()
    specs = {spec.id: spec for spec in fleet.agents}
    machines = ", ".join(f"{machine.name} {len(fleet.on(machine.name))}" for machine in fleet.machines)
    lines = [f"{fleet.cluster}: {count(len(fleet.agents), 'agent')} ({machines}), {count(len(levels), 'level')}", ""]
    for number, level in enumerate(levels):
        head = f"level {number:>2}  {len(level):>3}  "
        lines += _wrapped(head, [names[id] + ("" if specs[id].required else "?") for id in level], width)
    disabled = [names[spec.id] for spec in fleet.agents if not spec.enabled]
    if disabled:
        lines += ["", *_wrapped("disabled  ", disabled, width)]
    for number, groups in enumerate(fleet.phases):
        lines += ["", *_wrapped(f"phase {number}  ", list(groups), width)]
    lines += ["", *_wrapped(f"longest path, {count(len(path), 'agent')}: ", [names[id] for id in path], width, " > ")]
    if not all(spec.required for spec in fleet.agents):
        lines.append("`?`: optional")
    return lines


def document(fleet: Fleet) -> dict[str, Any]:
    """What `plan --json` prints. The graph has no cycle."""
    graph = Graph.of(fleet)
    levels = graph.levels()
    level_of = {id: number for number, level in enumerate(levels) for id in level}
    return {
        "cluster": fleet.cluster,
        "file": fleet.file,
        "project_root": fleet.project_root,
        "machines": [{"name": m.name, "host": m.host, "node_port": m.node_port} for m in fleet.machines],
        "agents": [_agent(spec, level_of.get(spec.id)) for spec in fleet.agents],
        "levels": [[str(id) for id in level] for level in levels],
        "critical_path": [str(id) for id in graph.longest_path()],
        "phases": [list(groups) for groups in fleet.phases],
    }


def _agent(spec: AgentSpec, level: int | None) -> dict[str, Any]:
    return {
        "id": str(spec.id),
        "name": str(spec.name),
        "instance": spec.id.instance,
        "machine": str(spec.machine),
        "group": spec.group,
        "class": spec.klass,
        "level": level,
        "port": spec.port,
        "health_check_port": spec.health_port,
        "required": spec.required,
        "enabled": spec.enabled,
        "dependencies": [
            {
                "name": edge.name,
                "agents": [str(id) for id in edge.agents],
                "external": edge.external,
                "required": edge.required,
                "condition": edge.condition,
            }
            for edge in spec.dependencies
        ],
    }


def mermaid(fleet: Fleet) -> list[str]:
    """A Mermaid flow chart, a frame per machine; it can show cycles too."""
    names, numbers = labels(fleet), {spec.id: f"a{n}" for n, spec in enumerate(fleet.agents)}
    lines = ["graph LR"]
    for machine in fleet.machines:
        lines.append(f"  subgraph {machine.name}")
        for spec in fleet.on(machine.name):
            left, right = ("[", "]") if spec.required else ("([", "])")
            lines.append(f'    {numbers[spec.id]}{left}"{names[spec.id]}"{right}')
        lines.append("  end")
    externals = {external.name: f"x{n}" for n, external in enumerate(fleet.externals)}
    lines += [f'  {number}[("{name}")]' for name, number in externals.items()]
    lines += _edges(fleet, numbers, externals, lambda a, b, required: f"  {a} {'-->' if required else '-.->'} {b}")
    return lines


def dot(fleet: Fleet) -> list[str]:
    """A Graphviz digraph, a cluster per machine; it can show cycles too."""
    names, numbers = labels(fleet), {spec.id: f"a{n}" for n, spec in enumerate(fleet.agents)}
    lines = [f'digraph "{fleet.cluster}" {{', "  rankdir=RL;", "  node [shape=box];"]
    for machine in fleet.machines:
        lines += [f'  subgraph "cluster_{machine.name}" {{', f'    label="{machine.name}";']
        for spec in fleet.on(machine.name):
            style = "" if spec.required else ", style=dashed"
            lines.append(f'    {numbers[spec.id]} [label="{names[spec.id]}"{style}];')
        lines.append("  }")
    externals = {external.name: f"x{n}" for n, external in enumerate(fleet.externals)}
    lines += [f'  {number} [label="{name}", shape=cylinder];' for name, number in externals.items()]
    lines += _edges(
        fleet, numbers, externals, lambda a, b, required: f"  {a} -> {b}{'' if required else ' [style=dashed]'};"
    )
    return [*lines, "}"]


def _edges(
    fleet: Fleet, agents: Mapping[AgentId, str], externals: Mapping[str, str], draw: Callable[[str, str, bool], str]
) -> list[str]:
    lines = []
    for spec in fleet.agents:
        for edge in spec.dependencies:
            targets = [agents[id] for id in edge.agents] + ([externals[edge.external]] if edge.external else [])
            lines += [draw(agents[spec.id], target, edge.required) for target in targets]
    return lines


def _wrapped(head: str, names: list[str], width: int, between: str = ", ") -> list[str]:
    """`head` and the names, aligned behind it when they need more lines; a name is never broken."""
    whole = [name + between.rstrip() for name in names[:-1]] + names[-1:]
    indent = " " * min(len(head), 14)
    return wrap(
        " ".join(whole), width, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
