"""Messages with descriptors between node and zygote: msgpack lists on a SOCK_SEQPACKET unix socket.

    node -> zygote   [hello]                              the node is here: answered with facts, the last exits, its inventory
                     [fork, number, order, names] +fds    order: asdict of ForkOrder; names: what the fds are called
                     [keep, key, names] +fds              hold these listening sockets for the next node
                     [forget, key]                        close them
                     [renew, preload]                     become a fresh image of yourself; answered with facts
                     [stop]                               start no node any more, exit when nothing is left
    zygote -> node   [facts, {...}]                       what the zygote has imported
                     [inventory, entries, more] +fds      processes and listening sockets that it has
                     [forked, number, pid] +pidfd
                     [failed, number, reason]
                     [exit, {...}]

A message longer than the socket takes (an agent's `config` may be long) travels in a memfd behind its descriptors. Both sides
belong to one user and one version; what can't be read ends the connection.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgpack

#: Longest message sent as it is, in bytes; the kernel took 200 kB and refused 1 MB.
INLINE_BYTES: Final = 64 * 1024

#: Descriptors of an order that are no listening sockets, and last in it: for the child alone, not to be kept for the next node.
PRIVATE: Final = ("gate", "predecessor")

#: Descriptors in one message: the kernel takes 253, one may be the memfd.
MAX_FDS: Final = 252

_INLINE: Final = b"i"
_IN_MEMFD: Final = b"m"

#: These two are made once: the zygote writes 20 pages less between two forks, each of which it would have to copy.
_PACKER: Final = msgpack.Packer()
_CUT_OFF: Final = int(socket.MSG_CTRUNC | socket.MSG_TRUNC)


class Received(NamedTuple):
    message: list[Any]
    fds: list[int]  #: close-on-exec; the receiver's to close
    complete: bool  #: False: descriptors were lost on the way, because we have too many open; none is left in `fds`


class Garbled(Exception):
    """The other side sent what is no message."""


def send(sock: socket.socket, message: Sequence[Any], fds: Sequence[int] = ()) -> None:
    """Send one message; BlockingIOError when the other side does not read fast enough, other OSErrors when it is gone."""
    body = _PACKER.pack(message)
    if len(body) <= INLINE_BYTES:
        socket.send_fds(sock, [_INLINE, body], list(fds))
        return
    memfd = os.memfd_create("agentkit-message", os.MFD_CLOEXEC)
    try:
        with open(memfd, "wb", closefd=False) as file:
            file.write(body)
        socket.send_fds(sock, [_IN_MEMFD], [*fds, memfd])
    finally:
        os.close(memfd)


def receive(sock: socket.socket) -> Received | None:
    """The next message, None at the end. BlockingIOError: nothing is there now. Garbled: give the connection up."""
    data, fds, truncated = receive_fds(sock, INLINE_BYTES + 1, MAX_FDS + 1)
    if not data:
        close_all(fds)
        return None
    try:
        if data[:1] == _IN_MEMFD and not truncated:
            data = _INLINE + _read_and_close(fds.pop())
        if truncated:
            close_all(fds)
            fds = []
        if data[:1] != _INLINE:
            return Received([], fds, complete=False)
        message = msgpack.unpackb(data[1:], strict_map_key=False)
        if not isinstance(message, list) or not message:
            raise ValueError("not a list")
    except (ValueError, IndexError, TypeError) as exc:
        close_all(fds)
        raise Garbled(str(exc)) from exc
    return Received(message, fds, complete=not truncated)


def receive_fds(sock: socket.socket, max_bytes: int, max_fds: int) -> tuple[bytes, list[int], bool]:
    """recvmsg with descriptors that no exec inherits (socket.recv_fds makes them inheritable); whether something was cut off."""
    numbers = array.array("i")
    space = socket.CMSG_SPACE(max_fds * numbers.itemsize)
    try:
        data, ancillary, flags, _ = sock.recvmsg(max_bytes, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # the other side closed without having read all of ours: told once, and before what it had still said
        data, ancillary, flags, _ = sock.recvmsg(max_bytes, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(value[: len(value) - len(value) % numbers.itemsize])
    return data, list(numbers), bool(flags & _CUT_OFF)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _read_and_close(memfd: int) -> bytes:
    try:
        return os.pread(memfd, os.fstat(memfd).st_size, 0)
    finally:
        os.close(memfd)
