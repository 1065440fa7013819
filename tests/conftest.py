"""What every test gets: uvloop, and a check that nothing outlives it."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from agentkit.testing.leaks import LeakCheck, no_tasks_left
from tests import apart
from tests.orphans import is_subreaper

# How long an example takes says how busy the machine is, not whether it is right
settings.register_profile("agentkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("agentkit")

#: What is going may take so long, in seconds; waited for only while something is there.
GOES_WITHIN_S = 10.0

#: What is told of the workers at the beginning.
_WORKERS = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--times", type=int, default=1, help="how many times longer tests marked `soak` run (make soak: 20)"
    )


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """How many times longer than in `make test` a test that is marked `soak` runs."""
    return int(request.config.getoption("--times"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What has only a long form, `soak(only=True)`, is left to `make soak`."""
    if config.getoption("--times") > 1:
        return
    long = [item for item in items if any(mark.kwargs.get("only") for mark in item.iter_markers("soak"))]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than cores, because tests wait more than they compute; at most four, because each starts many processes."""
    return min(len(os.sched_getaffinity(0)) + 1, 4)


def pytest_configure(config: pytest.Config) -> None:
    """Workers run in network namespaces of their own. Where there are none, one process does it all: tests that use the
    same ports must not meet, whatever their luck."""
    workers = getattr(config.option, "tx", None)
    if not workers or hasattr(config, "workerinput"):
        return
    config.stash[_WORKERS] = f"{len(workers)}, each in a network namespace of its own"
    if refused := apart.refusal():
        config.stash[_WORKERS] = f"none, everything runs in one process: {refused}"
        config.option.tx, config.option.dist = [], "no"
    else:
        config.option.tx = [apart.worker()] * len(workers)


def pytest_report_header(config: pytest.Config) -> str | None:
    workers = config.stash.get(_WORKERS, None)
    return f"workers: {workers}" if workers else None


def pytest_sessionstart() -> None:
    # libuv opens one pipe for the whole process with the first loop and keeps it: no test's leak.
    uvloop.new_event_loop().close()
    # A shell starts what runs in its background with Ctrl-C ignored, and so would everything be that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that agents and nodes run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may hold lone surrogates, which don't travel from one of pytest-xdist's processes to another."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def leaks() -> Iterator[LeakCheck]:
    """Fails the test when a process, thread, descriptor or ZeroMQ socket is left behind."""
    check, adopted = LeakCheck(), is_subreaper()
    yield check
    check.assert_none(within_s=GOES_WITHIN_S)
    assert is_subreaper() == adopted, "left behind: this process adopts orphans, so daemons become its children"


@pytest.fixture
async def no_tasks() -> AsyncIterator[None]:
    async with no_tasks_left(within_s=GOES_WITHIN_S):
        yield


@pytest.fixture(autouse=True)
def _no_tasks_in_async_tests(request: pytest.FixtureRequest, leaks: LeakCheck) -> None:
    """Not simply autouse itself: it would give a loop to each of the many tests that need none."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_tasks")
