"""Large buffers beside a body instead of in it: a value as (body, buffers), and back.

What is attached (docs/protocol.md, "Attachments"): bytes, bytearray, memoryview and numpy arrays of 16 KiB or more. In the body, a msgpack
extension stands in each one's place: [first frame or the data itself, number of frames, form, dtype, shape, order]. numpy is
used where the author's code has imported it, and never imported here."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack

from agentkit.errors import TooLarge
from agentkit.wire.envelope import Limits
from agentkit.wire.values import MAX_KEPT_BYTES, Undecodable, Unsendable, decode, to_plain

if TYPE_CHECKING:
    import numpy as np

Buffer = bytes | memoryview

#: Smaller buffers stay in the body, in bytes: a frame of its own costs more than the copy saves.
ATTACH_FROM_BYTES: Final = 16 * 1024
#: Frames that one message may have beside header and body.
MAX_FRAMES: Final = Limits().attachments
#: A larger buffer travels in several frames, in bytes.
FRAME_BYTES: Final = Limits().frame_bytes
#: Of a body's containers, what is looked through for buffers: so deep, and so many values. What lies behind is packed as it is.
MAX_DEPTH: Final = 16
MAX_VALUES: Final = 1_000
#: The msgpack extension that stands for a buffer.
EXTENSION: Final = 1

_BYTES, _VIEW, _ARRAY = 0, 1, 2
_INERT: Final = frozenset({str, int, float, bool, type(None)})
_are_inert: Final = _INERT.issuperset
#: Numbers, booleans, times, text of fixed length. No objects (they would be pickled) and no records.
_DTYPE: Final = re.compile(
    r"\|b1|\|[iu]1|[<>](?:[iu][248]|f[248]|c8|c16|[mM]8(?:\[[0-9]{0,9}[A-Za-z]{1,7}\])?)|\|S[1-9][0-9]{0,5}|[<>]U[1-9][0-9]{0,5}"
)
_ORDER: Final = "<" if sys.byteorder == "little" else ">"
#: Formats of memoryviews; l and L become q and Q.
_DTYPES: Final = {
    "?": "|b1", "b": "|i1", "B": "|u1", "h": f"{_ORDER}i2", "H": f"{_ORDER}u2", "i": f"{_ORDER}i4", "I": f"{_ORDER}u4",
    "l": f"{_ORDER}i8", "L": f"{_ORDER}u8", "q": f"{_ORDER}i8", "Q": f"{_ORDER}u8", "f": f"{_ORDER}f4", "d": f"{_ORDER}f8",
}  # fmt: skip
_FORMATS: Final = {dtype: format for format, dtype in _DTYPES.items()}


#: What a value is on the wire: its body, and the frames that follow it. (A NamedTuple costs 0.4 us more for each message.)
Content = tuple[bytes, Sequence[Buffer]]


def too_large(what: str, content: Content, limits: Limits) -> TooLarge | None:
    """What the sender of `what` is told when its receiver would not take it."""
    body, attached = content
    size = max(len(body), *map(len, attached)) if attached else len(body)
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
        self._attached: list[Buffer] = []
        self._left = MAX_VALUES
        self._packer = self._new()

    def _new(self) -> msgpack.Packer:
        return msgpack.Packer(default=self._to_plain, datetime=True)

    def pack(self, value: object) -> Content:
        """`value` as body and attachments; Unsendable names the type that does not travel, TooLarge what no message holds.

        The attachments are views of the caller's own memory: it must not change until they were sent."""
        kind = type(value)
        try:
            if kind in _INERT or (kind is dict and _are_inert(map(type, value.values()))):  # type: ignore[attr-defined]
                body: bytes = self._packer.pack(value)
                attached: Sequence[Buffer] = ()
            else:
                attached = self._attached = []
                self._left = MAX_VALUES
                body = self._packer.pack(self._lift(value, MAX_DEPTH))
        except Exception as exc:  # a property of the author's may raise anything
            self._packer.reset()  # half a value is left in the buffer
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
            return value if len(value) < ATTACH_FROM_BYTES else self._placeholder(memoryview(value), _BYTES)
        if kind is memoryview:
            return self._of_view(value)
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
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self._of_array(value, numpy)
        return self._lift(to_plain(value), MAX_DEPTH)

    def _of_view(self, view: memoryview) -> msgpack.ExtType:
        dtype = _DTYPES.get(view.format)
        if dtype is None:
            raise TypeError(f"a memoryview of format {view.format!r} does not travel; send .cast('B')")
        flat = view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())
        return self._placeholder(flat, _VIEW, dtype, view.shape)

    def _of_array(self, array: np.ndarray[Any, Any], numpy: Any) -> msgpack.ExtType:
        dtype = array.dtype.str
        if not _DTYPE.fullmatch(dtype) or isinstance(array, numpy.ma.MaskedArray):
            what = "masked array" if isinstance(array, numpy.ma.MaskedArray) else f"array of {array.dtype}"
            raise TypeError(f"a numpy {what} does not travel; send numbers, booleans, times or text of fixed length")
        in_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        # One copy for slices with gaps; none for the others, whichever way they lie
        flat = numpy.ascontiguousarray(array.T if in_fortran else array).reshape(-1).view(numpy.uint8)
        return self._placeholder(flat.data, _ARRAY, dtype, array.shape, "F" if in_fortran else "C")

    def _placeholder(self, flat: memoryview, form: int, *rest: Any) -> msgpack.ExtType:
        size = len(flat)
        count = -(-size // FRAME_BYTES)
        first: object = len(self._attached)
        has_room = len(self._attached) + count <= MAX_FRAMES
        if size > FRAME_BYTES and not has_room:
            raise TooLarge(
                f"{size:,} bytes in one buffer: a message has {MAX_FRAMES} attachments of {FRAME_BYTES:,} bytes at most; send it in parts"
            )
        if size < ATTACH_FROM_BYTES or not has_room:
            first, count = bytes(flat), 0
        elif count == 1:
            self._attached.append(flat)
        else:
            self._attached += (flat[at : at + FRAME_BYTES] for at in range(0, size, FRAME_BYTES))
        return msgpack.ExtType(EXTENSION, msgpack.packb((first, count, form, *rest)))


def unpack(body: bytes, attachments: Sequence[Buffer] = ()) -> Any:
    """The value of a body and its attachments, plain but for arrays and memoryviews; Undecodable when it is none.

    Arrays and memoryviews are views of the attachments where one frame holds them: no copy."""
    if not attachments:
        return decode(body, _restored)
    return decode(body, lambda code, data: _restored(code, data, attachments))


def _restored(code: int, data: bytes, attachments: Sequence[Buffer] = ()) -> Any:
    if code != EXTENSION:
        return msgpack.ExtType(code, data)
    try:
        first, count, form, *rest = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as exc:
        raise Undecodable(f"a placeholder that can't be read: {type(exc).__name__}") from exc
    buffer = _buffer(first, count, attachments)
    if form == _BYTES and not rest:
        return bytes(buffer)
    if form not in (_VIEW, _ARRAY) or len(rest) != form + 1:
        raise Undecodable(f"a placeholder of unknown form {form!r}")
    dtype, shape = rest[:2]
    if type(dtype) is not str or not _DTYPE.fullmatch(dtype):
        raise Undecodable(f"dtype {str(dtype)[:40]!r} is not taken")
    if type(shape) is not list or len(shape) > 64 or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
        raise Undecodable("a shape that is none")
    if form == _ARRAY:
        return _array(buffer, dtype, shape, rest[2])
    return _view(buffer, dtype, shape)


def _buffer(first: Any, count: Any, attachments: Sequence[Buffer]) -> Buffer | bytearray:
    if type(first) is bytes and count == 0:
        return bytearray(first)
    if type(first) is not int or type(count) is not int or first < 0 or count < 1 or first + count > len(attachments):
        raise Undecodable(f"{len(attachments)} attachments came, and {first!r} and {count!r} more were meant")
    return attachments[first] if count == 1 else bytearray().join(attachments[first : first + count])


def _view(buffer: Buffer | bytearray, dtype: str, shape: list[int]) -> memoryview:
    format: Any = _FORMATS.get(dtype)
    if format is None:
        raise Undecodable(f"an array of {dtype} came to a process that has not imported numpy")
    view = memoryview(buffer)
    if math.prod(shape) * int(dtype[2:]) != len(view):
        raise Undecodable(f"{len(view):,} bytes came for {dtype} of shape {shape}")
    return view.cast(format, shape) if len(view) and shape else view.cast(format)


def _array(buffer: Buffer | bytearray, dtype: str, shape: list[int], order: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if order not in ("C", "F"):
        raise Undecodable(f"order {order!r} is neither C nor F")
    if numpy is None:
        if order == "F":
            raise Undecodable("an array in Fortran's order came to a process that has not imported numpy")
        return _view(buffer, dtype, shape)
    try:
        wanted = numpy.dtype(dtype)
        if math.prod(shape) * wanted.itemsize != len(buffer):
            raise ValueError(f"{len(buffer):,} bytes came for {dtype} of shape {shape}")
        return numpy.ndarray(shape, wanted, buffer, order=order)
    except (ValueError, TypeError, OverflowError) as exc:
        raise Undecodable(f"no array: {exc}") from exc
