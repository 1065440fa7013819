"""A process that saves one snapshot after another until somebody kills it, or a write of it reaches a limit and does.

python -m tests.agentkit.state.saver FOLDER FIRST SEED [ROOM]: writes `begin N` and `done N` around each save. ROOM: bytes that any
of its files may have; the write that passes that is torn, and ends the process."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
from pathlib import Path

from agentkit.names import Incarnation
from agentkit.state.sqlite import SqliteStore
from agentkit.state.store import Snapshot


def content(number: int) -> bytes:
    """What snapshot `number` holds, whoever saves it."""
    return random.Random(number).randbytes(random.Random(-number).choice((10, 3_000, 40_000)))


def main() -> None:
    folder, first, seed, *room = sys.argv[1:]
    store = SqliteStore(Path(folder))
    store.claim(Incarnation(int(seed)))
    store.load()
    if room:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(room[0]), resource.RLIM_INFINITY))
    for number in range(int(first), int(first) + 2_000):
        os.write(1, f"begin {number}\n".encode())
        store.save(Snapshot.of(number, 1, int(seed), float(number), content(number)))
        os.write(1, f"done {number}\n".encode())


if __name__ == "__main__":
    main()
