"""Makes fleet84.yaml: a real fleet's graph of 77 agents (fleet84_facts.json) and seven of our own that make it harder.

    python configs/make_fleet84.py            write fleet84.yaml beside this script
    python configs/make_fleet84.py --check    exit 1 when the file is not what this script makes

The real graph is two islands, six levels deep each. Our seven tie the machines together in both directions, lengthen
the longest chain to eleven levels, and bring agents and edges that are optional: what a launcher gets wrong first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
FACTS: Final = HERE / "fleet84_facts.json"
TARGET: Final = HERE / "fleet84.yaml"

#: The group of our seven. Their ports are 7300-7306 and 8300-8306, which the real fleet leaves free: both machines may
#: be 127.0.0.1, so no port of the fleet is used twice, and none lies in the range from which Linux takes the ports of
#: outgoing connections (32768 and up), where any stranger's connection could hold it.
OUR_GROUP: Final = "cross_machine"
OUR_FIRST_PORT: Final = 7300
OUR_FIRST_HEALTH_PORT: Final = 8300


@dataclass(frozen=True, slots=True, kw_only=True)
class Dep:
    """One edge; optional ones are waited for while there is hope and never fail their dependant."""

    name: str
    required: bool = True

    def yaml(self) -> str:
        return self.name if self.required else f"{{name: {self.name}, required: false}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    name: str
    group: str
    machine: str
    port: int
    health_port: int
    deps: tuple[Dep, ...]
    required: bool = True

    def yaml(self) -> Iterator[str]:
        yield f"    {self.name}:"
        yield "      agent: agents.member:Member"
        yield f"      machine: {self.machine}"
        yield f"      port: {self.port}"
        yield f"      health_check_port: {self.health_port}"
        if not self.required:
            yield "      required: false"
        if self.deps:
            deps = ", ".join(dep.yaml() for dep in self.deps)
            yield f"      dependencies: [{deps}]"
            yield f"      config: {{calls: [{deps}]}}"


def ours(name: str, machine: str, offset: int, *deps: str | Dep, required: bool = True) -> Entry:
    """One of our seven; `offset` is its place in our ports."""
    return Entry(
        name=name,
        group=OUR_GROUP,
        machine=machine,
        port=OUR_FIRST_PORT + offset,
        health_port=OUR_FIRST_HEALTH_PORT + offset,
        deps=tuple(Dep(name=dep) if isinstance(dep, str) else dep for dep in deps),
        required=required,
    )


OURS: Final = (
    # The chain: each stands one level above the deepest before it, and all but the last on the other machine.
    ours("SpeechBridge", "pc2", 0, "StreamingLanguageAnalyzer", "MemoryOrchestratorService"),
    ours("ConversationRecorder", "mainpc", 1, "SpeechBridge", "KnowledgeBase"),
    ours("InsightMiner", "pc2", 2, "ConversationRecorder", "UnifiedMemoryReasoningAgent"),
    ours("ReportComposer", "mainpc", 3, "InsightMiner", "Responder", Dep(name="FleetAuditor", required=False)),
    ours("ReportReviewer", "mainpc", 4, "ReportComposer"),
    # Off the chain, and the fleet is up without them.
    ours("BackupKeeper", "mainpc", 5, "MemoryOrchestratorService", "RemoteConnectorAgent", required=False),
    ours(
        "FleetAuditor", "pc2", 6,
        "ObservabilityHub", "mainpc/ObservabilityHub", Dep(name="BackupKeeper", required=False), required=False,
    ),
)  # fmt: skip

HEAD: Final = """\
# The large reference fleet: 84 agents on two machines. Made by make_fleet84.py from fleet84_facts.json: change those
# and run it again. Every agent is a Member: at start it calls what it depends on, so that the order is really used.
version: 1
cluster: fleet84
project_root: ..
machines:
  mainpc: {host: "${MAIN_PC_IP:-127.0.0.1}"}
  pc2: {host: "${PC2_IP:-127.0.0.1}"}
# Imported once on each machine instead of 84 times: a third less time to start, 1.8 MB less per agent.
preload: [agents.member]
agent_groups:
"""


def real(facts: dict[str, Any]) -> Iterator[Entry]:
    """The agents of the facts file, in its order."""
    for fact in facts["agents"]:
        yield Entry(
            name=fact["name"],
            group=fact["group"],
            machine=fact["machine"],
            port=fact["port"],
            health_port=fact["health_port"],
            deps=tuple(Dep(name=name) for name in fact["deps"]),
            required=fact["required"],
        )


def make() -> str:
    """The text of fleet84.yaml."""
    entries = [*real(json.loads(FACTS.read_text())), *OURS]
    lines = [
        line
        for group, members in groupby(entries, key=lambda entry: entry.group)
        for line in (f"  {group}:", *(line for entry in members for line in entry.yaml()))
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make configs/fleet84.yaml.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the file is out of date")
    check: bool = parser.parse_args().check
    text = make()
    if not check:
        TARGET.write_text(text)
    elif not TARGET.exists() or TARGET.read_text() != text:
        sys.stderr.write(f"{TARGET}: not what {Path(__file__).name} makes; run it without --check\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
