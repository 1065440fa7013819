"""The resolved fleet read back from what `Fleet.to_wire` made (msgpack or JSON: a node's state file, a control message)."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter

from startup.spec.fleet import Fleet

#: Takes 40 ms to build: nodes import this before there is anything to do.
_ADAPTER: Final = TypeAdapter(Fleet)


def fleet_from_wire(data: Any) -> Fleet:
    """ValueError (pydantic's) when `data` is no fleet of this version."""
    return _ADAPTER.validate_python(data)
