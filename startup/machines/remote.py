"""The other machines of a fleet, all at once: each is logged in on, checked, and its node started or found.

asyncssh works on a loop in a thread of its own, so that commands, which block, go on meanwhile. What comes of a machine is a
door to its node (a unix socket brought here), or a MachineTrouble; one machine's trouble is no other's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from agentkit._version import VERSION
from agentkit.directory.locate import run_root
from startup.control import Door, UnixDoor
from startup.errors import MachineTrouble
from startup.machines.found import Found
from startup.node.paths import own_folder
from startup.plan.revision import CONTROL_VERSION

if TYPE_CHECKING:
    from startup.machines.ssh import Connection, Far
    from startup.spec.fleet import Fleet, MachineSpec

#: Files named in a message; the others are counted.
_NAMED: Final = 8
#: Folder for sockets that were brought here, in the run directory: one for each command, by its pid.
_FOLDER: Final = ".far-"
#: How long the end of all connections may take, in seconds.
_CLOSES_WITHIN_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What all machines of a fleet have to have alike."""

    root: Path
    files: Mapping[str, str]  #: path from the root -> digest
    is_pushed: bool = False  #: what differs is copied there


class Remote:
    """A context manager; whatever was brought here goes with it. Use it from one thread."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` is given remarks for the operator, from another thread."""
        self._tell = tell
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="ssh", daemon=True)
        self._connections: dict[str, Connection] = {}
        self._all: list[Connection] = []
        self._ahead: dict[tuple[str, MachineSpec], Future[_Greeted]] = {}
        self._begun: dict[str, tuple[MachineSpec, Future[Door | None]]] = {}
        self._folder = run_root() / f"{_FOLDER}{os.getpid()}"
        self._thread.start()

    # -- what commands want

    def up(self, fleet: Fleet, machines: Iterable[MachineSpec], project: Callable[[], Project]) -> None:
        """Begin to bring up these machines' nodes; `finish` waits. `project` is worked out meanwhile, once."""
        work = _Once(project)
        for machine in machines:
            self._begin(machine, self._up(fleet, machine, work))

    def greet(self, cluster: str, machines: Iterable[MachineSpec]) -> None:
        """Log in on machines that `up` will probably be asked for, and begin to boot there: nothing comes of it without `up`."""
        for machine in machines:
            greeting = asyncio.run_coroutine_threadsafe(self._greet(cluster, machine), self._loop)
            self._ahead[cluster, machine] = greeting

    def find(self, cluster: str, machines: Iterable[MachineSpec]) -> None:
        """Begin to look for these machines' nodes; starts nothing."""
        for machine in machines:
            self._begin(machine, self._find(cluster, machine))

    def finish(self) -> Found:
        """Until each machine's outcome is there. A machine without a node has neither a door nor a trouble."""
        found = Found()
        for name, (machine, future) in self._begun.items():
            try:
                if (door := future.result()) is not None:
                    found.doors[name] = door
            except MachineTrouble as exc:
                found.troubles[name] = exc
            except Exception as exc:  # noqa: BLE001 - the other machines come up, whatever it is
                found.troubles[name] = MachineTrouble(name, machine.host, "SSH", f"{type(exc).__name__}: {exc}", "")
        self._begun.clear()
        return found

    def clean(self, cluster: str) -> dict[str, list[int]]:
        """End what is left of the machines that were found, whose nodes have been told to stop; pids of what had to be ended.

        Machines that are not reached any more are left out."""
        futures = {
            name: asyncio.run_coroutine_threadsafe(self._clean(cluster, name), self._loop) for name in self._connections
        }
        ended = {}
        for name, future in futures.items():
            with suppress(MachineTrouble):
                ended[name] = future.result()
        return ended

    def close(self) -> None:
        if self._thread.is_alive():
            closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
            with suppress(TimeoutError):
                closing.result(_CLOSES_WITHIN_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSES_WITHIN_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- on the loop

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def _begin(self, machine: MachineSpec, work: Coroutine[Any, Any, Door | None]) -> None:
        self._begun[str(machine.name)] = (machine, asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _connect(self, machine: MachineSpec) -> Connection:
        from startup.machines.ssh import Connection

        connection = await Connection.connect(machine)
        self._connections[str(machine.name)] = connection
        self._all.append(connection)
        return connection

    async def _greet(self, cluster: str, machine: MachineSpec) -> _Greeted:
        connection = await self._connect(machine)
        far = await connection.far("up", cluster, python_of(machine))
        try:
            return _Greeted(connection, far, await far.ask(None, "agentkit"))
        except BaseException:
            far.end()
            raise

    async def _up(self, fleet: Fleet, machine: MachineSpec, project: _Once) -> Door:
        from startup.machines.ssh import WAITS_WITHIN_S

        # one that was greeted as another (a changed address, another Python) is not this one: `close` ends it
        ahead = self._ahead.pop((fleet.cluster, machine), None)
        greeting = self._greet(fleet.cluster, machine) if ahead is None else asyncio.wrap_future(ahead)
        connection, far, found = await greeting
        try:
            self._judge(connection, found)
            node = found["node"]
            is_going = bool(node and node["revision"] and node["revision"]["down"])
            ours = await project.get()
            root = machine.root or str(ours.root)
            if node and not is_going:
                refuse_stranger(connection, fleet, root, node)
            question = {"root": root, "files": list(ours.files), "wait": is_going}
            compared = await far.ask(question, "files", within_s=WAITS_WITHIN_S, tell=self._remark(machine))
            await self._agree(connection, ours, compared)
            order = {"file": fleet.file, "preload": list(fleet.preload)}
            started = await far.ask(order, "starting its node", tell=self._remark(machine))
        finally:
            far.end()
        return await self._door(connection, started["control"])

    async def _find(self, cluster: str, machine: MachineSpec) -> Door | None:
        connection = await self._connect(machine)
        far = await connection.far("find", cluster, python_of(machine))
        try:
            found = await far.ask(None, "agentkit")
        finally:
            far.end()
        self._judge(connection, found)
        return await self._door(connection, found["control"]) if found["node"] else None

    async def _clean(self, cluster: str, name: str) -> list[int]:
        from startup.machines.ssh import WAITS_WITHIN_S

        connection = self._connections[name]
        far = await connection.far("down", cluster, python_of(connection.machine))
        try:
            answer = await far.ask(None, "ending what is left", within_s=WAITS_WITHIN_S)
        finally:
            far.end()
        return [int(pid) for pid in answer["killed"]]

    async def _close(self) -> None:
        for _, future in self._begun.values():
            future.cancel()
        for greeting in self._ahead.values():
            greeting.cancel()
        await asyncio.gather(*(connection.close() for connection in self._all), return_exceptions=True)

    # -- checks

    def _judge(self, connection: Connection, found: Mapping[str, Any]) -> None:
        """MachineTrouble when the two versions do not understand each other; a remark when they are not the same."""
        theirs = int(found["control_version"])
        if theirs != CONTROL_VERSION:
            raise connection.trouble(
                "version",
                f"agentkit {found['version']} there speaks control version {theirs}, {VERSION} here speaks {CONTROL_VERSION}",
                f"install agentkit {VERSION} there" if theirs < CONTROL_VERSION else "install a newer agentkit here",
            )
        remark = self._remark(connection.machine)
        if found["version"] != VERSION:
            remark(f"warning: agentkit {found['version']} there, {VERSION} here")
        if not found["is_kept"]:
            user = connection.machine.ssh and connection.machine.ssh.user
            remark(
                "warning: its run directory goes when its user logs out, and the node with it: "
                f"run `loginctl enable-linger{f' {user}' if user else ''}` there"
            )

    async def _agree(self, connection: Connection, ours: Project, compared: Mapping[str, Any]) -> None:
        """The same files there as here, or pushed there; MachineTrouble names those that differ."""
        from startup.machines import content

        there = str(compared["root"])
        if not compared["is_there"] and not ours.is_pushed:
            fix = f"`agentkit up --push` makes it, or set machines.{connection.machine.name}.workdir to where the project lies"
            raise connection.trouble("files", f"there is no folder {there}", fix)
        changed, missing = content.differing(ours.files, compared["digests"])
        if not changed and not missing:
            return
        if ours.is_pushed:
            await connection.push([*changed, *missing], ours.root, there)
            self._remark(connection.machine)(f"pushed {len(changed) + len(missing)} of {len(ours.files)} files")
            return
        words = [f"{what}: {_some(files)}" for what, files in (("differ", changed), ("are missing", missing)) if files]
        raise connection.trouble(
            "files",
            f"{len(changed) + len(missing)} of {len(ours.files)} in {there} are not as they are in {ours.root}: "
            + "; ".join(words),
            "`agentkit up --push` copies them there, or bring both to the same commit",
        )

    async def _door(self, connection: Connection, control: str) -> Door:
        own_folder(self._folder.parent, "AGENTKIT_RUN_DIR")
        own_folder(self._folder, "AGENTKIT_RUN_DIR")
        path = self._folder / f"{connection.machine.name}.sock"
        await connection.bring(control, str(path))
        return UnixDoor(str(path))

    def _remark(self, machine: MachineSpec) -> Callable[[str], None]:
        return lambda words: self._tell(f"{machine.name} ({machine.host}): {words}")


class _Greeted(NamedTuple):
    """A machine that was logged in on, the program that runs there, and what it told of itself."""

    connection: Connection
    far: Far
    found: Mapping[str, Any]


class _Once:
    """Work of a thread that several wait for."""

    def __init__(self, work: Callable[[], Project]) -> None:
        self._work = work
        self._task: asyncio.Future[Project] | None = None

    async def get(self) -> Project:
        if self._task is None:
            self._task = asyncio.ensure_future(asyncio.to_thread(self._work))
        return await asyncio.shield(self._task)


def python_of(machine: MachineSpec) -> str:
    return machine.python or sys.executable


def refuse_stranger(connection: Connection, fleet: Fleet, root: str, node: Mapping[str, Any]) -> None:
    """MachineTrouble when the node that runs there is of another project with the same cluster name."""
    theirs = node["project_root"]
    if theirs is not None and os.path.normpath(theirs) != os.path.normpath(root):
        raise connection.trouble(
            "its cluster",
            f"a cluster named {fleet.cluster} runs there already, from {node['file']} (project root {theirs}, not {root})",
            "stop that with `agentkit down` there, or choose another `cluster:` or --cluster",
        )


def _some(files: Sequence[str]) -> str:
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(files[:_NAMED]) + more
