"""What an inbox says to one request: one answer, or the values of a stream and then their end, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agentkit.errors import CallCancelled, CallError
from agentkit.transport.outbox import Outbox
from agentkit.transport.peer import Inbound
from agentkit.transport.plain import PlainCallers
from agentkit.transport.streams import size_of
from agentkit.wire import attachments, codec, shared, values
from agentkit.wire import envelope as ak

#: Answers in shared memory that a caller may have without having said that it took them; more travel as bytes.
MAX_KEPT: Final = 64


class Answers:
    """The inbox's; what it does not send itself goes through `outbox`, or to a plain caller through `plain`."""

    def __init__(self, outbox: Outbox, plain: PlainCallers, changed: Callable[[], None]) -> None:
        """`changed`: a request has come to its end, which may be what a drain waits for."""
        self._outbox, self._plain, self._changed = outbox, plain, changed
        packer = attachments.ContentPacker()
        self._pack, self._pack_to_share = packer.pack, packer.pack_to_share

    def answer(self, inbound: Inbound, value: object) -> None:
        """Send the result; `values.Unsendable` when it does not travel (then nothing was sent: refuse it)."""
        if inbound.plain is not None:
            self._plain.answer(inbound, value)
            self._changed()
            return
        peer = inbound.peer
        body, attached = content = self._pack_to_share(value)
        if not attached and len(body) <= peer.limits.frame_bytes:  # as nearly all are
            if self.finish(inbound):
                self._outbox.answer(peer, (codec.reply_fields(inbound.id), body, ()))
            return
        refusal = attachments.too_large(f"the answer of {inbound.method}", content, peer.limits)
        if refusal is not None:
            self.refuse(inbound, refusal)
        elif self.finish(inbound):
            frames_out = shared.frames_for(attached, may_share=peer.may_share and len(peer.kept) < MAX_KEPT)
            if any(map(shared.is_descriptor, frames_out)):
                peer.kept[inbound.id] = attached  # until it says, by CANCEL, that it has the memory, too
            self._outbox.answer(peer, (codec.reply_fields(inbound.id), body, frames_out))

    async def write(self, inbound: Inbound, value: object) -> None:
        """Send one value of a stream as soon as its caller has room for it; `values.Unsendable` when it does not travel.

        CallCancelled when the caller has gone."""
        assert inbound.window is not None
        content = self._pack(value)
        refusal = attachments.too_large(f"a value of {inbound.method}", content, inbound.peer.limits)
        if refusal is not None:
            raise refusal
        await inbound.window.room()
        seq = inbound.window.spend(size_of(*content))
        self._outbox.add(inbound.peer, (codec.chunk_fields(inbound.id, seq), *content))

    def grant(self, inbound: Inbound, n: int) -> None:
        self._outbox.add(inbound.peer, (codec.credit_fields(inbound.id, n), None, ()))

    def refuse(self, inbound: Inbound, error: CallError) -> None:
        """Send `error` as the one answer."""
        if inbound.plain is not None:
            self._plain.refuse(inbound, error)
            self._changed()
        elif self.finish(inbound):
            self._outbox.answer(inbound.peer, (codec.error_fields(_told(inbound.id, error)), None, ()))

    def finish(self, inbound: Inbound) -> bool:
        """Whether this is the first answer, and somebody is there to read it."""
        is_first = not inbound.is_answered
        inbound.is_answered = True
        inbound.peer.in_flight.pop(inbound.id, None)
        if inbound.window is not None:
            inbound.window.end(CallCancelled("the caller has gone"))
        if inbound.incoming is not None:
            inbound.incoming.end(CallCancelled("the caller has gone"))
        self._changed()
        return is_first


def error_frame(id: int, error: CallError) -> bytes:
    """An ERROR that says `error`."""
    return codec.encode(_told(id, error))


def _told(id: int, error: CallError) -> ak.Error:
    """An ERROR, whatever text and details an author's code has put into it: it must leave, and be readable."""
    details = values.courtesy(error.details)
    return ak.Error(id, error.code, values.clean_text(error.message), bool(error.retry_safe), details)
