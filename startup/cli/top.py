"""What every agent uses now, in full screen: processor, memory, requests and errors a second; sorted, and renewed every other second.

agentkit top                    q quits; c m r e n sort by cpu, memory, requests, errors, name; arrows scroll
agentkit top --sort memory -d 5s
agentkit top -n 1               one plain frame; also where the output is no terminal
agentkit top --json             one document
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import duration_s, has_colour, is_terminal, say, say_json, width_of
from startup.view.top import SORTS, Picture, document, next_picture, top_lines

#: Memory is measured so far apart at least, in seconds: the kernel walks each process's pages for it.
MEMORY_EVERY_S: Final = 5.0
#: Between the two looks that a single frame needs, in seconds, unless -d says so.
FIRST_LOOK_S: Final = 1.0
#: What a terminal sends for keys that are no letter, and by how many lines they scroll.
_SCROLLS: Final = {
    b"\x1b[A": -1,
    b"\x1bOA": -1,
    b"\x1b[B": 1,
    b"\x1bOB": 1,
    b"\x1b[5~": -10,
    b"\x1b[6~": 10,
    b"\x1b[H": -(10**6),
}
_SORT_KEYS: Final = {key.encode(): name for name, key in SORTS.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", type=_positive, dest="frames", metavar="N", help="so many frames, then end")
    parser.add_argument("-d", "--delay", type=duration_s, metavar="TIME", help="between two frames; default: 2s")
    parser.add_argument(
        "--sort", choices=list(SORTS), default="cpu", help="what the first line has most of; default: cpu"
    )


def run(arguments: argparse.Namespace) -> int:
    """0; 4 where no node is reachable."""
    with Cluster.find(arguments.cluster) as cluster:
        looks = _Looks(cluster)
        if arguments.json or not is_terminal(sys.stdout) or not sys.stdin.isatty():
            _plain(looks, arguments)
        else:
            _live(looks, arguments)
    return exits.DONE


class _Looks:
    """Samples of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.picture: Picture | None = None
        self._measured_s = float("-inf")

    def look(self) -> Picture:
        """Another sample, compared with the one before."""
        now_s = time.monotonic()
        memory = now_s - self._measured_s >= MEMORY_EVERY_S
        if memory:
            self._measured_s = now_s
        machines = self.cluster.usage(memory=memory)
        _, rows = self.cluster.status()
        self.picture = next_picture(self.picture, machines, rows, now_s)
        return self.picture


def _plain(looks: _Looks, arguments: argparse.Namespace) -> None:
    """Frames one below the other: one, unless -n says more."""
    looks.look()
    for _ in range(arguments.frames or 1):
        time.sleep(FIRST_LOOK_S if arguments.delay is None else arguments.delay)
        picture = looks.look()
        if arguments.json:
            say_json(document(looks.cluster.name, picture, arguments.sort))
        else:
            say(_lines(looks, picture, arguments.sort, width=width_of(sys.stdout)))


def _live(looks: _Looks, arguments: argparse.Namespace) -> None:
    delay_s = 2.0 if arguments.delay is None else max(0.1, arguments.delay)
    by, skipped, left = arguments.sort, 0, arguments.frames
    with _screen() as keys:
        picture, due_s = looks.look(), time.monotonic() + min(FIRST_LOOK_S, delay_s)
        while True:
            width, height = _size()
            skipped = max(0, min(skipped, len(picture.lines) - 1))
            lines = _lines(looks, picture, by, width=width, height=height, skipped=skipped, keys=True)
            sys.stdout.write("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")
            sys.stdout.flush()
            key = _key(keys, due_s - time.monotonic())
            if key in (b"q", b"Q", b"\x03"):
                return
            if key is None:
                if left is not None and (left := left - 1) <= 0:
                    return
                picture, due_s = looks.look(), time.monotonic() + delay_s
            elif key in _SORT_KEYS:
                by, skipped = _SORT_KEYS[key], 0
            else:
                skipped += _SCROLLS.get(key, 0)


def _lines(looks: _Looks, picture: Picture, by: str, *, width: int, **view: Any) -> list[str]:
    colour = has_colour(sys.stdout)
    return top_lines(looks.cluster.name, picture, by=by, now_s=time.time(), width=width, colour=colour, **view)


@contextmanager
def _screen() -> Iterator[int]:
    """The terminal's other screen, keys as they are struck; everything as it was afterwards, however it ends."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        sys.stdout.write("\x1b[?1049h\x1b[?25l")
        sys.stdout.flush()
        yield descriptor
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _size() -> tuple[int, int]:
    """Columns that can be written without a line's end being the terminal's, and lines; a terminal may say 0 for either."""
    size = os.get_terminal_size(sys.stdout.fileno())
    return max(20, (size.columns or 80) - 1), size.lines or 24


def _key(descriptor: int, within_s: float) -> bytes | None:
    """The next key; None when none comes in time. A closed terminal counts as q."""
    if not select.select([descriptor], [], [], max(0.0, within_s))[0]:
        return None
    return os.read(descriptor, 16) or b"q"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of frames, 1 or more")
    return int(text)
