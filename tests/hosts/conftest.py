from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hosts.machines import Link, Machine, refusal, two_machines


class Hosts(NamedTuple):
    a: Machine
    b: Machine
    link: Link


def demand(reason: str) -> None:
    """What is missing here is a reason to skip, but not in CI, which would else pass without having looked."""
    if reason and os.environ.get("CI"):
        pytest.fail(f"in CI this test has to run: {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two machines, main_pc and pc2, with a cable between them and an sshd each; all of it ends with the test."""
    demand(refusal())
    # short paths: a socket's has 107 bytes
    with (
        tempfile.TemporaryDirectory(prefix="ak", ignore_cleanup_errors=True) as folder,
        two_machines(Path(folder)) as made,
    ):
        yield Hosts(*made)
