from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from tests.agentkit.support import Nursery


@pytest.fixture(scope="session", autouse=True)
def _large_frame_sent() -> None:
    """The first frame that pyzmq sends without a copy starts a thread that it keeps for the whole process: no test's leak."""
    with zmq.Context() as context, context.socket(zmq.PUB) as sock:
        sock.send(bytes(100_000), copy=False)


@pytest.fixture
def nursery(request: pytest.FixtureRequest) -> Iterator[Nursery]:
    """Forks real agents on one listener; ends those that are left."""
    started = Nursery(measured=request.node.get_closest_marker("soak") is None)  # those fork hundreds
    yield started
    started.close()
