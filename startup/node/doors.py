"""How agents that run as other users than the node reach it: what is the node's own stays closed to all, so each such user gets a folder
with a way to the node's sockets, which only its group may enter; and a data folder of its own for each agent.

The sockets there are hard links: the node listens once. Who comes is what the kernel says (control_server.py, notify.py)."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from agentkit.observe.log import get_logger
from startup.node.paths import MAX_SOCKET_PATH_BYTES, OTHER_USERS, Places
from startup.spec.fleet import AgentSpec
from startup.spec.users import User, UserTrouble, user_of

log = get_logger("node.doors")

#: To pass through, not to look around.
_PASSABLE: Final = 0o711
#: Sockets that agents speak to: control, notifications, events (transport.pubsub.Endpoints).
_SOCKETS: Final = ("node.sock", "notify.sock", "ev-in.sock", "ev-out.sock", "ev-far.sock")


class Doors:
    """Those of one node."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._users: dict[str, User] = {}  #: by folder
        self._uids: dict[str, int] = {}  #: by `user` of a fleet file

    def uids(self) -> frozenset[int]:
        """Of users whose agents may speak with the node."""
        return frozenset(user.uid for user in self._users.values())

    def uid_of(self, text: str) -> int | None:
        """Of a user that was admitted; looking one up may take long (LDAP)."""
        return self._uids.get(text)

    def admit(self, spec: AgentSpec) -> User | None:
        """Before an agent is forked: its user with everything that it needs; None: ours. UserTrouble says what is in the way."""
        if not spec.user:
            return None
        user = user_of(spec.user)
        door, data = self.door(user), self.data(spec.id.instance)
        if len(os.fsencode(door / "notify.sock")) > MAX_SOCKET_PATH_BYTES:
            raise UserTrouble(f"{door} is too long for a socket's path; set AGENTKIT_RUN_DIR to a shorter folder")
        self._passable(self._places.run.parent.parent, door.parent)
        self._passable(self._places.state.parent.parent, data.parent)
        self._reachable(user, door.parent, "AGENTKIT_RUN_DIR to a folder such as /run/agentkit")
        self._reachable(user, data.parent, "AGENTKIT_STATE_DIR to a folder such as /var/lib/agentkit")
        with suppress(FileExistsError):
            door.mkdir(mode=0o700)
        os.chown(door, 0, user.gid)
        door.chmod(0o710)
        _own(data, user)
        if spec.user not in self._uids and (closed := user.closed(Path(os.__file__).parent)):
            hint = "what is not in `preload` can't be imported there"
            log.warning("user.no_python", user=user.name, closed=str(closed), hint=hint)
        self._users[str(door)], self._uids[spec.user] = user, user.uid
        self._link(door)
        return user

    def environment(self, spec: AgentSpec, user: User) -> Mapping[str, str]:
        """What such an agent is told instead of our own."""
        door = self.door(user)
        return {
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            "NOTIFY_SOCKET": str(door / "notify.sock"),
            "AGENTKIT_DOOR": str(door / "node.sock"),
            "AGENTKIT_DATA_DIR": str(self.data(spec.id.instance)),
        }

    def renew(self) -> None:
        """A socket of the node is there that was not, or is another one."""
        for door in self._users:
            self._link(Path(door))

    def close(self) -> None:
        """The node ends: there is nobody behind the doors."""
        for door in map(Path, self._users):
            for name in _SOCKETS:
                (door / name).unlink(missing_ok=True)
            for folder in (door, *door.parents[:3]):  # as long as nobody else's is in them
                with suppress(OSError):
                    folder.rmdir()

    def door(self, user: User) -> Path:
        """One for each group that it may run with."""
        return self._places.doors / f"{user.uid}-{user.gid}"

    def data(self, instance: str) -> Path:
        places = self._places
        return places.state.parent.parent / OTHER_USERS / places.cluster / places.machine / instance

    def _passable(self, root: Path, last: Path) -> None:
        """From `root`, which is ours, down to `last`."""
        folders = [folder for folder in (last, *last.parents) if folder.is_relative_to(root)]
        for folder in reversed(folders):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise UserTrouble(f"{folder} is no folder of uid {os.geteuid()}; remove it")
            if stat.S_IMODE(found.st_mode) != _PASSABLE:
                folder.chmod(_PASSABLE)

    def _reachable(self, user: User, folder: Path, remedy: str) -> None:
        closed = user.closed(folder)
        if closed is not None:
            raise UserTrouble(f"{closed} is closed to {user.name}, on its way to {folder}; set {remedy}")

    def _link(self, door: Path) -> None:
        for name in _SOCKETS:
            ours, theirs = self._places.run / name, door / name
            try:
                is_same = theirs.samefile(ours)
            except FileNotFoundError:
                is_same = False
            if not is_same and ours.exists():
                theirs.unlink(missing_ok=True)
                ours.chmod(0o666)  # who gets as far as to it may speak; the folder around it is closed
                os.link(ours, theirs)


def _own(data: Path, user: User) -> None:
    """A folder of the agent's own, which nobody else's may become."""
    with suppress(FileExistsError):
        data.mkdir(mode=0o700)
        os.chown(data, user.uid, user.gid)
    found = data.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user.uid:
        raise UserTrouble(
            f"{data} is a folder of uid {found.st_uid}; give it to {user.name} (chown -R), or move it away"
        )
