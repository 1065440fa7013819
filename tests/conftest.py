"""What every test gets: uvloop, and a check that nothing outlives it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping

import pytest
import uvloop

from agentkit.testing.leaks import LeakCheck, no_tasks_left


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--times", type=int, default=1, help="how many times longer tests marked `soak` run (make soak: 20)"
    )


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """How many times longer than in `make test` a test that is marked `soak` runs."""
    return int(request.config.getoption("--times"))


def pytest_sessionstart() -> None:
    # libuv opens one pipe for the whole process with the first loop and keeps it: no test's leak.
    uvloop.new_event_loop().close()


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
    check = LeakCheck()
    yield check
    check.assert_none(within_s=1.0)


@pytest.fixture
async def no_tasks() -> AsyncIterator[None]:
    async with no_tasks_left(within_s=1.0):
        yield


@pytest.fixture(autouse=True)
def _no_tasks_in_async_tests(request: pytest.FixtureRequest, leaks: LeakCheck) -> None:
    """Not simply autouse itself: it would give a loop to each of the many tests that need none."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_tasks")
