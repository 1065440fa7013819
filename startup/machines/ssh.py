"""One SSH connection to another machine: logging in, one program at the far end, files pushed, its node's control socket brought here.

Whatever goes wrong is a MachineTrouble that names host, step and remedy. Host keys are always checked; passwords are never asked
for. asyncssh is imported here only: it takes 150 ms, and a fleet on one host never needs it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import stat
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import asyncssh

from startup.errors import MachineTrouble
from startup.machines.far import MARK
from startup.spec.fleet import MachineSpec, SshAccess

#: From the first packet to being logged in, in seconds; a machine that is off says nothing at all, one behind a line that loses every third
#: packet takes 5 to 15. ConnectTimeout in ~/.ssh/config may be less.
LOGS_IN_WITHIN_S: Final = 15.0
#: A connection over which nothing comes for so long, in seconds, is asked whether it lives; unanswered for three times as long, it is lost.
KEEPALIVE_S: Final = 4.0
#: How long the far end may take for one answer, in seconds: it imports, waits for a disk, boots.
ANSWERS_WITHIN_S: Final = 60.0
#: ... while it waits for a `down` to end, or ends what is left.
WAITS_WITHIN_S: Final = 180.0
#: Files that are on their way at once.
_TOGETHER: Final = 16
_OLDEST_PYTHON: Final = (3, 11)

# Begins on any Python 3, so that an old one can be told from a missing one. One line: not every login shell takes more.
_PROGRAM: Final = (
    "import sys\n"
    "sys.path[:1] == [''] and sys.path.pop(0)\n"
    f"sys.version_info >= {_OLDEST_PYTHON} or sys.exit('{MARK}' + repr({{'python': sys.version.split()[0]}}).replace(chr(39), chr(34)))\n"
    "try:\n"
    "    from startup.machines import far\n"
    "except ImportError as exc:\n"
    "    import json\n"
    f"    sys.exit('{MARK}' + json.dumps({{'missing': str(exc)}}))\n"
    "sys.exit(far.main())\n"
)


class Connection:
    """Logged in on one machine. Made by `connect`; `close` ends it, and with it whatever was brought here."""

    def __init__(self, machine: MachineSpec, stack: AsyncExitStack, ssh: asyncssh.SSHClientConnection) -> None:
        self.machine = machine
        self._stack = stack
        self._ssh = ssh
        self._listeners: list[asyncssh.SSHListener] = []

    @classmethod
    async def connect(cls, machine: MachineSpec) -> Connection:
        """MachineTrouble says at which step it failed."""
        access = machine.ssh or SshAccess()
        async with AsyncExitStack() as stack:
            tunnel = None
            if access.jump:
                user, _, place = access.jump.rpartition("@")
                host, colon, port = place.rpartition(":")
                tunnel = await _log_in(
                    machine,
                    host if colon else place,
                    int(port) if colon else 22,
                    user or access.user,
                    None,
                    "jump host",
                )
                stack.push_async_callback(_end, tunnel)
            ssh = await _log_in(machine, machine.host, access.port, access.user, tunnel, "SSH")
            stack.push_async_callback(_end, ssh)
            return cls(machine, stack.pop_all(), ssh)
        raise AssertionError("unreachable")  # AsyncExitStack swallows nothing

    async def far(self, action: str, cluster: str, python: str) -> Far:
        """Begin the far end's program."""
        words = [python, "-c", f"exec({_PROGRAM!r})", action, cluster, str(self.machine.name)]
        try:
            # the login shell reads this line: each word is quoted for it
            process = await self._ssh.create_process(shlex.join(words), encoding="utf-8", errors="replace")
        except (asyncssh.Error, OSError) as exc:
            raise self.trouble("starting a program", str(exc), "sshd must allow sessions (MaxSessions)") from exc
        return Far(self, process, python)

    async def push(self, paths: Iterable[str], here: Path, there: str) -> None:
        """These files, by SFTP, each put in place whole; existing ones are replaced, nothing is removed."""
        try:
            async with self._ssh.start_sftp_client() as sftp:
                for folder in sorted({str(Path(there, path).parent) for path in paths}):
                    await sftp.makedirs(folder, exist_ok=True)
                turns = asyncio.Semaphore(_TOGETHER)

                async def put(path: str) -> None:
                    target = f"{there}/{path}"
                    temporary = f"{target}.agentkit-push"
                    async with turns:
                        await sftp.put(str(here / path), temporary)
                        await sftp.chmod(temporary, stat.S_IMODE((here / path).stat().st_mode))
                        await sftp.posix_rename(temporary, target)

                await asyncio.gather(*(put(path) for path in paths))
        except (asyncssh.Error, OSError) as exc:
            raise self.trouble("pushing files", str(exc), f"make {there} writable for the user who logs in") from exc

    async def bring(self, control: str, path: str) -> None:
        """The unix socket `control` of that machine, at `path` on this one."""
        try:
            _, writer = await self._ssh.open_unix_connection(control)  # whether that is allowed at all
            writer.close()
            self._listeners.append(await self._ssh.forward_local_path(path, control))
            Path(path).chmod(0o600)
        except (asyncssh.Error, OSError) as exc:
            raise self.trouble(
                "reaching its node", f"{control}: {exc}", "sshd must allow it: `AllowStreamLocalForwarding yes`"
            ) from exc

    async def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        await self._stack.aclose()

    def trouble(self, step: str, found: str, fix: str) -> MachineTrouble:
        return MachineTrouble(str(self.machine.name), self.machine.host, step, found, fix)


class Far:
    """The program at the far end, while it runs."""

    def __init__(self, connection: Connection, process: asyncssh.SSHClientProcess[str], python: str) -> None:
        self._connection = connection
        self._process = process
        self._python = python

    async def ask(
        self, question: dict[str, Any] | None, step: str, *, within_s: float = ANSWERS_WITHIN_S,
        tell: Callable[[str], None] = lambda _: None,
    ) -> dict[str, Any]:  # fmt: skip
        """Its next answer; MachineTrouble when it is an error, or none comes. `tell` is given remarks that come before it."""
        try:
            async with asyncio.timeout(within_s):
                if question is not None:
                    self._process.stdin.write(json.dumps(question) + "\n")
                while True:
                    line = await self._process.stdout.readline()
                    if not line:
                        raise await self._ended(step)
                    if not line.startswith(MARK):
                        continue  # a login shell that greets
                    answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                    if "note" in answer:
                        tell(str(answer["note"]))
                    elif "error" in answer:
                        raise self._connection.trouble(step, str(answer["error"]), "")
                    else:
                        return answer
        except TimeoutError as exc:
            fix = "look at what keeps that machine busy, then run the command again"
            raise self._connection.trouble(step, f"no answer within {within_s:g} s", fix) from exc
        except (asyncssh.Error, OSError) as exc:
            raise self._lost(step, exc) from exc

    def end(self) -> None:
        """It leaves nothing that was not ordered."""
        self._process.close()

    async def _ended(self, step: str) -> MachineTrouble:
        """Why it did not come so far as to answer."""
        done = await self._process.wait()
        words = str(done.stderr or "").strip()
        machine, python = self._connection.machine, self._python
        for line in words.splitlines():
            if line.startswith(MARK):
                told = json.loads(line.removeprefix(MARK))
                if "python" in told:
                    oldest = ".".join(map(str, _OLDEST_PYTHON))
                    return self._connection.trouble(
                        "Python",
                        f"{python} is {told['python']}",
                        f"agentkit needs {oldest}: set machines.{machine.name}.python",
                    )
                return self._connection.trouble(
                    "agentkit", f"{python} has none ({told['missing']})",
                    f"`{python} -m pip install agentkit` there, or set machines.{machine.name}.python",
                )  # fmt: skip
        if done.exit_status is None and not words:
            return self._lost(step, None)
        if done.exit_status in (126, 127):
            fix = f"install Python there, or set machines.{machine.name}.python to where it is"
            return self._connection.trouble("Python", f"{python} can't be run: {words or 'no such program'}", fix)
        code = f"exit {done.exit_status}" if done.exit_status is not None else f"signal {done.exit_signal}"
        tail = words.splitlines()[-1] if words else "it said nothing"
        return self._connection.trouble(
            step, f"the program there ended ({code}): {tail}", "`agentkit doctor` there may tell more"
        )

    def _lost(self, step: str, exc: Exception | None) -> MachineTrouble:
        found = "the connection was lost" + (f": {exc}" if exc else "")
        return self._connection.trouble(step, found, "run the command again when the machine is reachable")


async def _log_in(
    machine: MachineSpec,
    host: str,
    port: int,
    user: str | None,
    tunnel: asyncssh.SSHClientConnection | None,
    what: str,
) -> asyncssh.SSHClientConnection:
    access = machine.ssh or SshAccess()
    name = str(machine.name)
    at = f"{host}:{port}"
    options: dict[str, Any] = {}
    if port != SshAccess().port:
        options["port"] = port  # else ~/.ssh/config may say one
    if user:
        options["username"] = user
    if access.key:
        options |= _key(machine, access.key)
    known_hosts = Path(access.known_hosts or "~/.ssh/known_hosts").expanduser()
    if access.known_hosts:
        if not known_hosts.is_file():
            fix = f"make it with `ssh-keyscan -p {port} {host}`, after comparing the fingerprint"
            raise MachineTrouble(name, machine.host, "known_hosts", f"there is no file {known_hosts}", fix)
        options["known_hosts"] = str(known_hosts)
    login = f"ssh -p {port} {f'{user}@' if user else ''}{host}"
    try:
        async with asyncio.timeout(LOGS_IN_WITHIN_S):
            return await asyncssh.connect(
                host, tunnel=tunnel, password_auth=False, kbdint_auth=False, keepalive_interval=KEEPALIVE_S, **options
            )
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as exc:
        found, fix = _host_key(known_hosts, host, port, login, exc)
        raise MachineTrouble(name, machine.host, f"{what}: host key", found, fix) from exc
    except asyncssh.PermissionDenied as exc:
        tried = f"key {access.key}" if access.key else "the keys of ssh-agent and ~/.ssh"
        fix = f"`ssh-copy-id -p {port} {login.rpartition(' ')[2]}`, or set machines.{name}.ssh.key and .user; try `{login}`"
        raise MachineTrouble(name, machine.host, f"{what}: login", f"{at} does not accept {tried}", fix) from exc
    except asyncssh.ChannelOpenError as exc:
        fix = f"the jump host must reach {at} and allow forwarding (AllowTcpForwarding)"
        raise MachineTrouble(name, machine.host, "jump host", f"no way to {at}: {exc.reason}", fix) from exc
    except (TimeoutError, OSError) as exc:
        found = f"{at} does not answer: {os.strerror(exc.errno) if exc.errno else str(exc) or 'it is silent'}"
        fix = f"is it on, is the address right, does sshd listen on port {port}? try `{login}`"
        raise MachineTrouble(name, machine.host, f"{what}: connecting", found, fix) from exc
    except asyncssh.Error as exc:
        raise MachineTrouble(name, machine.host, what, f"{at}: {exc.reason}", f"try `{login}`") from exc


def _key(machine: MachineSpec, file: str) -> dict[str, Any]:
    """Options for one key file. One with a passphrase has to be in ssh-agent: nobody is asked here."""
    path = Path(file).expanduser()
    name = str(machine.name)
    try:
        asyncssh.read_private_key(path)
    except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError, OSError) as exc:
        if "assphrase" in str(exc):  # asyncssh has no class of its own for it
            public = path.with_name(path.name + ".pub")
            if os.environ.get("SSH_AUTH_SOCK") and public.is_file():
                return {"client_keys": [str(path)], "ignore_encrypted": True, "agent_identities": [str(public)]}
            fix = f"`ssh-add {file}` with an ssh-agent that runs, and its public key beside it"
            raise MachineTrouble(name, machine.host, "SSH: key", f"{file} has a passphrase", fix) from exc
        found = f"{file}: {getattr(exc, 'strerror', None) or exc}"
        raise MachineTrouble(name, machine.host, "SSH: key", found, f"set machines.{name}.ssh.key") from exc
    return {"client_keys": [str(path)], "agent_path": None}


def _host_key(known_hosts: Path, host: str, port: int, login: str, exc: Exception) -> tuple[str, str]:
    try:
        found = asyncssh.match_known_hosts(str(known_hosts), host, "", port)
    except (OSError, ValueError):
        found = None
    if found is not None and any(found[:2]):
        place = f"[{host}]:{port}" if port != SshAccess().port else host
        return (
            f"it is not the one in {known_hosts}: another machine answers, or it was installed anew",
            f"find out which; then `ssh-keygen -f {known_hosts} -R '{place}'` and log in once with `{login}`",
        )
    return f"{host} is not in {known_hosts} ({exc})", f"log in once with `{login}` and compare the fingerprint"


async def _end(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    try:
        async with asyncio.timeout(1.0):
            await connection.wait_closed()
    except TimeoutError:
        connection.abort()
