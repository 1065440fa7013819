"""Users of this machine that agents run as, by the names that a fleet file gives them."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from agentkit.errors import AgentkitError


class UserTrouble(AgentkitError):
    """An agent can't run as that user; the sentence says why, and what to do."""


@dataclass(frozen=True, slots=True)
class User:
    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]  #: all of them, `gid` too
    home: str

    def may_pass(self, folder: Path) -> bool:
        """Whether it may enter what lies in `folder`, by its mode; access lists are not looked at."""
        found = folder.stat()
        bit = 0o100 if found.st_uid == self.uid else 0o010 if found.st_gid in self.groups else 0o001
        return bool(found.st_mode & bit)

    def closed(self, path: Path) -> Path | None:
        """The first folder on the way into `path` that it may not pass; None when there is none."""
        for folder in (*reversed(path.parents), path):
            if not folder.exists():
                return None
            if not self.may_pass(folder):
                return folder
        return None


def user_of(text: str) -> User:
    """`name` or `name:group`. UserTrouble: this machine does not know one of them, we may not become it, or it is root by another name."""
    name, _, group = text.partition(":")
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise UserTrouble(
            f"this machine knows no user `{name}`; add it (useradd --system {name}), or change `user`"
        ) from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else found.pw_gid
    except KeyError:
        raise UserTrouble(f"this machine knows no group `{group}`; add it (groupadd), or change `group`") from None
    if os.geteuid():
        uid = os.geteuid()
        raise UserTrouble(f"only root starts agents as other users, this is uid {uid}; leave `user` out, or be root")
    if found.pw_uid == 0 or gid == 0:
        raise UserTrouble(
            f"`{text}` is root, or of its group; leave `user` out: agents of a node that is root are root"
        )
    groups = {gid, *os.getgrouplist(name, gid)} - {0}
    return User(name, found.pw_uid, gid, tuple(sorted(groups)), found.pw_dir)


def user_problem(text: str) -> str:
    """Why `user_of` would refuse; "" when it would not."""
    try:
        user_of(text)
    except UserTrouble as exc:
        return str(exc)
    return ""
