"""What came of the other machines that a command asked for. Alone in its module: a fleet on one host imports no more of this room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from startup.control import Door
    from startup.errors import MachineTrouble


@dataclass
class Found:
    """By machine. One without a node has neither a door nor a trouble."""

    doors: dict[str, Door] = field(default_factory=dict)
    troubles: dict[str, MachineTrouble] = field(default_factory=dict)
