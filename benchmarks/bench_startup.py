"""How fast a fleet comes up and how little it needs at rest: fleet84 under `agentkit up`, beside other launchers and the floor.

    python benchmarks/bench_startup.py [--quick] [--json] [--only TEXT]...

`--only startup`, `--only hosts`, `--only rest`, `--only large`: one of the four parts.

- startup: cold (`agentkit up` from nothing: CLI, nodes, zygotes, 84 agents in the order of their dependencies, each calling
  what it depends on) and warm (nodes running, all agents stopped); circus, supervisord and plain `python` processes starting
  84 minimal pyzmq agents that need nothing of each other; the floor: our zygote forking 84 processes, nothing else.
- hosts: cold over two hosts, the other's node started over SSH, beside the same on one.
- rest: memory and wake-ups of the idle fleet.
- large: 500 agents on one machine, and how long `status` then takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from common import (
    ROOT,
    Processes,
    Table,
    compile_all,
    free_ports,
    median,
    options,
    pss_mb,
    say,
    show,
    stopwatch,
    wakeups_per_second,
)
from startup_peers import LAUNCHERS
from two_hosts import two_hosts

FLEET84: Final = ROOT / "configs" / "fleet84.yaml"
FLOOR_SCRIPT: Final = Path(__file__).with_name("floor.py")
AGENTS: Final = 84
LARGE: Final = 500
UP_TIMEOUT_S: Final = 120.0
#: After a start: what a fleet still does because it has just started is over.
SETTLE_S: Final = 12.0


@dataclass(slots=True)
class Fleet:
    """The command line, in folders of its own, so that no other cluster of this user is met."""

    processes: Processes
    folder: Path
    file: Path = FLEET84
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.env = {
            "AGENTKIT_RUN_DIR": str(self.folder / "run"),
            "AGENTKIT_STATE_DIR": str(self.folder / "state"),
            "PYTHONPATH": str(ROOT),
        }

    def command(self, *words: str) -> tuple[float, Any]:
        """Seconds from start to exit, and what it printed with `--json`. RuntimeError: its exit code was not 0."""
        with stopwatch() as passed_s:
            process = self.processes.start(
                sys.executable, "-m", "startup", *words, "--json",
                env=self.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            out, err = process.communicate(timeout=UP_TIMEOUT_S)
            seconds = passed_s()
        if process.returncode:
            raise RuntimeError(
                f"agentkit {' '.join(words[:2])} exited with {process.returncode}: {(err or out)[-2000:]}"
            )
        return seconds, json.loads(out)

    def up(self) -> tuple[float, Any]:
        return self.command("up", str(self.file))

    def down(self) -> tuple[float, Any]:
        return self.command("down")

    def stop_agents(self, up: Any) -> None:
        """All agents, leaving the nodes."""
        self.command("stop", *(f"{agent['machine']}/{agent['instance']}" for agent in up["agents"]))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """machine -> what its node wrote about itself (node.json)."""
        return {file.parent.name: json.loads(file.read_text()) for file in (self.folder / "run").glob("*/*/node.json")}


@contextmanager
def fleet(file: Path = FLEET84) -> Iterator[Fleet]:
    """Nothing of it is left when the block ends, however it ends."""
    with tempfile.TemporaryDirectory(prefix="akb") as folder, Processes() as processes:
        yield Fleet(processes, Path(folder), file)


# --- startup ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One cold and one warm start; `steps` are seconds since the cold command began."""

    cold_s: float
    warm_s: float
    down_s: float
    steps: dict[str, float]


def start_fleet() -> Start:
    with fleet() as ours:
        import_s = median([_import_s(ours) for _ in range(3)])
        begun_s = time.time()
        cold_s, up = ours.up()
        node_s = max(node["started_s"] for node in ours.nodes().values()) - begun_s
        forked = [agent["forked_s"] for agent in up["agents"]]
        steps = {
            "CLI imported": import_s,
            "nodes serve": node_s,
            "first agent forked (file checked, zygotes ready)": min(forked),
            "last agent forked (all before it in the order ready)": max(forked),
            "last agent ready": max(agent["ready_s"] for agent in up["agents"]),
            "command ended": cold_s,
        }
        ours.stop_agents(up)
        warm_s, _ = ours.up()
        down_s, _ = ours.down()
        return Start(cold_s=cold_s, warm_s=warm_s, down_s=down_s, steps=steps)


def _import_s(ours: Fleet) -> float:
    with stopwatch() as passed_s:
        ours.processes.start(sys.executable, "-m", "startup", "--version", env=ours.env, cwd=ROOT).wait()
        return passed_s()


def floor(rounds: int, count: int = AGENTS) -> dict[str, dict[str, list[float]]]:
    """What floor.py measured of `count` processes: by kind, seconds and memory of each round."""
    with tempfile.TemporaryDirectory(prefix="akb") as folder, Processes() as processes:
        process = processes.start(
            sys.executable, FLOOR_SCRIPT, str(count), str(rounds), folder,
            env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        out, err = process.communicate(timeout=UP_TIMEOUT_S)
        if process.returncode:
            raise RuntimeError(f"floor.py exited with {process.returncode}: {err[-2000:]}")
        measured: dict[str, dict[str, list[float]]] = json.loads(out)
        return measured


def startup(repetitions: int) -> list[Table]:
    seconds: dict[str, list[float]] = {}
    steps: dict[str, list[float]] = {}
    notes: list[str] = []

    def note(name: str, *values: float) -> None:
        seconds.setdefault(name, []).extend(values)
        say(f"{name}: {', '.join(f'{value:.2f}' for value in values)} s")

    for repetition in range(repetitions):
        say(f"repetition {repetition + 1} of {repetitions}")
        start = start_fleet()
        note("agentkit up, cold", start.cold_s)
        note("agentkit up, warm", start.warm_s)
        note("agentkit down", start.down_s)
        for step, at_s in start.steps.items():
            steps.setdefault(step, []).append(at_s)
        for kind, measured in floor(2).items():
            note(f"{kind}, forked by our zygote", *measured["seconds"])
        for name, launch in LAUNCHERS.items():
            if any(text.startswith(f"{name} ") for text in notes):
                continue
            try:
                note(name, launch(free_ports(AGENTS)))
            except (OSError, TimeoutError) as exc:
                notes.append(f"{name} could not be measured: {exc}")

    medians = {name: median(values) for name, values in seconds.items()}
    floor_s = medians["floor, forked by our zygote"]
    others = [medians[name] for name in ("circus", "supervisord") if name in medians]
    table = Table(
        f"{AGENTS} agents, until all are ready",
        ("what", "median s", "best s", "worst s", "x faster than best of circus, supervisord", "time / floor"),
        notes=[
            f"cold and warm: {FLEET84.name}, ordered; the others: {AGENTS} processes that need nothing of each other",
            *notes,
        ],
    )
    for name, values in seconds.items():
        faster = min(others) / medians[name] if others and name != "agentkit down" else None
        table.add(name, medians[name], min(values), max(values), faster, medians[name] / floor_s)

    split = Table("agentkit up, cold: when each step was reached", ("step", "at s", "took s"))
    before_s = 0.0
    for step, values in steps.items():
        at_s = median(values)
        split.add(step, at_s, at_s - before_s)
        before_s = at_s
    return [table, split]


# --- at rest ----------------------------------------------------------------------------------------------------------


def rest(watch_s: float) -> list[Table]:
    with fleet() as ours:
        _, up = ours.up()
        say(f"at rest: settling for {SETTLE_S:g} s, watching for {watch_s:g} s")
        time.sleep(SETTLE_S)
        agents = [agent["pid"] for agent in up["agents"]]
        nodes = [node["pid"] for node in ours.nodes().values()]
        zygotes = sorted({psutil.Process(pid).ppid() for pid in agents})
        table = Table(
            f"{FLEET84.name} at rest, nobody calling",
            ("process", "number", "PSS MB median", "PSS MB max", "PSS MB sum", "wake-ups/s median", "wake-ups/s max"),
            notes=[f"watched for {watch_s:g} s; PSS is told after that, so that reading it disturbs nothing"],
        )
        kinds = {"agent": agents, "node": nodes, "zygote": zygotes}
        pids = [pid for kind in kinds.values() for pid in kind]
        woken = dict(zip(pids, wakeups_per_second(pids, watch_s), strict=True))
        for kind, members in kinds.items():
            memory, wakes = [pss_mb(pid) for pid in members], [woken[pid] for pid in members]
            table.add(kind, len(members), median(memory), max(memory), sum(memory), median(wakes), max(wakes))
        ours.down()
    for kind, measured in floor(1).items():
        memory_mb = median(measured["pss_mb"])
        table.add(f"{kind}, forked by our zygote", AGENTS, memory_mb, None, memory_mb * AGENTS, None, None)
    return [table]


# --- many on one machine ----------------------------------------------------------------------------------------------


def large(repetitions: int) -> list[Table]:
    seconds: dict[str, list[float]] = {"up": [], "status": [], "down": []}
    with tempfile.TemporaryDirectory(prefix="akb") as folder:
        for _ in range(repetitions):
            file = Path(folder, "large.yaml")
            file.write_text(large_yaml(free_ports(2 * LARGE)))
            with fleet(file) as ours:
                seconds["up"].append(ours.up()[0])
                seconds["status"].append(ours.command("status")[0])
                seconds["down"].append(ours.down()[0])
            say(f"{LARGE} agents: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()))
    table = Table(f"{LARGE} agents on one machine", ("command", "median s", "best s", "worst s"))
    for name, values in seconds.items():
        table.add(name, median(values), min(values), max(values))
    return [table]


def large_yaml(ports: list[int]) -> str:
    agents = "\n".join(
        f"    Agent{n}: {{agent: agents.member:Member, port: {port}, health_check_port: {health_port}}}"
        for n, (port, health_port) in enumerate(zip(ports[::2], ports[1::2], strict=True))
    )
    return (
        f"version: 1\ncluster: large\nproject_root: {ROOT}\npreload: [agents.member]\nmachines: {{here: {{}}}}\n"
        f"agent_groups:\n  all:\n{agents}\n"
    )


def main() -> None:
    wanted = options(__doc__ or "")
    compile_all()
    parts = {
        "startup": lambda: startup(1 if wanted.quick else 5),
        "hosts": lambda: two_hosts(1 if wanted.quick else 5),
        "rest": lambda: rest(10.0 if wanted.quick else 60.0),
        "large": lambda: large(1 if wanted.quick else 3),
    }
    chosen = [run for name, run in parts.items() if not wanted.only or any(text in name for text in wanted.only)]
    show("bench_startup", [table for run in chosen for table in run()], as_json=wanted.json)


if __name__ == "__main__":
    main()
