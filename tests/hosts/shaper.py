"""A cable that loses and delays packets, for kernels without netem: two TUN devices, one in each machine's network, and we between.

    python shaper.py PID_A PID_B        processes of the two networks

Each line on standard input is [{"loss": 0.3, "delay_s": 0.1}, {...}, seed]: a to b, b to a. It is answered with the devices' name
once it holds. Ends with its input. Packets are IP: TCP above them sends again what is lost, as over any bad line.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time

DEVICE = "shaped"

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_LONGEST_PACKET = 65536


def open_tun(pid: int) -> int:
    """A TUN device in the network of `pid`; we go there, and a descriptor works from wherever we are later."""
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(network, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"can't enter the network of {pid}")
    os.close(network)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return tun


def main() -> None:
    a, b = (open_tun(int(pid)) for pid in sys.argv[1:3])
    other = {a: b, b: a}
    shape: dict[int, dict[str, float]] = {a: {}, b: {}}
    lot = {a: random.Random(1), b: random.Random(2)}
    late: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        wait_s = max(0.0, late[0][0] - time.monotonic()) if late else None
        readable = select.select([a, b, 0], [], [], wait_s)[0]
        if 0 in readable:
            line = sys.stdin.readline()
            if not line:
                return
            shape[a], shape[b], seed = json.loads(line)
            lot = {a: random.Random(seed), b: random.Random(seed + 1)}
            print(DEVICE, flush=True)
        now_s = time.monotonic()
        while late and late[0][0] <= now_s:
            _, _, to, packet = heapq.heappop(late)
            pass_on(to, packet)
        for source in (a, b):
            if source in readable:
                packet = os.read(source, _LONGEST_PACKET)
                if lot[source].random() < shape[source].get("loss", 0.0):
                    continue
                delay_s = shape[source].get("delay_s", 0.0)
                if delay_s:
                    number += 1
                    heapq.heappush(late, (now_s + delay_s, number, other[source], packet))
                else:
                    pass_on(other[source], packet)


def pass_on(tun: int, packet: bytes) -> None:
    try:
        os.write(tun, packet)
    except OSError:  # that end is down, or full: lost, as on a cable
        return


if __name__ == "__main__":
    main()
