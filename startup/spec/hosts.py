"""Which host a machine of the file is: two names of one host share its ports, and only this host's can be looked at."""

from __future__ import annotations

import ipaddress
import socket
import threading
from typing import Final

from agentkit.names import is_loopback

LOOPBACK: Final = "127.0.0.1"

#: A resolver that takes longer is not waited for, in seconds: then the name itself tells hosts apart.
RESOLVE_TIMEOUT_S: Final = 1.0


def host_key(host: str) -> str:
    """Equal for names of one host: its address, or 127.0.0.1 when the address is one of this machine's."""
    if is_loopback(host):
        return LOOPBACK
    address = _address(host)
    return LOOPBACK if address is not None and _is_ours(address) else address or host.casefold()


def _address(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    found: list[str] = []

    def look() -> None:
        try:
            found.append(str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]))
        except (OSError, UnicodeError):
            return

    # in a thread because getaddrinfo has no limit of its own; a daemon, so that a slow one keeps nobody from exiting
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(RESOLVE_TIMEOUT_S)
    return found[0] if found else None


def _is_ours(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))  # binding succeeds on this machine's own addresses only; nothing is sent
    except OSError:
        return False
    return True
