"""What the exit codes mean. One place, so that scripts can rely on them."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
#: Done in part, or failed: a required agent is not ready, a call returned an error.
FAILED: Final = 1
#: Bad usage or configuration; nothing was started or changed.
USAGE: Final = 2
TIMED_OUT: Final = 3
#: No node answers, or several do and none was chosen.
NO_NODE: Final = 4
#: Ctrl-C: 128 + SIGINT, as shells count.
INTERRUPTED: Final = 130
