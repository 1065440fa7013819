"""What systemd does for a service behind .socket units with `Accept=no`, and nothing else: `python activator.py NAME,NAME COMMAND...`

It listens, and never accepts. Does somebody connect while no service runs, it starts the command once, with the listeners as LISTEN_FDS.
While that runs, or is on its way out, it does not look at them; who was not accepted by then starts the next one. It ends, and ends the
service, when its standard input does. On standard output, a JSON object in each line: `listening` (name -> port), `started` (pid), `told`
(the fields of a sd_notify message), `exited` (code)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

#: How long a service may take to stop when all ends, in seconds.
STOPS_WITHIN_S = 20.0


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def start(command: list[str], listeners: dict[str, socket.socket], notify: str) -> int:
    if pid := os.fork():
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        spare = [os.dup(sock.fileno()) for sock in listeners.values()]  # one of them may be where another belongs
        spare = [os.dup2(fd, 100 + i) for i, fd in enumerate(spare)]
        for i, fd in enumerate(spare):
            os.dup2(fd, 3 + i, inheritable=True)
        os.closerange(3 + len(spare), 200)
        told = {"LISTEN_FDS": str(len(spare)), "LISTEN_FDNAMES": ":".join(listeners), "LISTEN_PID": str(os.getpid())}
        os.execve(command[0], command, {**os.environ, **told, "NOTIFY_SOCKET": notify})
    finally:
        os._exit(70)


class Service:
    """One run of the command."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        say(started=pid)

    def reap(self) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pidfd)
        say(exited=code)


def hear(notifications: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            text = notifications.recv(65536).decode()
            say(told=dict(line.split("=", 1) for line in text.splitlines()))


def main() -> None:
    names, command = sys.argv[1].split(","), sys.argv[2:]
    listeners = {name: socket.create_server(("127.0.0.1", 0), backlog=4096) for name in names}
    service: Service | None = None
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        address = str(Path(folder) / "notify")
        notifications.bind(address)
        notifications.setblocking(False)
        say(listening={name: sock.getsockname()[1] for name, sock in listeners.items()})
        while True:
            watched = [0, notifications.fileno()]
            watched += [sock.fileno() for sock in listeners.values()] if service is None else [service.pidfd]
            ready, _, _ = select.select(watched, [], [])
            hear(notifications)
            if 0 in ready:
                break
            if service is None:
                if set(ready) - {notifications.fileno()}:
                    service = Service(start(command, listeners, address))
            elif service.pidfd in ready:
                hear(notifications)
                service.reap()
                service = None
        if service is not None:
            os.kill(service.pid, signal.SIGTERM)
            if not select.select([service.pidfd], [], [], STOPS_WITHIN_S)[0]:
                os.kill(service.pid, signal.SIGKILL)
            service.reap()


if __name__ == "__main__":
    main()
