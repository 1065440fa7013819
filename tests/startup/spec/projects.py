"""Small projects on disk for tests of spec/: a configuration file, and scripts beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

from startup.spec.load import Loaded, load
from startup.spec.problem import Problem

#: What every file begins with.
HEAD = "version: 1\ncluster: test\n"

AGENT = """
from agentkit import AgentConfig, BaseAgent

class Worker(BaseAgent):
    class Config(AgentConfig):
        size: int = 1
"""


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))


def loaded(folder: Path, text: str, *, environ: Mapping[str, str] | None = None, **options: Any) -> Loaded:
    """`text` loaded as fleet.yaml; modules are not looked at unless `inspect=True`."""
    path = folder / "fleet.yaml"
    text = dedent(text)
    path.write_text(text if "version:" in text else HEAD + text)
    return load(path, environ=environ or {}, **{"inspect": False, "cache": folder / "cache", **options})


def agents(text: str) -> str:
    """`A: {...}` lines as the one group `core`."""
    return "agent_groups:\n  core:\n" + "".join(f"    {line.strip()}\n" for line in text.strip().splitlines())


def of(found: Loaded | tuple[Problem, ...], check: str) -> list[Problem]:
    problems = found.problems if isinstance(found, Loaded) else found
    return [problem for problem in problems if problem.check == check]


def one(found: Loaded | tuple[Problem, ...], check: str) -> Problem:
    """The only problem of that check."""
    (problem,) = of(found, check)
    return problem
