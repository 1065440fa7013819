"""Two machines on one: namespaces of their own for processes, network, mounts and host name, a cable between them, an sshd each.

    with two_machines(folder) as (main_pc, pc2, link):
        main_pc.run("ssh", "pc2", "hostname")
        link.cut()

A machine has its own home, /run, /dev/shm and process numbers. Whatever runs on it ends with it, however it was started: nothing
can be left behind, not even by a test that was killed. Its files lie in a folder, and can be looked at from outside; its process
numbers mean something only on it (`Machine.run("kill", ...)`). For root. Only the standard library: benchmarks use it, too.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

#: No command of a test takes longer, in seconds.
PATIENCE_S = 60.0
#: Where sshd listens: not where everybody does, so that the port is really read from the configuration.
SSH_PORT = 2222
#: RFC 5737's range for documentation: nobody else's.
ADDRESSES = ("192.0.2.1", "192.0.2.2")
#: The end of the cable, on both machines.
DEVICE = "cable"

_SSHD = "/usr/sbin/sshd"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CLOCK_LIBRARIES = "lib/*/faketime/libfaketimeMT.so.1"

_INIT = """
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p -m 755 /run/sshd /run/user
mkdir -m 700 /run/user/0
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/hosts" /etc/hosts
echo "$2" >/proc/sys/kernel/hostname
ip link set lo up
ip address add "$3/32" dev lo
echo up
trap '' CHLD  # orphans are ours: reaped by nobody, because nobody asks
exec sleep infinity
"""


def refusal() -> str:
    """Why there can be no machines here; empty when there can."""
    if os.geteuid() != 0:
        return "making machines of namespaces is for root"
    needed = {"ip": "iproute2", _SSHD: "openssh-server", "ssh-keygen": "openssh-client", "unshare": "util-linux"}
    if missing := sorted({package for program, package in needed.items() if not shutil.which(program)}):
        return f"Debian packages are missing: {' '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc",
         "ip", "link", "add", "dev", "a", "type", "veth", "peer", "name", "b"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return tried.stderr.strip() and f"the kernel refuses: {tried.stderr.strip()}"


def clock_library() -> str | None:
    """What makes a process believe in another time (Debian's libfaketime); None when it is not installed."""
    return next((str(path) for path in Path("/usr").glob(_CLOCK_LIBRARIES)), None)


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Machine:
    """One of the two. `folder` is its disk: it outlives `off` and `on`."""

    name: str
    address: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)  #: of what is run on it and, after `on`, of who logs in
    _init: subprocess.Popen[str] | None = None
    _pid: int = 0
    _sshd: subprocess.Popen[bytes] | None = None
    _begun: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def ssh(self) -> Path:
        """Its user's keys, known_hosts and authorized_keys."""
        return self.home / ".ssh"

    @property
    def host_key(self) -> Path:
        return self.folder / "ssh_host_ed25519_key"

    @property
    def is_on(self) -> bool:
        return self._init is not None

    # -- life

    def install(self, hosts: str) -> None:
        """The disk as it is before it is first switched on; `hosts`: the text of /etc/hosts."""
        self.ssh.mkdir(parents=True, mode=0o700)
        self.home.chmod(0o700)
        users = [line.split(":") for line in Path("/etc/passwd").read_text().splitlines()]
        moved = [[*user[:5], str(self.home), *user[6:]] if user[2] == "0" else user for user in users]
        (self.folder / "passwd").write_text("".join(":".join(user) + "\n" for user in moved))
        (self.folder / "hosts").write_text(hosts)
        make_key(self.host_key)
        make_key(self.ssh / "id_ed25519")

    def on(self) -> None:
        """Switch it on: processes, network (without a cable), sshd."""
        words = ["--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc"]
        self._init = subprocess.Popen(
            ["unshare", *words, "sh", "-c", _INIT, "init", str(self.folder), self.name, self.address],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._init.stdout is not None
        if self._init.stdout.readline() != "up\n":
            raise RuntimeError(f"machine {self.name} did not come up: {self._init.communicate()[1]}")
        (self._pid,) = _children(self._init.pid)
        self.start_sshd()

    def off(self) -> None:
        """Pull the plug: whatever runs on it is gone at once. (Its last packets may still leave: cut the link before.)"""
        if self._init is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid or self._init.pid, signal.SIGKILL)
        self._init.communicate()
        if self._sshd is not None:
            self._sshd.wait()
        self._init, self._sshd, self._pid = None, None, 0

    def close(self) -> None:
        """End everything; what was begun on it from here is waited for."""
        self.off()
        for process in self._begun:
            with process:  # closes its pipes
                process.kill()

    @property
    def pid(self) -> int:
        """Of its first process, as it is seen from outside: what nsenter wants."""
        assert self._pid, f"machine {self.name} is off"
        return self._pid

    def path(self, path: str | Path) -> Path:
        """How a file of it is opened from outside, also one below its own /run."""
        return Path(f"/proc/{self.pid}/root/{str(path).lstrip('/')}")

    # -- programs

    def command(self, *words: str, folder: Path | None = None, **environment: str) -> list[str]:
        """The command line that runs `words` on it, in its home or in `folder`."""
        known = {"HOME": str(self.home), "USER": "root", "LOGNAME": "root", "PATH": _PATH, "LANG": "C.UTF-8"}
        measured = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        variables = known | measured | self.environment | environment
        enter = ["nsenter", "-t", str(self.pid), "-n", "-p", "-m", "-u", "-i"]
        settings = [f"{name}={value}" for name, value in variables.items()]
        return [*enter, "env", "-i", "-C", str(folder or self.home), *settings, *words]

    def start(self, *words: str, folder: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """Begin a program on it, output to pipes; it ends with the machine at the latest."""
        process = subprocess.Popen(
            self.command(*words, folder=folder, **environment),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._begun.append(process)
        return process

    def run(self, *words: str, folder: Path | None = None, timeout_s: float = PATIENCE_S, **environment: str) -> Result:
        """A program on it, to its end. subprocess.TimeoutExpired: it goes on until the machine is off."""
        process = self.start(*words, folder=folder, **environment)
        out, err = process.communicate(timeout=timeout_s)
        self._begun.remove(process)
        return Result(process.returncode, out, err)

    def agentkit(self, *words: str, folder: Path | None = None, **environment: str) -> Result:
        """`agentkit WORDS` as its operator types it."""
        return self.run(sys.executable, "-m", "startup", *words, folder=folder, **environment)

    def interrupt(self, process: subprocess.Popen[str]) -> None:
        """Ctrl-C to a program that was begun with `start`: what stands in front of it here would not pass it on."""
        for child in _children(process.pid):
            os.kill(child, signal.SIGINT)

    # -- logging in

    def start_sshd(self, **more: str) -> None:
        """`more`: settings of sshd_config."""
        config, log = self.folder / "sshd_config", self.folder / "sshd.log"
        settings: dict[str, object] = {
            "Port": SSH_PORT,
            "HostKey": self.host_key,
            "AuthorizedKeysFile": ".ssh/authorized_keys",
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "UseDNS": "no",
            "PidFile": "none",
            "LogLevel": "VERBOSE",
            "Subsystem": "sftp internal-sftp",
            **more,
        }
        if self.environment:
            settings["SetEnv"] = " ".join(f'"{name}={value}"' for name, value in self.environment.items())
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        with log.open("wb") as file:
            command = self.command(_SSHD, "-D", "-e", "-f", str(config))
            self._sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        ends_s = time.monotonic() + PATIENCE_S
        while b"Server listening" not in log.read_bytes():
            assert self._sshd.poll() is None, log.read_text()
            assert time.monotonic() < ends_s, log.read_text()
            time.sleep(0.005)

    def stop_sshd(self) -> None:
        """Nobody can log in any more; who has stays."""
        assert self._sshd is not None
        (listener,) = _children(self._sshd.pid)
        os.kill(listener, signal.SIGTERM)
        self._sshd.wait()
        self._sshd = None

    def trust(self, *others: Machine) -> None:
        """`others` may log in here, and our user knows their host keys."""
        with (self.ssh / "authorized_keys").open("a") as file:
            file.writelines(public_key(other.ssh / "id_ed25519") + "\n" for other in others)
        with (self.ssh / "known_hosts").open("a") as file:
            for other in others:
                for host in (other.address, other.name):
                    file.write(f"[{host}]:{SSH_PORT} {public_key(other.host_key)}\n")

    def offset_clock(self, offset: str) -> None:
        """From the next `on`, its programs live at another time, such as `+1h`; what measures durations is not touched.

        It stands in the home, because agents inherit HOME and little else."""
        library = clock_library()
        assert library is not None, "Debian's package faketime is missing"
        (self.home / ".faketimerc").write_text(offset + "\n")
        self.environment |= {"LD_PRELOAD": library, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@dataclass
class Link:
    """The cable between two machines: plain, cut, or (`shape`) one that delays and loses packets."""

    a: Machine
    b: Machine
    _shaper: subprocess.Popen[str] | None = None

    def plug(self) -> None:
        """Connect two machines that have been switched on."""
        # a machine that was switched off leaves its end for as long as its last connections are not over
        subprocess.run(
            ["nsenter", "-t", str(self.a.pid), "-n", "ip", "link", "delete", DEVICE],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        _run("ip", "link", "add", "dev", DEVICE, "netns", str(self.a.pid), "type", "veth",
             "peer", "name", DEVICE, "netns", str(self.b.pid))  # fmt: skip
        self._use(DEVICE)

    def cut(self) -> None:
        """`ip link set down` on b's side: b is told that there is no way, what a sends just vanishes. TCP is told nothing."""
        self._ip(self.b, "link", "set", DEVICE, "down")

    def cut_one_way(self, sender: Machine) -> None:
        """What `sender` sends is lost; it still hears the other."""
        self.shape(a_to_b={"loss": float(sender is self.a)}, b_to_a={"loss": float(sender is self.b)})

    def slow(self, *, loss: float = 0.0, delay_s: float = 0.0, seed: int = 1) -> None:
        """Both ways: this part of all packets is lost, the others arrive so much later."""
        both = {"loss": loss, "delay_s": delay_s}
        self.shape(a_to_b=both, b_to_a=both, seed=seed)

    def shape(self, *, a_to_b: Mapping[str, float], b_to_a: Mapping[str, float], seed: int = 1) -> None:
        """From now on packets go through shaper.py, with `loss` (0..1) and `delay_s` for each direction."""
        if self._shaper is None:
            self._shaper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("shaper.py")), str(self.a.pid), str(self.b.pid)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert self._shaper.stdin is not None
        assert self._shaper.stdout is not None
        self._shaper.stdin.write(json.dumps([dict(a_to_b), dict(b_to_a), seed]) + "\n")
        self._shaper.stdin.flush()
        device = self._shaper.stdout.readline().strip()
        assert device, "the shaper ended"
        self._use(device)

    def heal(self) -> None:
        """The plain cable again."""
        self._use(DEVICE)
        for machine in (
            self.a,
            self.b,
        ):  # else who dials now may be told of the search for the other that is about to fail
            self._ip(machine, "neigh", "flush", "dev", DEVICE)

    def close(self) -> None:
        if self._shaper is not None:
            with self._shaper as process:
                process.kill()
            self._shaper = None

    def _use(self, device: str) -> None:
        for machine, other in ((self.a, self.b), (self.b, self.a)):
            self._ip(machine, "link", "set", device, "up")
            # addresses stand on `lo`, so that connections live through a change of ways
            self._ip(machine, "route", "replace", f"{other.address}/32", "dev", device, "src", machine.address)

    def _ip(self, machine: Machine, *words: str) -> None:
        _run("nsenter", "-t", str(machine.pid), "-n", "ip", *words)


@contextmanager
def two_machines(
    folder: Path, names: Sequence[str] = ("main_pc", "pc2"), *, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Machine, Machine, Link]]:
    """Both switched on, connected, and each trusting both; `folder` is for their disks. `environment`: of everything on them."""
    a, b = (
        Machine(name, address, folder / name, dict(environment or {}))
        for name, address in zip(names, ADDRESSES, strict=True)
    )
    link = Link(a, b)
    hosts = "127.0.0.1 localhost\n" + "".join(f"{machine.address} {machine.name}\n" for machine in (a, b))
    try:
        for machine in (a, b):
            machine.install(hosts)
        for machine in (a, b):
            machine.trust(a, b)
            machine.on()
        link.plug()
        yield a, b, link
    finally:
        link.close()
        for machine in (a, b):
            machine.close()


def make_key(path: Path) -> None:
    """A key pair without a passphrase: `path`, and `path`.pub."""
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))


def public_key(path: Path) -> str:
    """As authorized_keys and known_hosts have it: type and key."""
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def _children(pid: int) -> list[int]:
    """Every process is looked at: not every kernel has /proc/PID/task/*/children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def _run(*words: str) -> None:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
