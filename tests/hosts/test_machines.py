"""The two machines themselves: what other tests here build on."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import pytest

from tests.hosts.conftest import Hosts, demand
from tests.hosts.machines import SSH_PORT, Machine, clock_library

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: Answers every connection with what it got, until its end.
ECHO = """
import socket, threading
def serve(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
server = socket.create_server(("", 9000))
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""

#: Sends a byte, prints the seconds until it is back (or the error), for each line on its input.
ASK = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 9000), timeout=float(sys.argv[2]))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for number in range(int(sys.argv[3])):
    began = time.monotonic()
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    print(time.monotonic() - began, flush=True)
"""


def start_echo(machine: Machine) -> None:
    process = machine.start(sys.executable, "-c", ECHO)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"


def ask(machine: Machine, other: Machine, *, within_s: float = 20.0, times: int = 1) -> list[float]:
    """Seconds for there and back; TimeoutError or OSError as the asker met it."""
    result = machine.run(sys.executable, "-c", ASK, other.address, str(within_s), str(times))
    if result.code:
        raise TimeoutError(result.err) if "timed out" in result.err else OSError(result.err)
    return [float(line) for line in result.out.split()]


def test_one_logs_into_the_other_by_key_and_meets_another_machine(hosts: Hosts) -> None:
    there = hosts.a.run("ssh", "-p", str(SSH_PORT), "pc2", "hostname; echo $HOME; ls /run/user; cat /proc/1/comm")
    assert there.out.split() == ["pc2", str(hosts.b.home), "0", "sleep"], there.err
    back = hosts.b.run("ssh", "-p", str(SSH_PORT), hosts.a.address, "hostname")
    assert back.out == "main_pc\n", back.err


def test_a_cut_cable_is_silence_and_a_healed_one_goes_on(hosts: Hosts) -> None:
    start_echo(hosts.b)
    ask(hosts.a, hosts.b)
    hosts.link.cut()
    with pytest.raises(OSError):
        ask(hosts.a, hosts.b, within_s=0.5)
    hosts.link.heal()
    ask(hosts.a, hosts.b)


def test_a_connection_lives_through_a_cut_that_is_healed(hosts: Hosts) -> None:
    start_echo(hosts.b)
    asking = hosts.a.start(sys.executable, "-c", ASK, hosts.b.address, "30", "100000")
    assert asking.stdout is not None
    asking.stdout.readline()
    hosts.link.cut()
    healing = threading.Timer(0.5, hosts.link.heal)
    healing.start()
    # answers that were printed before the cut come first
    longest_s = next(took_s for line in asking.stdout if (took_s := float(line)) > 0.2)
    healing.join()
    assert longest_s < 30
    assert float(asking.stdout.readline()) < 30


def test_a_cable_can_be_cut_in_one_direction_only(hosts: Hosts) -> None:
    received, heard = _datagrams(hosts.b), _datagrams(hosts.a)
    assert heard.stdout is not None
    assert received.stdout is not None
    hosts.link.cut_one_way(hosts.a)
    _send(hosts.a, hosts.b, b"lost")
    _send(hosts.b, hosts.a, b"heard")
    assert heard.stdout.readline() == "heard\n"
    hosts.link.heal()
    _send(hosts.a, hosts.b, b"healed")
    assert received.stdout.readline() == "healed\n"


def test_packets_are_delayed_and_lost_and_tcp_sends_them_again(hosts: Hosts) -> None:
    start_echo(hosts.b)
    hosts.link.slow(delay_s=0.1)
    assert min(ask(hosts.a, hosts.b, times=3)) >= 0.2
    hosts.link.slow(loss=0.3, seed=4)
    took_s = ask(hosts.a, hosts.b, times=6)
    assert max(took_s) > 0.1 > min(took_s), "some were sent again, some were not"


def test_what_runs_on_a_machine_ends_with_it_and_its_files_stay(hosts: Hosts) -> None:
    hosts.b.run("sh", "-c", "echo kept > kept; setsid sleep 31536 >/dev/null 2>&1 &")
    assert hosts.a.run("ssh", "-p", str(SSH_PORT), "pc2", "pgrep -fx 'sleep 31536'").out
    hosts.link.cut()
    hosts.b.off()
    assert not subprocess.run(["pgrep", "-fx", "sleep 31536"], capture_output=True, check=False).stdout
    hosts.b.on()
    hosts.link.plug()
    assert hosts.a.run("ssh", "-p", str(SSH_PORT), "pc2", "cat kept; pgrep -fx 'sleep 31536'").out == "kept\n"


def test_one_machines_clock_is_an_hour_ahead_for_whoever_logs_in_too(hosts: Hosts) -> None:
    demand("" if clock_library() else "Debian's package faketime is missing")
    hosts.b.off()
    hosts.b.offset_clock("+1h")
    hosts.b.on()
    hosts.link.plug()
    show = f"{sys.executable} -c 'import time; print(int(time.time()), time.monotonic())'"
    ours = hosts.a.run("sh", "-c", show).out.split()
    theirs = hosts.a.run("ssh", "-p", str(SSH_PORT), "pc2", show).out.split()
    assert re.fullmatch(r"\d+", theirs[0])
    assert 3590 < int(theirs[0]) - int(ours[0]) < 3660
    assert abs(float(theirs[1]) - float(ours[1])) < 60


def _datagrams(machine: Machine) -> subprocess.Popen[str]:
    """Prints each datagram that it gets."""
    code = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 9000))
print("listening", flush=True)
while True:
    print(sock.recv(100).decode(), flush=True)
"""
    process = machine.start(sys.executable, "-c", code)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    return process


def _send(machine: Machine, other: Machine, data: bytes) -> None:
    code = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto({data!r}, ('{other.address}', 9000))"
    assert machine.run(sys.executable, "-c", code).code == 0
