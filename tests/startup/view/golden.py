"""Pictures kept as files. After a wanted change: AGENTKIT_GOLDEN=write pytest tests/startup/view, then look at the diff."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).parent / "golden"


def check(name: str, lines: Sequence[str], *, width: int | None = None) -> None:
    """`lines` are what the file `name` holds, and none is wider than `width`."""
    text = "".join(f"{line}\n" for line in lines)
    if width is not None:
        assert max(map(len, text.splitlines())) <= width
    path = _FOLDER / name
    if os.environ.get("AGENTKIT_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()
