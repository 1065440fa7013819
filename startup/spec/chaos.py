"""A plan for `agentkit chaos`: what is done to a running fleet, what is asked of it meanwhile, what must hold. Read and checked whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from startup.spec.fields import Duration, Model
from startup.spec.parse import validated
from startup.spec.problem import Problem
from startup.spec.source import read
from startup.spec.units import refuse


class When(Model):
    at: Duration | None = Field(None, description="Once, so long after the beginning.")
    every: Duration | None = Field(None, gt=0, description="Again and again, first after this long.")

    @model_validator(mode="after")
    def _one_time(self) -> When:
        if (self.at is None) == (self.every is None):
            raise refuse("`at:` or `every:`, and not both")
        return self


class Victim(When):
    """Patterns as in a shell: `*`, `Task*`, `pc2/*`. Of those that match, one is chosen each time."""

    agent: str | None = Field(None, description="Agents by name or machine/name.")
    node: str | None = Field(None, description="Nodes by machine.")
    zygote: str | None = Field(None, description="Zygotes by machine.")

    @model_validator(mode="after")
    def _one_victim(self) -> Victim:
        if sum(it is not None for it in (self.agent, self.node, self.zygote)) != 1:
            raise refuse("one of `agent:`, `node:`, `zygote:`")
        return self

    @property
    def kind(self) -> Literal["agent", "node", "zygote"]:
        return "agent" if self.agent is not None else "node" if self.node is not None else "zygote"

    @property
    def pattern(self) -> str:
        return self.agent or self.node or self.zygote or "*"


class Stop(Victim):
    for_s: Duration = Field(alias="for", gt=0, le=600, description="It stands still this long.")


class Cut(When):
    between: tuple[str, str] = Field(description="Two machines.")
    for_s: Duration = Field(alias="for", gt=0, le=600, description="Then it heals by itself.")

    @model_validator(mode="after")
    def _two_machines(self) -> Cut:
        if self.between[0] == self.between[1]:
            raise refuse("two different machines")
        return self


class Delay(Cut):
    by_s: Duration = Field(alias="by", gt=0, le=10, description="So late each word between the two nodes arrives.")


class Fault(Model):
    """One of them."""

    kill: Victim | None = Field(None, description="SIGKILL.")
    stop: Stop | None = Field(None, description="SIGSTOP, and SIGCONT afterwards; a node's loop stands still.")
    partition: Cut | None = Field(None, description="Two nodes do not hear each other.")
    delay: Delay | None = Field(None, description="Two nodes hear each other late.")

    @model_validator(mode="after")
    def _one_fault(self) -> Fault:
        if sum(it is not None for it in (self.kill, self.stop, self.partition, self.delay)) != 1:
            raise refuse("one of `kill:`, `stop:`, `partition:`, `delay:`")
        return self

    @property
    def what(self) -> tuple[str, When]:
        found = {"kill": self.kill, "stop": self.stop, "partition": self.partition, "delay": self.delay}
        return next((verb, it) for verb, it in found.items() if it is not None)


class Probe(Model):
    call: str = Field(pattern=r"^[^.\s]+(\.[^.\s]+)+$", description="AGENT.METHOD; the method must be idempotent.")
    arguments: dict[str, Any] = Field(default_factory=dict)
    every: Duration = Field(0.1, ge=0.001, description="Between two calls.")
    timeout: Duration = Field(10.0, gt=0)
    slow: Duration = Field(1.0, gt=0, description="An answer that takes longer is counted as slow.")

    @property
    def target(self) -> tuple[str, str]:
        agent, _, method = self.call.rpartition(".")
        return agent, method


class Expect(Model):
    """Limits; what is broken makes the command end with 1. What is not named has no limit, but for orphans and ports."""

    failed_calls: int | None = Field(None, ge=0)
    slow_calls: int | None = Field(None, ge=0)
    ready_within: Duration | None = Field(None, description="After each fault, until all is well again.")
    orphans: int = Field(0, ge=0, description="Processes of the fleet that nobody looks after.")
    lost_ports: int = Field(0, ge=0, description="Addresses of agents that are not what they were, or do not answer.")


class ChaosPlan(Model):
    """What `agentkit chaos FILE` reads."""

    seed: int = Field(0, description="The same seed chooses the same victims at the same times.")
    duration: Duration = Field(60.0, gt=0, description="Faults begin within this time.")
    settle: Duration = Field(30.0, gt=0, description="After the last one, so long until all must be well again.")
    faults: list[Fault] = Field(min_length=1, max_length=100)
    probe: list[Probe] = Field(default_factory=list, max_length=100)
    expect: Expect = Field(default_factory=Expect)


def load(path: Path, problems: list[Problem]) -> ChaosPlan | None:
    """The plan in the file; None, with the reasons among `problems`, when it can't be used."""
    table = read(path, problems)
    if table is None:
        return None
    stand_ins = {"faults": [{"kill": {"agent": "*", "at": "1s"}}]}
    plan = validated(ChaosPlan, table, {}, stand_ins, "", table.place, problems)
    return None if any(it.severity == "error" for it in problems) else plan
