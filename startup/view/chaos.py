"""What a plan of faults did to a fleet: as tables, and held against the plan's limits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from startup.spec.chaos import Expect
from startup.view.words import columns, count, duration


def broken(found: Mapping[str, Any], expect: Expect) -> list[str]:
    """The limits that were, in words."""
    said = []
    for name, limit in (("failed", expect.failed_calls), ("slow", expect.slow_calls)):
        calls = sum(int(probe[name]) for probe in found["probes"])
        if limit is not None and calls > limit:
            said.append(f"{count(calls, f'{name} call')}; at most {limit}")
    for fault in found["faults"]:
        ready_s = fault["ready_s"]
        if ready_s is None:
            said.append(f"{fault['fault']} at {fault['at_s']:.1f} s: not well again in the end")
        elif expect.ready_within is not None and ready_s > expect.ready_within:
            within = duration(expect.ready_within)
            said.append(
                f"{fault['fault']} at {fault['at_s']:.1f} s: well again after {duration(ready_s)}; within {within}"
            )
    orphans = sum(map(len, found["orphans"].values()))
    if orphans > expect.orphans:
        said.append(f"{count(orphans, 'orphan')}: {found['orphans']}; at most {expect.orphans}")
    if len(found["lost_ports"]) > expect.lost_ports:
        said.append(f"lost ports: {', '.join(found['lost_ports'])}; at most {expect.lost_ports}")
    if found["not_up"]:
        said.append(f"not up in the end: {', '.join(found['not_up'])}")
    return said


def report(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines."""
    table: list[tuple[str, ...]] = [("AT", "FAULT", "WELL AGAIN AFTER")]
    for fault in found["faults"]:
        ready = "never" if fault["ready_s"] is None else duration(fault["ready_s"])
        table.append(
            (f"{fault['at_s']:.2f} s", fault["fault"], f"not done: {fault['missed']}" if fault["missed"] else ready)
        )
    yield from columns(table, right={0}, width=200)
    if found["probes"]:
        yield ""
        table = [("PROBE", "OK", "SLOW", "FAILED", "SLOWEST")]
        for probe in found["probes"]:
            counts = (str(probe[key]) for key in ("ok", "slow", "failed"))
            table.append((probe["call"], *counts, duration(probe["slowest_s"])))
        yield from columns(table, right={1, 2, 3, 4}, width=200)
        for probe in found["probes"]:
            for failure in probe["failures"]:
                yield f"  {failure['at_s']:7.2f} s  {probe['call']}: {failure['error']}"
    orphans = sum(map(len, found["orphans"].values()))
    yield ""
    yield f"seed {found['seed']}; {count(len(found['faults']), 'fault')}; {count(found['restarts'], 'restart')} counted; {count(orphans, 'orphan')}; {count(len(found['lost_ports']), 'lost port')}"  # noqa: E501
    for line in found["broken"]:
        yield f"BROKEN: {line}"
    if not found["broken"]:
        yield "nothing was lost"
