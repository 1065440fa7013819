"""Many small messages in one frame: what leaves together, what leaves alone, and that one bad item harms nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.clock import now_s
from agentkit.transport.batch import MAX_BATCHED_BODY, Batch, frames_of, messages
from agentkit.transport.channel import Channel
from agentkit.wire import codec, values
from agentkit.wire import envelope as ak
from tests.agentkit.support import Raw, an_inbox, echoes, identity

pack = values.Packer().pack


def parts_of(message: list[bytes]) -> list[tuple[Any, list[bytes]]]:
    """(message, its content) of everything that travels in `message`."""
    head = codec.decode(message[0])
    if isinstance(head, ak.Batch):
        pairs = zip(head.items[::2], head.items[1::2], strict=True)
        return [(codec.read(fields), [] if body is None else [body]) for fields, body in pairs]
    return [(head, message[1:])]


bodies = st.one_of(
    st.none(), st.binary(max_size=20), st.just(bytes(MAX_BATCHED_BODY)), st.just(bytes(MAX_BATCHED_BODY + 1))
)


@given(st.lists(st.tuples(bodies, st.booleans()), max_size=150), st.booleans())
def test_whatever_is_sent_together_arrives_in_order_and_whole(sent: list[tuple[Any, bool]], may_batch: bool) -> None:
    parts = [
        (codec.reply_fields(id), body, (b"raw",) if has_attachment and body is not None else ())
        for id, (body, has_attachment) in enumerate(sent)
    ]
    out = list(messages(parts, pack, may_batch=may_batch))
    assert sum(count for count, _ in out) == len(parts)
    came = [(message.id, content) for _, frames in out for message, content in parts_of(frames)]
    assert came == [(n, [] if body is None else [body, *rest]) for n, (_, body, rest) in enumerate(parts)]
    assert all(count == len(parts_of(frames)) <= codec.MAX_BATCHED for count, frames in out)


def test_nothing_is_put_together_for_a_peer_that_does_not_know_batches() -> None:
    parts = [(codec.reply_fields(id), b"\xc0", ()) for id in range(3)]
    assert [frames for _, frames in messages(parts, pack, may_batch=False)] == [frames_of(p, pack) for p in parts]


async def test_what_is_added_in_one_turn_is_sent_at_its_end_in_order_for_each_receiver() -> None:
    sent: list[tuple[str, list[int]]] = []
    batch: Batch[str] = Batch(lambda receiver, parts: sent.append((receiver, [p[0][1] for p in parts])))  # type: ignore[misc]
    for id, receiver in enumerate("abab"):
        batch.add(receiver, (codec.reply_fields(id), None, ()))
    assert not sent
    assert batch
    await asyncio.sleep(0)
    assert sent == [("a", [0, 2]), ("b", [1, 3])]
    batch.add("a", (codec.reply_fields(9), None, ()))
    assert [p[0][1] for p in batch.take("a")] == [9]
    await asyncio.sleep(0)
    assert len(sent) == 2


async def test_calls_of_one_turn_are_answered_in_one_frame_each_way() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        channel = Channel("callee", endpoint, identity("caller"))
        try:
            await channel.request("m", values.pack({"n": 0}), now_s() + 5, {})[1]
            takes: list[list[bytes]] = []
            take = inbox._reader._take
            inbox._reader._take = lambda sock: takes.append(take(sock)) or takes[-1]  # type: ignore[func-returns-value]
            futures = [channel.request("m", values.pack({"n": n}), now_s() + 5, {})[1] for n in range(40)]
            assert await asyncio.gather(*futures) == [{"n": n} for n in range(40)]
            assert len(takes) <= 3, "the first one alone, the others together"
        finally:
            channel.close()


async def test_a_caller_that_does_not_know_batches_gets_each_answer_alone() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        caller = Raw(endpoint)
        try:
            await caller.hello()
            items = [part for n in (1, 2, 3) for part in ([3, n, "m", 5000, 0, {}], values.pack({"n": n}))]
            caller.send(ak.Batch(items))
            answers = [await caller.frames() for _ in range(3)]
            assert [codec.decode(answer[0]) for answer in answers] == [ak.Reply(n, {}) for n in (1, 2, 3)]
            assert [values.unpack(answer[1]) for answer in answers] == [{"n": n} for n in (1, 2, 3)]
        finally:
            caller.close()


@pytest.mark.parametrize("bad", [[3, 2, "m", "soon", 0, {}], [14, 2, [[9, 1], None]], "text", [99, 2], None])
async def test_a_bad_item_is_counted_and_the_others_are_served(bad: Any) -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        caller = Raw(endpoint)
        try:
            await caller.hello()
            good = [[3, n, "m", 5000, 0, {}] for n in (1, 3)]
            body = values.pack({"n": 1})
            caller.send(ak.Batch([good[0], body, bad, body, good[1], body]))
            answered: list[Any] = []
            while sum(isinstance(message, ak.Reply) for message in answered) < 2:
                answered.append(await caller.message())
            assert [message.id for message in answered if isinstance(message, ak.Reply)] == [1, 3]
            assert all(isinstance(message, ak.Reply) or message.code == "bad_request" for message in answered)
            assert inbox.bad_frames == 1
        finally:
            caller.close()


async def test_calls_that_wait_for_the_end_of_the_turn_move_when_the_channel_closes_first() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        channel = Channel("callee", endpoint, identity("caller"))
        await channel.request("m", values.pack({}), now_s() + 5, {})[1]
        futures = [channel.request("m", values.pack({"n": n}), now_s() + 5, {})[1] for n in range(3)]
        channel.close()
        failures = await asyncio.gather(*futures, return_exceptions=True)
        assert [getattr(failure, "retry_safe", None) for failure in failures] == [False, True, True]
