"""Fixtures that a conftest imports: a real server, or the reason why there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.consul.debian import program
from tests.consul.server import Server, cluster


def needs(name: str, release: str | None = None) -> None:
    """Skip where a program can't be had; in CI it has to be there. `release`: as for `program`."""
    if program(name, release) is None:
        why = f"there is no `{name}`: neither on PATH nor in the cache (python -m tests.consul.debian fetches it)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


@pytest.fixture
def consul_server() -> Iterator[Server]:
    """A server that runs, and has nothing."""
    needs("consul")
    server = Server()
    server.start()
    yield server
    server.close()


@pytest.fixture
def consul_cluster() -> Iterator[list[Server]]:
    """Three servers with a leader."""
    needs("consul")
    servers = cluster(3)
    yield servers
    for server in servers:
        server.close()
