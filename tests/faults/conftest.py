from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agentkit.conftest import _large_frame_sent  # noqa: F401 - a fixture for these tests too
from tests.agentkit.support import Nursery
from tests.faults.scratch import Scratch


@pytest.fixture
def fleet() -> Iterator[Scratch]:
    """A project of one machine in a folder of its own; nothing of it may be left after `down`."""
    with Scratch() as scratch:
        yield scratch


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    """Forks real agents on one listener; ends those that are left."""
    started = Nursery()
    yield started
    started.close()
