"""What the fleet file says of memory, CPUs and processes: of an agent (`resources`), and of all agents of a class (`pools`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from startup.spec.fields import Model, Size
from startup.spec.units import refuse

Cpu = Annotated[int, Field(ge=0)]


class LimitsModel(Model):
    memory: Size | None = Field(
        None, description="Above this it is killed, with all that it started, and started again."
    )
    cpu: float | None = Field(None, gt=0, description="Cores; may be a fraction.")
    pids: int | None = Field(
        None, ge=1, le=4_000_000, description="Processes and threads; 1024 where it has another limit."
    )


class RequestsModel(Model):
    memory: Size | None = Field(None, description="Kept free for it; left out: its limit, where a pool counts.")


class ResourcesModel(Model):
    limits: LimitsModel = Field(default_factory=lambda: LimitsModel(), description="What it may use at most.")
    requests: RequestsModel = Field(default_factory=lambda: RequestsModel(), description="What it needs.")
    cpu_affinity: list[Cpu] = Field(
        default_factory=list, description="CPUs it may run on, by number; default: those of its class's pool."
    )

    @model_validator(mode="after")
    def _request_within_limit(self) -> ResourcesModel:
        request, limit = self.requests.memory, self.limits.memory
        if request is not None and limit is not None and request > limit:
            raise refuse("requests.memory of at most limits.memory", "lower the one, or raise the other")
        return self


class PoolModel(Model):
    memory: Size | None = Field(None, description="For all agents of the class on one machine together.")
    reserve: Size = Field(0, description="Of `memory`, never given out: for rolls, when two processes of an agent run.")
    cpu_affinity: list[Cpu] = Field(
        default_factory=list, description="CPUs that agents of the class may run on, unless they say otherwise."
    )

    @model_validator(mode="after")
    def _reserve_within_memory(self) -> PoolModel:
        if self.reserve and self.reserve >= (self.memory or 0):
            raise refuse("a reserve below the pool's memory", "lower it, or raise `memory`")
        return self
