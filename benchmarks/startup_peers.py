"""How others start many agents: circus, supervisord, and a plain loop of `python` processes.

Each function starts one `minimal_agent.py` per port and returns the seconds until every one of them has answered a request:
the launcher's own start included, as an operator would wait for it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import zmq
from common import Processes, stopwatch

MINIMAL: Final = Path(__file__).with_name("minimal_agent.py")
GIVE_UP_S: Final = 120.0


def all_answered(ports: Sequence[int]) -> None:
    """Returns when each has answered one request. TimeoutError says how many did."""
    context, poller, missing = zmq.Context(), zmq.Poller(), set()
    for port in ports:
        dealer = context.socket(zmq.DEALER)  # with REQ's empty frame: a REP socket answers it, however late it comes up
        # Connecting again every 20 ms costs this process little and adds 10 ms to what is measured; 100 ms is usual.
        dealer.reconnect_ivl, dealer.linger = 20, 0
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send_multipart([b"", b"ping"])
        poller.register(dealer, zmq.POLLIN)
        missing.add(dealer)
    try:
        while missing:
            answered = poller.poll(round(GIVE_UP_S * 1000))
            if not answered:
                raise TimeoutError(f"{len(missing)} of {len(ports)} did not answer within {GIVE_UP_S:g} s")
            for dealer, _ in answered:
                poller.unregister(dealer)
                missing.discard(dealer)
    finally:
        context.destroy(linger=0)


def plain(ports: Sequence[int]) -> float:
    """`python minimal_agent.py PORT`, all at once."""
    with Processes() as processes, stopwatch() as passed_s:
        for port in ports:
            processes.start(sys.executable, MINIMAL, port)
        all_answered(ports)
        return passed_s()


def circus(ports: Sequence[int]) -> float:
    """One watcher per agent, without delays between them."""
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        head = f"[circus]\ncheck_delay = 5\nendpoint = ipc://{folder}/e\npubsub_endpoint = ipc://{folder}/p\nwarmup_delay = 0\n"
        watchers = (
            f"[watcher:agent{n}]\ncmd = {sys.executable}\nargs = {MINIMAL} {port}\nwarmup_delay = 0\ngraceful_timeout = 1\n"
            for n, port in enumerate(ports)
        )
        file = Path(folder, "circus.ini")
        file.write_text(head + "".join(watchers))
        with stopwatch() as passed_s:
            processes.start(Path(sys.executable).with_name("circusd"), file)
            all_answered(ports)
            return passed_s()


def supervisord(ports: Sequence[int]) -> float:
    """One program per agent; startsecs 0, so that none waits for another."""
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        head = f"[supervisord]\nnodaemon = true\nlogfile = {folder}/log\npidfile = {folder}/pid\nchildlogdir = {folder}\nminfds = 512\n"
        programs = (
            f"[program:agent{n}]\ncommand = {sys.executable} {MINIMAL} {port}\nstartsecs = 0\n"
            "stdout_logfile = NONE\nstderr_logfile = NONE\n"
            for n, port in enumerate(ports)
        )
        file = Path(folder, "supervisord.conf")
        file.write_text(head + "".join(programs))
        with stopwatch() as passed_s:
            processes.start(Path(sys.executable).with_name("supervisord"), "-c", file)
            all_answered(ports)
            return passed_s()


LAUNCHERS: Final[dict[str, Callable[[Sequence[int]], float]]] = {
    "circus": circus,
    "supervisord": supervisord,
    "plain python": plain,
}
