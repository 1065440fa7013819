"""Whether the `command:` programs of a fleet are there. Looks at the file system."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from startup.spec.fleet import ProgramTarget
from startup.spec.hosts import LOOPBACK
from startup.spec.problem import Problem
from startup.spec.resolve import Resolved


def command_problems(resolved: Resolved, environ: Mapping[str, str]) -> Iterator[Problem]:
    """A Problem for each agent of this machine whose program is in no folder of PATH, or not where its path says."""
    machines = {machine.name: machine for machine in resolved.fleet.machines}
    for spec in resolved.fleet.agents:
        if spec.id.slot or not isinstance(spec.target, ProgramTarget) or not spec.target.argv:
            continue
        if resolved.hosts[spec.machine] != LOOPBACK:
            continue
        program = spec.target.argv[0]
        folder = Path(machines[spec.machine].workdir or resolved.fleet.project_root)
        path = spec.env.get("PATH", environ.get("PATH"))
        found = shutil.which(str(folder / program)) if "/" in program else shutil.which(program, path=path)
        if found is None:
            yield Problem(
                check="module",
                place=resolved.place(spec.id, "command"),
                at=f"{resolved.entries[spec.id].at}.command",
                found=f"the program {program}, which is not there or can't be executed",
                want="a program in PATH, or a path from the working directory"
                if "/" not in program
                else f"an executable below {folder}",
            )
