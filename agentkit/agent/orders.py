"""What a node tells an agent by a signal, beside those of a roll (transport.gate). Real-time signals: nobody else's code uses them, and
nothing has to be read or answered for an agent to hear them."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Final

from agentkit.settings import Depth

#: Exit code of an agent that sleeps: everybody has said BYE, its state is saved, and it wants to be forked when somebody knocks. Above
#: what programs use, below what shells make of signals.
EXIT_ASLEEP: Final = 97

#: Sleep now, by the depth that an operator names.
HIBERNATE: Final[Mapping[Depth, int]] = {"light": signal.SIGRTMIN + 6, "deep": signal.SIGRTMIN + 7}
#: Wake from light sleep.
WAKE: Final = signal.SIGRTMIN + 8
