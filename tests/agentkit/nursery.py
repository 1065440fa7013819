"""A process that forks agents on one listening socket, quickly: what a zygote does, without anything else of it.

Commands arrive as lines on standard input, answers leave on standard output:

    fork {"AGENTKIT_INCARNATION": "1", ...}    ->  pid
    wait PID                                   ->  its exit code, negative for a signal"""

from __future__ import annotations

import gc
import json
import os
import sys

from agentkit.main import run_class
from tests.agentkit.worker import Worker


def forked(listener: int, environ: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.dup2(listener, 3)
        os.environ.update(environ, LISTEN_FDS="1", LISTEN_FDNAMES="inbox-local", LISTEN_PID=str(os.getpid()))
        code = run_class(Worker)
    finally:
        os._exit(code)


def main() -> None:
    listener = int(sys.argv[1])
    if listener == 3:  # the child's place for it
        listener = os.dup(listener)
    gc.freeze()
    for line in sys.stdin:
        command, _, argument = line.partition(" ")
        if command == "fork":
            answer = forked(listener, json.loads(argument))
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(int(argument), 0)[1])
        print(answer, flush=True)


if __name__ == "__main__":
    main()
