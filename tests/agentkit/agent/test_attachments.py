"""Arrays and large buffers between agents, over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from agentkit import BadRequest, BaseAgent, Deadline, HandlerError, Shared, TooLarge, rpc
from agentkit.testing import running
from agentkit.wire import envelope as ak
from agentkit.wire.attachments import unpack
from agentkit.wire.envelope import Limits
from agentkit.wire.shared import capability, is_descriptor
from tests.agentkit.support import eventually, raw


@dataclasses.dataclass
class Picture:
    title: str
    data: bytes


class Lens(BaseAgent):
    @rpc
    async def double(self, pixels: npt.NDArray[np.float64]) -> np.ndarray[Any, Any]:
        assert type(pixels) is np.ndarray
        return pixels * 2

    @rpc
    async def first(self, data: memoryview, count: int = 4) -> bytes:
        assert type(data) is memoryview
        return bytes(data[:count])

    @rpc
    async def size(self, picture: Picture) -> int:
        assert type(picture) is Picture
        return len(picture.data)

    @rpc
    async def statistics(self, values: dict[str, np.ndarray]) -> dict[str, float]:  # type: ignore[type-arg]
        return {name: array.mean() for name, array in values.items()}

    @rpc
    async def mirror(self, value: Any) -> Any:
        return value

    @rpc
    async def zeros(self, megabytes: int) -> np.ndarray[Any, Any]:
        return np.zeros(megabytes * 2**20, np.uint8)

    @rpc
    async def promise(self) -> np.ndarray[Any, Any]:
        return [1.0]  # type: ignore[return-value]


@pytest.mark.parametrize("size", [0, 3, 100_000])
async def test_arrays_arrive_as_arrays_whatever_their_size(size: int) -> None:
    async with running(Lens) as lens:
        array = np.arange(size, dtype=np.float64)
        answer = await lens.call("double", {"pixels": array})
        assert type(answer) is np.ndarray
        assert np.array_equal(answer, array * 2)
        answer += 1  # it is the caller's own


@pytest.mark.parametrize("size", [10, 100_000])
async def test_memoryviews_and_bytes_in_models_arrive(size: int) -> None:
    async with running(Lens) as lens:
        assert await lens.call("first", {"data": memoryview(b"abcdef" * size)}) == b"abcd"
        assert await lens.call("size", {"picture": Picture("x", bytes(size))}) == size
        assert await lens.call("first", {"data": memoryview(bytes(size)), "count": size}) == bytes(size)


async def test_arrays_within_containers_arrive_and_numbers_of_numpy_are_numbers() -> None:
    async with running(Lens) as lens:
        values = {"a": np.ones(50_000), "b": np.array([1.0, 3.0])}
        assert await lens.call("statistics", {"values": values}) == {"a": 1.0, "b": 2.0}
        sent = {"list": [np.arange(9000), {"deep": np.arange(4)}], "many": [bytes(20_000)] * 3}
        came = await lens.call("mirror", {"value": sent})
        assert np.array_equal(came["list"][0], np.arange(9000))
        assert np.array_equal(came["list"][1]["deep"], np.arange(4))
        assert came["many"] == sent["many"]


@pytest.mark.parametrize("wrong", [[1.0, 2.0], "text", None, b"bytes", memoryview(b"view")])
async def test_an_argument_that_is_no_array_is_refused(wrong: Any) -> None:
    async with running(Lens) as lens:
        with pytest.raises(BadRequest, match="instance of ndarray"):
            await lens.call("double", {"pixels": wrong})


async def test_what_does_not_travel_is_refused_before_it_is_sent() -> None:
    async with running(Lens) as lens:
        with pytest.raises(BadRequest, match="does not travel"):
            await lens.call("mirror", {"value": np.array([object()])})


async def test_a_result_that_is_no_array_as_promised_is_the_handlers_error() -> None:
    async with running(Lens) as lens:
        with pytest.raises(HandlerError, match="promise"):
            await lens.call("promise")


async def test_an_array_of_many_frames_travels_both_ways() -> None:
    async with running(Lens) as lens:
        assert (await lens.call("zeros", {"megabytes": 40})).nbytes == 40 * 2**20
        array = np.full(20 * 2**20, 7, np.uint8)
        assert (await lens.call("mirror", {"value": array}))[-1] == 7


async def test_more_than_the_peer_takes_is_too_large_and_the_next_call_works(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Lens) as lens:
        content = {"value": np.zeros(Limits().frame_bytes * Limits().attachments + 1, np.uint8)}
        with pytest.raises(TooLarge, match="64 attachments of 16,777,216 bytes"):
            await lens.call("mirror", content)
        assert await lens.call("mirror", {"value": 1}) == 1


async def test_calls_with_and_without_arrays_overtake_nobody() -> None:
    async with running(Lens) as lens:
        arrays = [np.full(30_000, n) for n in range(20)]
        calls = (lens.call("mirror", {"value": array if n % 2 else n}) for n, array in enumerate(arrays))
        for n, came in enumerate(await asyncio.gather(*calls)):
            assert (came == n).all() if n % 2 else came == n


async def test_blocking_calls_carry_arrays_too() -> None:
    class Thread(BaseAgent):
        @rpc
        def ask(self) -> float:
            answer = self.blocking.call("Lens", "double", {"pixels": np.ones(40_000)})
            return float(answer.sum())

    async with running(Lens) as lens, running(Thread, peers={"Lens": lens.endpoint}) as thread:
        assert await thread.call("ask") == 80_000.0


class Darkroom(BaseAgent):
    """Takes and gives shared memory."""

    @rpc
    async def develop(self, pixels: npt.NDArray[np.float64]) -> float:
        self.was_shared = not pixels.flags.writeable
        return float(pixels.sum())

    @rpc
    async def picture(self, size: int) -> Shared:
        return Shared(np.arange(size, dtype=np.float64))

    @rpc
    async def pictures(self, sizes: list[int]) -> Any:
        return {str(size): Shared(np.ones(size)) for size in sizes}


def memories_open() -> int:
    gc.collect()
    return sum("memfd:agentkit-" in name for name in map(_target, Path("/proc/self/fd").iterdir()))


def _target(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except FileNotFoundError:  # the descriptor that listed the others
        return ""


async def test_shared_memory_is_mapped_by_its_receiver_and_freed_when_the_call_is_over() -> None:
    async with running(Darkroom) as darkroom:
        assert await darkroom.call("develop", {"pixels": Shared(np.ones(100_000))}) == 100_000
        assert darkroom.agent.was_shared
        assert memories_open() == 0


async def test_a_result_in_shared_memory_is_let_go_of_as_soon_as_its_caller_has_it() -> None:
    async with running(Darkroom) as darkroom:
        picture = await darkroom.call("picture", {"size": 100_000})
        assert not picture.flags.writeable
        await eventually(lambda: memories_open() == 1)  # the caller's mapping
        assert picture[99_999] == 99_999.0
        many = await asyncio.gather(*(darkroom.call("pictures", {"sizes": [10, 5000, 6000]}) for _ in range(40)))
        assert all(answer["6000"].sum() == 6000 for answer in many)
        del picture, many
        await eventually(lambda: memories_open() == 0)


async def test_what_a_caller_that_went_never_took_is_freed() -> None:
    async with running(Darkroom) as darkroom:
        with raw(darkroom.endpoint) as caller:
            await caller.hello(capabilities=capability())
            caller.request(1, "picture", {"size": 5000})
            assert any(map(is_descriptor, (await caller.frames())[2:]))
            assert memories_open() == 1
        await eventually(lambda: memories_open() == 0)


async def test_a_caller_elsewhere_gets_the_data() -> None:
    async with running(Darkroom) as darkroom:
        with raw(darkroom.endpoint) as caller:
            await caller.hello()
            caller.request(1, "picture", {"size": 5000})
            _, body, *attached = await caller.frames()
            assert unpack(body, attached)[4999] == 4999.0
            assert [len(frame) for frame in attached] == [40_000]
            assert memories_open() == 0


async def test_a_stopping_agent_waits_until_its_answer_in_shared_memory_was_taken() -> None:
    async with running(Darkroom) as darkroom:
        with raw(darkroom.endpoint) as caller:
            await caller.hello(capabilities=(*capability(), "reads-only-in-calls"))
            caller.request(1, "picture", {"size": 5000})
            _, body, *attached = await caller.frames()
            inbox = darkroom.agent._wiring._inbox  # type: ignore[union-attr]
            inbox.goaway()
            stopping = asyncio.ensure_future(inbox.drained(Deadline.after(5)))
            assert type(await caller.message()) is ak.GoAway
            assert unpack(body, attached)[1] == 1.0
            assert not stopping.done()
            caller.send(ak.Cancel(1))
            await eventually(lambda: not inbox._is_busy())
        assert await stopping


async def test_blocking_callers_take_and_give_shared_memory() -> None:
    class Thread(BaseAgent):
        @rpc
        def ask(self) -> float:
            picture = self.blocking.call("Darkroom", "picture", {"size": 50_000})
            assert not picture.flags.writeable
            return float(self.blocking.call("Darkroom", "develop", {"pixels": Shared(picture)}))

    async with running(Darkroom) as darkroom, running(Thread, peers={"Darkroom": darkroom.endpoint}) as thread:
        assert await thread.call("ask") == sum(range(50_000))
        await eventually(lambda: memories_open() == 0)
