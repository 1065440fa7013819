"""The floor under a fleet at rest: N forked processes that wake as often as an idle agent does, and do nothing.

    python benchmarks/rest_floor.py COUNT     prints their pids; they live until they are told to end

A process that was idle for seconds has to be brought back into caches, and on a virtual machine perhaps into memory, before it
can do anything: what that costs is the machine's, not ours. Ended by SIGTERM, as everything that a benchmark starts is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from typing import Final

import uvloop

#: Seconds between two wake-ups, at multiples of it on the machine's clock as those of agents: 0.15 a second, which is what
#: bench_startup.py counts of an idle agent.
PERIOD_S: Final = 1 / 0.15


async def rest() -> None:
    while True:
        await asyncio.sleep(PERIOD_S - time.monotonic() % PERIOD_S)


def main() -> None:
    pids = []
    for _ in range(int(sys.argv[1])):
        pid = os.fork()
        if not pid:
            uvloop.run(rest())
        pids.append(pid)
    print(json.dumps(pids), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
