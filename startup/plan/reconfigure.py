"""A process whose `config:` alone is another one now, and whose class has `on_config`: it is told, instead of being replaced. Pure.

runs the old one -> offered -> runs the new one           it has taken it
                           -> refused -> (a restart)      it does not fit, raised or took too long: as without `on_config`
"""

from __future__ import annotations

from dataclasses import replace

from startup.plan import process as proc
from startup.plan.actions import Configure
from startup.plan.phase import Phase
from startup.plan.process import Outcome, Process
from startup.spec.fleet import AgentSpec


def is_possible(p: Process, spec: AgentSpec) -> bool:
    """Whether all that its process lacks of `spec` is the config, and it can be told."""
    return (
        p.takes_config
        and p.phase is Phase.READY
        and p.swap is None
        and not proc.runs(p, spec)
        and p.config_refused != spec.digest()
        and bool(p.base or not p.digest)  # else it is not known what it runs with
        and (p.base or p.spec.base_digest()) == spec.base_digest()
    )


def offered(p: Process, spec: AgentSpec) -> Outcome:
    """It is told; once."""
    if p.offered is not None and (p.offered is spec or p.offered == spec):
        return p, []
    return replace(p, offered=spec), [Configure(p.id, p.incarnation)]


def taken(p: Process, spec: AgentSpec) -> Process:
    """It runs with the config of `spec`; unless another one was offered meanwhile."""
    return replace(p, spec=spec, digest="", base="", offered=None) if p.offered is spec else p


def refused(p: Process, spec: AgentSpec, why: str) -> Process:
    """It goes on with the old one. What follows is a restart, in the usual way."""
    if p.offered is not spec:
        return p
    return replace(p, offered=None, config_refused=spec.digest(), last_error=why)
