"""Arrays, memoryviews and bytes as flat memory, and that memory as they were. numpy is used where the author's code has imported it, and
never imported here."""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from agentkit.wire.values import Undecodable

if TYPE_CHECKING:
    import numpy as np

Buffer = bytes | memoryview

#: Forms on the wire (docs/protocol.md).
BYTES, VIEW, ARRAY = 0, 1, 2
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


def flatten(value: bytes | bytearray | memoryview | np.ndarray[Any, Any]) -> tuple[memoryview, int, tuple[Any, ...]]:
    """Its memory byte by byte, its form, and what has to be known to get it back. TypeError: it does not travel.

    Without a copy, unless there are gaps in it."""
    if isinstance(value, bytes | bytearray):
        return memoryview(value), BYTES, ()
    if isinstance(value, memoryview):
        return _flat_view(value)
    if not is_array(value):
        raise TypeError(f"a {type(value).__qualname__} is neither bytes, a memoryview nor a numpy array")
    return _flat_array(value, sys.modules["numpy"])


def is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _flat_view(view: memoryview) -> tuple[memoryview, int, tuple[Any, ...]]:
    dtype = _DTYPES.get(view.format)
    if dtype is None:
        raise TypeError(f"a memoryview of format {view.format!r} does not travel; send .cast('B')")
    flat = view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())
    return flat, VIEW, (dtype, view.shape)


def _flat_array(array: np.ndarray[Any, Any], numpy: Any) -> tuple[memoryview, int, tuple[Any, ...]]:
    dtype = array.dtype.str
    if not _DTYPE.fullmatch(dtype) or isinstance(array, numpy.ma.MaskedArray):
        what = "masked array" if isinstance(array, numpy.ma.MaskedArray) else f"array of {array.dtype}"
        raise TypeError(f"a numpy {what} does not travel; send numbers, booleans, times or text of fixed length")
    in_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    # One copy for slices with gaps; none for the others, whichever way they lie
    flat = numpy.ascontiguousarray(array.T if in_fortran else array).reshape(-1).view(numpy.uint8)
    return flat.data, ARRAY, (dtype, array.shape, "F" if in_fortran else "C")


def shaped(buffer: Buffer | bytearray, form: Any, rest: list[Any]) -> Any:
    """The reverse; a view of `buffer`, except for bytes. Undecodable when the two don't fit."""
    if form == BYTES and not rest:
        return bytes(buffer)
    if form not in (VIEW, ARRAY) or len(rest) != form + 1:
        raise Undecodable(f"a placeholder of unknown form {form!r}")
    dtype, shape = rest[:2]
    if type(dtype) is not str or not _DTYPE.fullmatch(dtype):
        raise Undecodable(f"dtype {str(dtype)[:40]!r} is not taken")
    if type(shape) is not list or len(shape) > 64 or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
        raise Undecodable("a shape that is none")
    if form == ARRAY:
        return _array(buffer, dtype, shape, rest[2])
    return _view(buffer, dtype, shape)


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
