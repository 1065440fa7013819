"""Two machines and a link between them that is cut, cut one way, slow and lossy: who notices when, and when all is well again.

    python benchmarks/bench_partition.py [--quick] [--json] [--only TEXT]

For root: the machines are network namespaces (tests/hosts/machines.py). Times are the real ones (suspect 3 s, unreachable 10 s).
Parts: `cut` (2, 20 and 60 s; --quick: 2 and 12 s), `one way`, `loss` (30 % and 100 ms each way for 5 minutes; --quick: 20 s), `edge`.
Read from the nodes' own logs; "agreed" is both nodes telling the same of every agent, counted from the healing.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from common import ROOT, Table, options, say, show

sys.path.insert(0, str(ROOT))  # the machines are the tests'

from tests.hosts.machines import Link, refusal, two_machines
from tests.hosts.nodes import READY, REAL, HostNodes, two_nodes

CUTS_S: Final = ((2.0, 20.0, 60.0), (2.0, 12.0))
LOSS_S: Final = (300.0, 20.0)
LOSS: Final = 0.3
DELAY_S: Final = 0.1
STARTS: Final = (40, 5)


def main() -> None:
    chosen = options(__doc__.splitlines()[0])
    if reason := refusal():
        sys.exit(f"no machines here: {reason}")

    def wants(part: str) -> bool:
        return not chosen.only or any(text in part for text in chosen.only)

    cuts = Table("Cuts: seconds after the cut, and after the healing", ["cut", "suspect", "unreachable", "agreed"])
    losses = Table(
        "Loss: 30 % of all packets each way, 100 ms late",
        ["seconds", "suspect", "absent", "false unreachable", "agreed"],
    )
    edges = Table(
        "A dependency's edge, ms from ready to forked (median)", ["starts", "local", "remote", "remote - local"]
    )
    with (
        tempfile.TemporaryDirectory(prefix="ak", ignore_cleanup_errors=True) as folder,
        two_machines(Path(folder)) as (a, b, link),
        two_nodes(a, b, link, REAL) as nodes,
    ):
        nodes.up(nodes.program("main_pc/A"), nodes.program("pc2/B", "main_pc/A"))
        nodes.wait_phase(READY)
        nodes.until(nodes.agree)
        if wants("edge"):
            edges.rows.append(_edges(nodes, STARTS[chosen.quick]))
        for cut_s in CUTS_S[chosen.quick] if wants("cut") else ():
            cuts.rows.append(_cut(nodes, link, f"{cut_s:g} s", cut_s, link.cut))
        if wants("one way"):
            one_way_s = CUTS_S[chosen.quick][1]
            cuts.rows.append(_cut(nodes, link, f"{one_way_s:g} s, one way", one_way_s, lambda: link.cut_one_way(a)))
        if wants("loss"):
            losses.rows.append(_loss(nodes, link, LOSS_S[chosen.quick]))
    show("partition", [table for table in (cuts, losses, edges) if table.rows], as_json=chosen.json)


def _cut(nodes: HostNodes, link: Link, name: str, seconds: float, cut: Callable[[], None]) -> list[Any]:
    say(f"cut {name}")
    began_s = time.time()
    cut()
    time.sleep(seconds)
    link.heal()
    healed_s = time.time()
    nodes.until(nodes.agree)
    agreed_s = time.time() - healed_s
    # the later of the two machines is what counts
    seen = {
        state: [_first(nodes, machine, state, began_s, healed_s) for machine in nodes.machines]
        for state in ("suspect", "unreachable")
    }
    later = {state: None if None in found else max(found) for state, found in seen.items()}  # type: ignore[type-var]
    return [name, later["suspect"], later["unreachable"], agreed_s]


def _loss(nodes: HostNodes, link: Link, seconds: float) -> list[Any]:
    say(f"loss for {seconds:g} s")
    began_s = time.time()
    link.slow(loss=LOSS, delay_s=DELAY_S)
    time.sleep(seconds)
    ended_s = time.time()
    link.heal()
    nodes.until(nodes.agree)
    counts = [
        sum(
            began_s <= at_s <= ended_s and state == wanted
            for machine in nodes.machines
            for at_s, state in _states(nodes, machine)
        )
        for wanted in ("suspect", "absent", "unreachable")
    ]
    return [seconds, *counts, time.time() - ended_s]


def _edges(nodes: HostNodes, starts: int) -> list[Any]:
    """What waits for an agent of its own machine, and of the other, in the same start."""
    say(f"{starts} starts")
    before = nodes.agents
    local, remote = [], []
    try:
        nodes.up(
            nodes.program("main_pc/A"), nodes.program("main_pc/L", "main_pc/A"), nodes.program("pc2/R", "main_pc/A")
        )
        for _ in range(starts):
            rows = nodes.wait_phase(READY)
            ready_s = rows["main_pc/A"].stamps.ready_s or 0.0
            for found, row in ((local, rows["main_pc/L"]), (remote, rows["pc2/R"])):
                found.append(1000 * ((row.stamps.unblocked_s or 0.0) - ready_s))
            nodes.up(stopped=("main_pc/A", "main_pc/L", "pc2/R"))
            nodes.wait(lambda rows: all(row.phase == "stopped" for row in rows.values() if str(row.id.name) in "ALR"))
            nodes.up()
    finally:
        nodes.up(*before)
        nodes.wait_phase(READY)
        nodes.until(nodes.agree)
    both = [statistics.median(found) for found in (local, remote)]
    return [starts, *both, both[1] - both[0]]


def _first(nodes: HostNodes, machine: str, state: str, after_s: float, before_s: float) -> float | None:
    found = [at_s for at_s, told in _states(nodes, machine) if told == state and after_s <= at_s <= before_s]
    return found[0] - after_s if found else None


def _states(nodes: HostNodes, machine: str) -> list[tuple[float, str]]:
    """When the other machine turned to what, in one's log: seconds since the epoch."""
    lines = [json.loads(line) for line in nodes.node_log(machine).splitlines() if '"mesh.peer"' in line]
    return [(datetime.fromisoformat(line["timestamp"]).timestamp(), line["state"]) for line in lines]


if __name__ == "__main__":
    main()
