"""Loaded once for all who use it, within a limit, and gone when nobody needs it: the pool alone."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentkit import ConfigError, DeadlineExceeded, ResourceFailed, ResourcesFull
from agentkit.resources.pool import ResourcePool
from tests.agentkit.support import eventually


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[ResourcePool]:
    pool = ResourcePool(asyncio.get_running_loop(), **options)
    try:
        yield pool
    finally:
        await pool.close()
        assert pool.statistics().used_bytes == 0


class Models:
    """Loaders that write down what they do."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.problem = ""

    def define(self, pool: ResourcePool, name: str, size: int, *, declared: bool = True, **options: Any) -> None:
        async def load() -> bytearray:
            self.diary.append(f"+{name}")
            await self.let_go.wait()
            if self.problem:
                raise OSError(self.problem)
            return bytearray(size)

        async def unload(_: object) -> None:
            self.diary.append(f"-{name}")

        pool.define(name, load, size=size if declared else None, unload=unload, **options)


async def test_it_is_loaded_when_first_used_and_once_for_all_who_wait() -> None:
    models = Models()
    async with opened() as pool:
        models.define(pool, "m", 100)
        assert models.diary == []
        models.let_go.clear()
        getting = [asyncio.ensure_future(pool.get("m")) for _ in range(20)]
        await eventually(lambda: models.diary == ["+m"])
        assert pool.pinned == 1
        models.let_go.set()
        values = await asyncio.gather(*getting)
        assert all(value is values[0] for value in values)
        assert await pool.get("m") is values[0]
        told = pool.statistics()
        assert (told.loads_total, told.hits_total, told.used_bytes, told.pinned) == (1, 1, 100, 0)
    assert models.diary == ["+m", "-m"]


async def test_a_load_that_fails_is_each_waiters_error_and_the_next_use_tries_again() -> None:
    models = Models()
    failed: list[str] = []
    async with opened(on_failed=lambda name, _: failed.append(name)) as pool:
        models.define(pool, "m", 100)
        models.problem = "disk gone"
        errors = await asyncio.gather(*(pool.get("m") for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in errors] == ["m: its loader raised OSError: disk gone"] * 3
        assert len({id(error) for error in errors}) == 3
        assert all(isinstance(error, ResourceFailed) and isinstance(error.__cause__, OSError) for error in errors)
        assert (failed, pool.statistics().used_bytes) == (["m"], 0)
        models.problem = ""
        assert len(await pool.get("m")) == 100


async def test_who_used_it_least_recently_goes_for_another_but_nobody_who_is_in_use() -> None:
    models = Models()
    async with opened(limit_bytes=250) as pool:
        for name in "abcd":
            models.define(pool, name, 100)
        await pool.get("a")
        await pool.get("b")
        await pool.get("a")
        await pool.get("c")
        assert models.diary == ["+a", "+b", "-b", "+c"]
        async with pool.use("a"):
            await pool.get("d")
            assert models.diary[4:] == ["-c", "+d"]
            await pool.get("b")
            assert models.diary[6:] == ["-d", "+b"]
        assert pool.statistics().evictions_total == 3


async def test_a_load_waits_until_others_let_go_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models()
    async with opened(limit_bytes=150) as pool:
        models.define(pool, "a", 100)
        models.define(pool, "b", 100)
        async with pool.use("a"):
            waiting = asyncio.ensure_future(pool.get("b"))
            await eventually(lambda: pool._resources["b"].loading is not None)
            assert models.diary == ["+a"]
        await waiting
        assert models.diary == ["+a", "-a", "+b"]
        monkeypatch.setattr("agentkit.resources.pool.ROOM_WAIT_S", 0.02)
        async with pool.use("b"):
            with pytest.raises(ResourcesFull, match="no room for 100 bytes"):
                await pool.get("a")
            with pytest.raises(ResourcesFull, match="no room for 100 bytes"):
                await asyncio.to_thread(pool.get, "a")
        assert len(await pool.get("a")) == 100


async def test_what_turns_out_larger_than_thought_lets_others_go_afterwards() -> None:
    models = Models()
    async with opened(limit_bytes=250) as pool:
        models.define(pool, "a", 100)
        models.define(pool, "b", 200, declared=False)
        models.define(pool, "huge", 1000, declared=False)
        await pool.get("a")
        await pool.get("b")
        await eventually(lambda: models.diary == ["+a", "+b", "-a"])
        assert pool.statistics().used_bytes == 200
        async with pool.use("huge") as huge:  # the limit is less than one of them: it is there while it is used
            assert len(huge) == 1000
        await eventually(lambda: pool.statistics().used_bytes == 0)


async def test_whoever_stops_waiting_leaves_nothing_pinned() -> None:
    models = Models()
    async with opened(limit_bytes=100) as pool:
        models.define(pool, "m", 100)
        models.define(pool, "n", 100)
        models.let_go.clear()
        async with asyncio.timeout(10):
            waiting = [asyncio.ensure_future(pool.get("m")) for _ in range(3)]
            await eventually(lambda: models.diary == ["+m"])
            for one in waiting[:2]:
                one.cancel()
            await asyncio.wait(waiting[:2])
            models.let_go.set()
            await waiting[2]
            await pool.get("n")
        assert pool.pinned == 0


async def test_any_order_of_uses_and_cancellations_ends_with_nothing_pinned() -> None:
    lot = random.Random(7)
    models = Models()
    async with opened(limit_bytes=300) as pool:
        for name in "abcdef":
            models.define(pool, name, 100, declared=name in "abc")

        async def use() -> None:
            async with pool.use(lot.choice("abcdef")) as value:
                assert len(value) == 100
                await asyncio.sleep(lot.random() / 500)

        async def at_most(task: asyncio.Task[None]) -> None:
            await asyncio.wait({task}, timeout=lot.random() / 100)
            task.cancel()
            await asyncio.wait({task})

        uses = [asyncio.create_task(use()) for _ in range(200)]
        await asyncio.gather(*(at_most(task) for task in uses[::3]))
        await asyncio.gather(*(task for n, task in enumerate(uses) if n % 3))
        assert pool.pinned == 0
        await eventually(lambda: pool.statistics().used_bytes <= 300)
        loads = sum(line[0] == "+" for line in models.diary)
        assert pool.statistics().loads_total == loads


async def test_sleep_releases_what_nobody_uses_and_what_is_not_kept() -> None:
    models = Models()
    async with opened() as pool:
        models.define(pool, "a", 100)
        models.define(pool, "used", 100)
        models.define(pool, "kept", 100, keep=True)
        await pool.get("a")
        await pool.get("kept")
        async with pool.use("used"):
            await pool.release()
            assert pool.statistics().loaded == ("used", "kept")
        assert pool.statistics().releases_total == 1
        assert len(await pool.get("a")) == 100


async def test_threads_use_the_same_and_loaders_that_block_run_on_threads() -> None:
    loaded_in: list[bool] = []

    def load() -> str:
        loaded_in.append(threading.current_thread() is threading.main_thread())
        return "model"

    async with opened() as pool:
        pool.define("m", load)

        def in_a_thread() -> tuple[str, int]:
            with pool.use("m") as model:
                return model + pool.get("m"), pool.pinned

        assert await asyncio.gather(*(asyncio.to_thread(in_a_thread) for _ in range(4))) == [("modelmodel", 1)] * 4
        assert loaded_in == [False]
        await eventually(lambda: pool.pinned == 0)
        with pytest.raises(ConfigError, match="async with"):
            pool.use("m").__enter__()


async def test_a_thread_waits_no_longer_than_its_call_and_leaves_nothing_pinned() -> None:
    models = Models()
    async with opened(left_s=lambda: 0.02) as pool:
        models.define(pool, "m", 100)
        models.let_go.clear()
        with pytest.raises(DeadlineExceeded, match="resource m"):
            await asyncio.to_thread(pool.use("m").__enter__)
        models.let_go.set()
        await eventually(lambda: pool.statistics().loaded == ("m",) and pool.pinned == 0)


async def test_mapped_files_and_memmaps_are_resources(tmp_path: Path) -> None:
    file = tmp_path / "vectors.bin"
    np.arange(1000, dtype=np.float64).tofile(file)
    async with opened() as pool:
        pool.define_file("raw", file)
        pool.define("vectors", lambda: np.memmap(file, dtype=np.float64, mode="r"))
        async with pool.use("raw") as raw, pool.use("vectors") as vectors:
            assert np.frombuffer(raw)[7] == vectors[7] == 7.0
        assert pool.statistics().used_bytes == 16_000
        del vectors
        await pool.release()
        assert pool.statistics().used_bytes == 0
        assert raw.closed


async def test_what_a_loader_must_not_do_ends_its_load_and_nothing_else() -> None:
    def stops() -> object:
        return next(iter([]))

    def exits() -> object:
        raise SystemExit("bye")

    def unloads(_: object) -> None:
        raise RuntimeError("stuck")

    failed: list[str] = []
    async with opened(on_failed=lambda name, _: failed.append(name)) as pool:
        pool.define("stops", stops)
        pool.define("exits", exits)
        pool.define("stuck", lambda: b"x", unload=unloads)
        with pytest.raises(ResourceFailed, match="StopIteration"):
            await pool.get("stops")
        with pytest.raises(ResourceFailed, match="SystemExit"):
            await pool.get("exits")
        await pool.get("stuck")
        await pool.release()
        assert failed == ["stops", "exits", "stuck"]
        assert await pool.get("stuck") == b"x"


async def test_mistakes_are_named() -> None:
    async with opened(limit_bytes=100) as pool:
        pool.define("model-x", lambda: b"")
        with pytest.raises(ConfigError, match="did you mean 'model-x'"):
            await pool.get("model-y")
        with pytest.raises(ConfigError, match="not taken"):
            pool.define("model-x", lambda: b"")
        with pytest.raises(ConfigError, match="resource_memory"):
            pool.define("big", lambda: b"", size="1Mi")
        with pytest.raises(ConfigError, match="512Ki"):
            pool.define("wrong", lambda: b"", size="1 apple")
