"""Large buffers beside a body instead of in it: a value as (body, buffers), and back.

What is attached (docs/protocol.md, "Attachments"): bytes, bytearray, memoryview and numpy arrays of 16 KiB or more. In the body, a msgpack
extension stands in each one's place: [first frame or the data itself, number of frames, form, dtype, shape, order]. numpy is
used where the author's code has imported it, and never imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from agentkit.errors import TooLarge
from agentkit.wire.envelope import Limits
from agentkit.wire.flat import Buffer, flatten, is_array, shaped
from agentkit.wire.shared import Shared, SharedFrame, frames_for, is_descriptor, mapped
from agentkit.wire.values import MAX_KEPT_BYTES, Undecodable, Unsendable, decode, to_plain

#: Smaller buffers stay in the body, in bytes: a frame of its own costs more than the copy saves.
ATTACH_FROM_BYTES: Final = 16 * 1024
#: Frames that one message may have beside header and body.
MAX_FRAMES: Final = Limits().attachments
#: A larger buffer travels in several frames, in bytes.
FRAME_BYTES: Final = Limits().frame_bytes
#: Of a body's containers, what is looked through for buffers: so deep, and so many values. What lies behind is packed as it is.
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 1_000
#: The msgpack extensions that stand for a buffer; that of the second kind may come as a descriptor of shared memory.
EXTENSION: Final = 1
SHARED_EXTENSION: Final = 2

_INERT: Final = frozenset({str, int, float, bool, type(None)})
_are_inert: Final = _INERT.issuperset

#: What a value is on the wire: its body, and the frames that follow it. (A NamedTuple costs 0.4 us more for each message.)
Content = tuple[bytes, Sequence[Buffer]]
#: The same where a Shared is not yet what it is for its receiver: `shared.frames_for` decides.
Unsent = tuple[bytes, Sequence[Buffer | SharedFrame]]


def _are_small(arguments: dict[Any, Any]) -> bool:
    """Whether nothing among these values is, or may hold, a buffer that is attached. (Saves 0.6 us where one is a few bytes.)"""
    for value in arguments.values():
        if type(value) not in _INERT and not (type(value) is bytes and len(value) < ATTACH_FROM_BYTES):
            return False
    return True


def too_large(what: str, content: Unsent, limits: Limits) -> TooLarge | None:
    """What the sender of `what` is told when its receiver would not take it."""
    body, attached = content
    size = len(body)
    for frame in attached:
        size = max(size, frame.size if isinstance(frame, SharedFrame) else len(frame))
    if size > limits.frame_bytes:
        return TooLarge.frame(what, size, limits.frame_bytes)
    if len(attached) > limits.attachments:
        return TooLarge(
            f"{what} has {len(attached)} attachments, the peer takes {limits.attachments}; send it in parts"
        )
    return None


class ContentPacker:
    """Makes contents. For one thread only, like values.Packer, and as fast for values without buffers."""

    def __init__(self) -> None:
        self._attached: list[Buffer | SharedFrame] = []
        self._left = MAX_VALUES
        self._packer = self._new()

    def _new(self) -> msgpack.Packer:
        return msgpack.Packer(default=self._to_plain, datetime=True)

    def pack(self, value: object) -> Content:
        """`value` as body and attachments; Unsendable names the type that does not travel, TooLarge what no message holds.

        The attachments are views of the caller's own memory: it must not change until they were sent."""
        body, attached = self.pack_to_share(value)
        return body, (frames_for(attached, may_share=False) if attached else ())

    def pack_to_share(self, value: object) -> Unsent:
        """The same for receivers that may turn out to share this machine's memory."""
        kind = type(value)
        try:
            if (
                kind in _INERT
                or (kind is dict and (_are_inert(map(type, value.values())) or _are_small(value)))  # type: ignore[attr-defined, arg-type]
                or (kind is bytes and len(value) < ATTACH_FROM_BYTES)  # type: ignore[arg-type]
            ):
                body: bytes = self._packer.pack(value)
                attached: Sequence[Buffer | SharedFrame] = ()
            else:
                self._left = MAX_VALUES
                body = self._packer.pack(self._lift(value, MAX_DEPTH))
                attached, self._attached = self._attached, []
        except Exception as exc:  # a property of the author's may raise anything
            self._packer.reset()  # half a value is left in the buffer
            self._attached = []
            if isinstance(exc, TooLarge):
                raise
            raise Unsendable(str(exc) or type(exc).__name__) from exc
        if len(body) > MAX_KEPT_BYTES:
            self._packer = self._new()
        return body, attached

    def _lift(self, value: Any, depth: int) -> Any:
        """`value` with a placeholder for each buffer; itself where there is none."""
        kind = type(value)
        if kind in _INERT:
            return value
        if kind is bytes or kind is bytearray:
            return value if len(value) < ATTACH_FROM_BYTES else self._placeholder(*flatten(value))
        if kind is memoryview:
            return self._placeholder(*flatten(value))
        if (kind is not dict and kind is not list and kind is not tuple) or not depth or self._left <= 0:
            return value  # arrays and models come by _to_plain
        if _are_inert(map(type, value.values() if kind is dict else value)):
            return value
        self._left -= len(value)
        lifted: Any = None
        for key, item in value.items() if kind is dict else enumerate(value):
            if type(item) in _INERT:
                continue
            other = self._lift(item, depth - 1)
            if other is not item:
                if lifted is None:
                    lifted = dict(value) if kind is dict else list(value)
                lifted[key] = other
        return value if lifted is None else lifted

    def _to_plain(self, value: object) -> object:
        """One step towards what msgpack knows."""
        if is_array(value):
            return self._placeholder(*flatten(value))  # type: ignore[arg-type]
        if isinstance(value, Shared):
            return self._shared(value)
        return self._lift(to_plain(value), MAX_DEPTH)

    def _placeholder(self, flat: memoryview, form: int, rest: tuple[Any, ...]) -> msgpack.ExtType:
        first: object = len(self._attached)
        if count := self._frames_of(len(flat)):
            self._attached += (flat[at : at + FRAME_BYTES] for at in range(0, len(flat), FRAME_BYTES))
        else:
            first = bytes(flat)
        return msgpack.ExtType(EXTENSION, msgpack.packb((first, count, form, *rest)))

    def _shared(self, shared: Shared) -> msgpack.ExtType:
        size, first = shared.size_bytes, len(self._attached)
        count = self._frames_of(size)
        if not count:
            return self._placeholder(shared.memory(), shared.form, shared.rest)
        starts = range(0, size, FRAME_BYTES)
        self._attached += (SharedFrame(shared, at, min(FRAME_BYTES, size - at)) for at in starts)
        return msgpack.ExtType(SHARED_EXTENSION, msgpack.packb((first, count, shared.form, *shared.rest)))

    def _frames_of(self, size: int) -> int:
        """How many frames so many bytes take; 0: they stay in the body. TooLarge: they don't fit there either."""
        count = -(-size // FRAME_BYTES)
        if len(self._attached) + count <= MAX_FRAMES:
            return count if size >= ATTACH_FROM_BYTES else 0
        if size > FRAME_BYTES:
            raise TooLarge(
                f"{size:,} bytes in one buffer: a message has {MAX_FRAMES} attachments of {FRAME_BYTES:,} bytes at most; send it in parts"
            )
        return 0


def unpack(body: bytes, attachments: Sequence[Buffer] = ()) -> Any:
    """The value of a body and its attachments, plain but for arrays and memoryviews; Undecodable when it is none.

    Arrays and memoryviews are views of the attachments where one frame holds them: no copy."""
    if not attachments:
        return decode(body, _restored)
    return decode(body, lambda code, data: _restored(code, data, attachments))


def _restored(code: int, data: bytes, attachments: Sequence[Buffer] = ()) -> Any:
    if code not in (EXTENSION, SHARED_EXTENSION):
        return msgpack.ExtType(code, data)
    try:
        first, count, form, *rest = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as exc:
        raise Undecodable(f"a placeholder that can't be read: {type(exc).__name__}") from exc
    buffer = _buffer(code, first, count, attachments)
    if code == SHARED_EXTENSION and is_descriptor(attachments[first]):
        buffer = mapped(attachments[first])
    return shaped(buffer, form, rest)


def _buffer(code: int, first: Any, count: Any, attachments: Sequence[Buffer]) -> Buffer | bytearray:
    if type(first) is bytes and count == 0 and code == EXTENSION:
        return bytearray(first)
    if type(first) is not int or type(count) is not int or first < 0 or count < 1 or first + count > len(attachments):
        raise Undecodable(f"{len(attachments)} attachments came, not {count!r} from {first!r} on")
    return attachments[first] if count == 1 else bytearray().join(attachments[first : first + count])
