"""Doors to the nodes of other machines for who has an operator's key: straight to the addresses where nodes meet."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agentkit.errors import ConfigError, NoNode, Unauthenticated
from agentkit.security.folder import KeyFolder, folder_of
from agentkit.security.ring import Keyring
from agentkit.security.roles import OPERATOR

if TYPE_CHECKING:
    from startup.control import Door
    from startup.spec.fleet import MachineSpec

#: A machine that is on and near answers a connection in milliseconds; this is for a slow line, in seconds.
ANSWERS_WITHIN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Ways:
    """What came of the machines: a door, or why there is none."""

    doors: Mapping[str, Door]
    whys: Mapping[str, str]
    has_key: bool = True


def operator_keys(configured: str = "") -> Keyring | str:
    """The keys of the operator who runs this command; why there are none otherwise. `configured`: the fleet's `security.keys`."""
    folder = KeyFolder(folder_of(configured))
    if not folder.exists():
        return f"there are no keys in {folder.path}"
    try:
        ring = Keyring.of_person(folder, "")
    except ConfigError as exc:
        return str(exc)
    if ring.own.role != OPERATOR:
        return f"{folder.path} holds no operator's key, but that of {ring.own.holder}"
    return ring


def ways(machines: Iterable[MachineSpec], keys: Keyring | str | None = None) -> Ways:
    """To each of `machines`, tried. At most ANSWERS_WITHIN_S for all that are silent, and startup.remote.REACHED_WITHIN_S for
    each that answers and says nothing more. `keys`: default operator_keys()."""
    keys = operator_keys() if keys is None else keys
    machines = list(machines)
    if isinstance(keys, str):
        return Ways({}, {str(machine.name): keys for machine in machines}, has_key=False)
    doors: dict[str, Door] = {}
    whys: dict[str, str] = {}
    places = {str(it.name): (it.host, it.node_port) for it in machines if it.node_port is not None}
    silent = unanswered(places, ANSWERS_WITHIN_S)
    for machine in machines:
        name = str(machine.name)
        if machine.node_port is None:
            whys[name] = f"machines.{name}.node_port is not set, so nobody knows where its node listens"
        elif name in silent:
            whys[name] = silent[name]
        else:
            door, why = _opened(name, f"tcp://{machine.host}:{machine.node_port}", keys)
            if door is not None:
                doors[name] = door
            else:
                whys[name] = why
    return Ways(doors, whys)


def _opened(machine: str, place: str, keys: Keyring) -> tuple[Door | None, str]:
    """A door that opens; else why it does not. While keys are being changed a node may still have its machine's last one."""
    from agentkit.transport.dealer import Dial
    from startup.remote import RemoteDoor

    try:
        known = keys.server_keys(machine) or (keys.server_key(machine),)
    except Unauthenticated as exc:
        return None, exc.message
    why = ""
    for public in known:
        door = RemoteDoor(machine, place, Dial(keys.own, public))
        try:
            door.open().close()
        except NoNode as exc:
            why = str(exc)
        else:
            return door, ""
    return None, why


def unanswered(places: Mapping[str, tuple[str, int]], within_s: float) -> dict[str, str]:
    """Those of these addresses (name -> host, port) where nobody takes a TCP connection, and what happened; all tried at once."""
    failed: dict[str, str] = {}
    ends_s = time.monotonic() + within_s
    with ExitStack() as stack:
        pending: dict[int, tuple[str, socket.socket]] = {}
        poll = select.poll()
        for name, (host, port) in places.items():
            try:
                family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                sock = stack.enter_context(socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol))
                sock.connect_ex(address)
            except OSError as exc:
                failed[name] = f"{host}: {exc.strerror or exc}"
                continue
            pending[sock.fileno()] = (name, sock)
            poll.register(sock, select.POLLOUT)
        while pending and (left_s := ends_s - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left_s * 1000):
                name, sock = pending.pop(descriptor)
                poll.unregister(descriptor)
                if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    failed[name] = f"{':'.join(map(str, places[name]))}: {os.strerror(error)}"
        for name, _ in pending.values():
            failed[name] = f"{':'.join(map(str, places[name]))}: no answer within {within_s:g} s"
    return failed
