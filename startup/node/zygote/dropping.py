"""In a fresh child of a node that is root: becoming the user that its agent is to run as. There is no way back."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from startup.node import linux


def take_along_secrets(environment: Mapping[str, str], home: str) -> None:
    """Secrets in files that only root can have put there are read now, and handed on in memory; all others the agent reads itself, with its
    own rights: root must not read for a user what that may have linked to. `home`: the node's, for `~`."""
    secrets = json.loads(environment.get("AGENTKIT_SECRETS") or "{}")
    for name, ref in secrets.items():
        if not ref.get("file"):
            continue
        path = Path(home, ref["file"][2:]) if ref["file"].startswith("~/") else Path(ref["file"])
        if is_roots(path):
            fd = os.memfd_create(f"secret-{name}", os.MFD_CLOEXEC)
            os.write(fd, path.read_bytes())
            ref["file"] = f"/proc/self/fd/{fd}"
    if secrets:
        os.environ["AGENTKIT_SECRETS"] = json.dumps(secrets)


def is_roots(path: Path) -> bool:
    """Whether nobody but root can decide what is found there: neither on the way as it is written, nor as links lead it."""
    try:
        places = {place for end in (path, path.resolve(strict=True)) for place in (end, *end.parents)}
        return path.is_absolute() and all(_only_roots(place) for place in places)
    except OSError:
        return False


def drop(uid: int, gid: int, groups: list[int]) -> None:
    """Groups first: who is not root any more can't change them. Nothing that it starts gets more rights, either."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    linux.forbid_new_privileges()
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or set(os.getgroups()) != set(groups):
        raise PermissionError(f"still uid {os.getresuid()}, gid {os.getresgid()}, groups {os.getgroups()}")


def _only_roots(place: Path) -> bool:
    found = place.lstat()
    if found.st_uid != 0:
        return False
    writable = stat.S_IMODE(found.st_mode) & 0o022 and not stat.S_ISLNK(found.st_mode)
    return not writable or bool(found.st_mode & stat.S_ISVTX and stat.S_ISDIR(found.st_mode))
