"""What the tests of zygote and boot start instead of `python -m startup.node.boot`: the same, with a node that is a few lines long.

The node connects to its zygote, appends what it finds to NODES (a file in its run directory) and waits for SIGTERM, on which it
tells the zygote to stop, or SIGKILL, on which it does not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from startup.node import boot
from startup.node.options import NodeOptions
from startup.node.zygote.link import ZygoteLink

NODES = "nodes"


def node(options: NodeOptions) -> int:
    asyncio.run(_node(options))
    return 0


async def _node(options: NodeOptions) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    link = await ZygoteLink.connect(options.places.zygote, on_exit=lambda _: None, on_lost=told.set)
    found = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "zygote": link.facts.pid,
        "keys": [inherited.key for inherited in link.inventory],
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
    }
    with open(options.places.run / NODES, "a") as file:
        print(json.dumps(found), file=file, flush=True)
    await told.wait()
    await link.stop()
    link.close()


if __name__ == "__main__":
    sys.exit(boot.main(node_main=node, modules=("startup.node.zygote.link", "asyncio")))
