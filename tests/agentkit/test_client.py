"""Clients for scripts: with a table of peers, and through a node that may be away or stand still."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentkit import (
    AgentUnknown,
    BaseAgent,
    BlockingClient,
    Client,
    DeadlineExceeded,
    NoNode,
    NotFound,
    Unreachable,
    rpc,
)
from agentkit import client as client_module
from agentkit.directory.base import AgentRecord
from agentkit.names import AgentId, Incarnation
from agentkit.testing import running
from tests.agentkit.directory.test_mesh import SmallNode, a_node
from tests.agentkit.support import outcome


class Shop(BaseAgent):
    """Sells."""

    @rpc
    async def price(self, of: str) -> int:
        if of == "nothing":
            raise NotFound("not sold here")
        return len(of)

    @rpc(timeout="50ms")
    async def slow(self) -> None:
        await asyncio.sleep(10)


def record(endpoint: str, **timeouts_s: float) -> AgentRecord:
    return AgentRecord(
        id=AgentId.parse("m1/Shop"), incarnation=Incarnation(0), phase="ready", endpoints={"inbox-local": endpoint},
        timeouts_s=timeouts_s,
    )  # fmt: skip


@pytest.fixture
def path() -> Iterator[Path]:
    """Of a node's control socket, in the folder that is named like its machine."""
    with tempfile.TemporaryDirectory(prefix="ak-") as folder:
        (Path(folder) / "m1").mkdir()
        yield Path(folder) / "m1/node.sock"


async def in_thread(function: Any, *args: Any, **kwargs: Any) -> Any:
    return await asyncio.to_thread(function, *args, **kwargs)


async def test_a_client_with_a_table_of_peers_calls_describes_and_lists() -> None:
    async with running(Shop) as shop, Client(peers={"Shop": shop.endpoint}) as client:
        assert await client.peer("Shop").price(of="bread") == 5
        assert await client.call("Shop", "price", {"of": "tea"}, timeout=2) == 3
        with pytest.raises(NotFound):
            await client.peer("Shop").price(of="nothing")
        assert (await client.describe("Shop"))["methods"]["price"]["arguments"]["required"] == ["of"]
        assert [str(id) for id in await client.names()] == ["local/Shop"]
        with pytest.raises(AgentUnknown):
            await client.peer("Baker").price(of="bread")


async def test_a_blocking_client_does_the_same_without_a_loop() -> None:
    def calls(endpoint: str) -> None:
        with BlockingClient(peers={"Shop": endpoint}) as client:
            assert client.peer("Shop").price(of="bread") == 5
            with pytest.raises(NotFound):
                client.peer("Shop").price(of="nothing")
            assert client.describe("Shop")["doc"] == "Sells."
            assert [str(id) for id in client.names()] == ["local/Shop"]

    async with running(Shop) as shop:
        await in_thread(calls, shop.endpoint)


async def test_threads_share_a_blocking_client() -> None:
    async with running(Shop) as shop:
        with BlockingClient(peers={"Shop": shop.endpoint}) as client:
            ends = await asyncio.gather(*(in_thread(client.call, "Shop", "price", {"of": "x" * n}) for n in range(20)))
        assert ends == list(range(20))


async def test_a_client_finds_agents_through_a_node(path: Path) -> None:
    async with running(Shop) as shop, a_node(path) as node:
        node.put(record(shop.endpoint, slow=0.05))
        async with Client(node=str(path)) as client:
            assert await client.peer("Shop").price(of="bread") == 5
            assert [str(id) for id in await client.names()] == ["m1/Shop"]
            began = time.monotonic()
            assert type(await outcome(client.call("Shop", "slow"))) is DeadlineExceeded
            assert time.monotonic() - began < 20, "the method's own default counts"


async def test_a_blocking_client_goes_on_while_the_node_is_away_or_stands_still(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Shop) as shop:
        node = SmallNode(path)
        await node.start()
        node.put(record(shop.endpoint))
        with BlockingClient(node=str(path)) as client:
            assert await in_thread(client.peer("Shop").price, of="bread") == 5
            await node.stop()
            client._known = {name: (-1e9, records) for name, (_, records) in client._known.items()}
            assert await in_thread(client.peer("Shop").price, of="bread") == 5
            with pytest.raises(AgentUnknown) as caught:
                await in_thread(client.peer("Never").price, of="bread")
            assert caught.value.directory_stale
            with pytest.raises(Unreachable):
                await in_thread(client.names)
            with _mute(path) as questions:
                client._known = {name: (-1e9, records) for name, (_, records) in client._known.items()}
                monkeypatch.setattr(client_module, "FRESH_S", 60.0)
                for _ in range(5):
                    assert await in_thread(client.call, "Shop", "price", {"of": "tea"}, timeout=20) == 3
                assert questions() == 1, "a node that stands still is waited for once"


@contextlib.contextmanager
def _mute(path: Path) -> Iterator[Callable[[], int]]:
    """Somebody who never answers; how many have asked."""
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        sock.setblocking(False)

        def asked() -> int:
            count = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.accept()[0].close()
                    count += 1
            return count

        yield asked
    path.unlink()


def test_without_a_node_the_error_says_how_to_get_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTKIT_RUN_DIR", str(path.parent))
    monkeypatch.delenv("AGENTKIT_NODE", raising=False)
    for make in (Client, BlockingClient):
        with pytest.raises(NoNode, match="`agentkit up`"):
            make()
        with pytest.raises(NoNode, match="no node at"):
            make(node=str(path))


async def test_a_client_outside_of_its_block_says_how_to_use_it() -> None:
    client = Client(peers={})
    with pytest.raises(NoNode, match="async with Client"):
        await client.call("X", "y")


async def test_leaving_the_block_closes_everything() -> None:
    async with running(Shop) as shop:
        before = threading.active_count()
        for _ in range(3):
            async with Client(peers={"Shop": shop.endpoint}) as client:
                await client.peer("Shop").price(of="x")
        assert threading.active_count() <= before
        assert os.getpid() > 0
