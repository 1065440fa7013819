"""What is written into cgroups and read from them: against folders that look like them, and this machine's own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from startup.node.limits import cgroup2, cgroups, rlimits
from startup.node.limits.bounds import VARIABLE, choose, foreseen
from startup.node.limits.cgroup1 import Cgroup1
from startup.node.limits.cgroup2 import Cgroup2
from startup.plan.limits import Limits, Usage
from startup.spec.users import user_problem

MIB = 2**20
ALL = Limits(memory_bytes=64 * MIB, request_bytes=32 * MIB, cpu=0.5, pids=99)

MOUNTINFO = """\
25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
32 31 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw,nsdelegate
40 31 0:35 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro shared:18 - cgroup cgroup rw,cpu,cpuacct
41 31 0:36 /with\\040space /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
"""


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def made(folder: Path, *names: str) -> None:
    """The kernel makes these when a folder is made."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def test_mounts_of_both_versions_are_found_with_what_they_show() -> None:
    unified, cpu, pids = cgroups.mounts(MOUNTINFO)
    assert (unified.point, unified.controllers) == (Path("/sys/fs/cgroup/unified"), frozenset())
    assert {"cpu", "cpuacct"} <= cpu.controllers
    assert cgroups.folder_of(unified, "/user.slice/x") == Path("/sys/fs/cgroup/unified/user.slice/x")
    assert cgroups.folder_of(cpu, "/docker/abc/mine") == Path("/sys/fs/cgroup/cpu,cpuacct/mine")
    assert cgroups.folder_of(cpu, "/docker/abcdef") is None
    assert pids.root == "/with space"


def test_version_1_writes_each_limit_where_its_controller_wants_it(tmp_path: Path) -> None:
    bases = {name: tmp_path / name for name in ("pids", "memory", "cpu")}
    made(bases["pids"] / "A.7", "pids.max")
    made(bases["memory"] / "A.7", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes")
    made(bases["cpu"] / "A.7", "cpu.cfs_period_us", "cpu.cfs_quota_us")
    cage = Cgroup1(bases).make("A.7", ALL)
    assert files(cage["pids"]) == {"pids.max": "99"}
    assert files(cage["cpu"]) == {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    assert files(cage["memory"]) == {
        "memory.limit_in_bytes": str(64 * MIB),
        "memory.memsw.limit_in_bytes": str(64 * MIB),
        "memory.soft_limit_in_bytes": str(32 * MIB),
    }


def test_version_1_holds_an_agent_without_limits_by_one_folder(tmp_path: Path) -> None:
    bases = {name: tmp_path / name for name in ("pids", "memory", "cpu")}
    for base in bases.values():
        base.mkdir()
    assert Cgroup1(bases).make("A.7", Limits()) == {"pids": tmp_path / "pids" / "A.7"}
    assert not list(bases["memory"].iterdir())


def test_version_1_tells_peak_kills_and_refusals(tmp_path: Path) -> None:
    (tmp_path / "memory.max_usage_in_bytes").write_text("12345\n")
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (tmp_path / "pids.events").write_text("max 41\n")
    usage = Cgroup1({}).usage({"memory": tmp_path, "pids": tmp_path})
    assert usage == Usage(memory_bytes=12345, oom_kills=2, forks_refused=41)


def test_version_2_writes_all_limits_into_one_folder(tmp_path: Path) -> None:
    made(tmp_path / "A.7", "memory.swap.max", "memory.oom.group", "memory.low", "memory.max", "cpu.max", "pids.max")
    cage = Cgroup2(tmp_path, ("memory", "cpu", "pids")).make("A.7", ALL)
    assert files(cage[""]) == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "memory.low": str(32 * MIB),
        "cpu.max": "50000 100000",
        "pids.max": "99",
    }


def test_version_2_writes_nothing_that_its_controllers_do_not_hold(tmp_path: Path) -> None:
    made(tmp_path / "A.7", "pids.max")
    cage = Cgroup2(tmp_path, ("pids",)).make("A.7", ALL)
    assert files(cage[""]) == {"pids.max": "99"}


def test_a_limit_that_the_kernel_does_not_take_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"memory\.max"):  # an ordinary folder has no such file
        Cgroup2(tmp_path, ("memory",)).make("A.7", Limits(memory_bytes=MIB))
    assert not list(tmp_path.iterdir())


def test_version_2_tells_peak_kills_and_refusals(tmp_path: Path) -> None:
    (tmp_path / "memory.peak").write_text("12345\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 1\n")
    (tmp_path / "pids.events").write_text("max 3\n")
    usage = Cgroup2(tmp_path, ()).usage({"": tmp_path})
    assert usage == Usage(memory_bytes=12345, oom_kills=1, forks_refused=3)
    (tmp_path / "memory.peak").unlink()
    (tmp_path / "memory.current").write_text("54\n")
    assert Cgroup2(tmp_path, ()).usage({"": tmp_path}).memory_bytes == 54


def test_rlimits_are_chosen_when_the_environment_says_so() -> None:
    assert choose("agentkit.x", {VARIABLE: "rlimits"}) == (None, "AGENTKIT_LIMITS=rlimits")
    assert foreseen({VARIABLE: "rlimits"}) == ("rlimits", "AGENTKIT_LIMITS=rlimits")


def test_what_is_foreseen_is_what_a_node_gets_and_nothing_is_left_of_trying() -> None:
    kind, why = foreseen({})
    found, refused = choose(f"agentkit.test.{os.getpid()}", {})
    if found is None:
        assert (kind, why) == ("rlimits", refused)
        return
    assert (found.kind, why) == (kind, "")
    assert all(cgroups.remove({"": base}) for base in found.bases())


@pytest.mark.process
def test_a_process_and_its_child_are_found_held_and_let_go() -> None:
    found, _ = choose(f"agentkit.test.{os.getpid()}", {})
    if found is None:
        assert foreseen({})[0] == "rlimits"  # which the test below is about
        return
    cage = found.make("A.1", Limits(pids=20))
    join = next(iter(cage.values())) / "cgroup.procs"
    with subprocess.Popen(
        ["sh", "-c", f"echo $$ > {join}; echo in; sleep 300 & wait"], stdout=subprocess.PIPE
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"in\n"
        try:
            assert found.find(shell.pid) == cage
            members = cgroups.members(join.parent)
            while len(members) < 2:
                members = cgroups.members(join.parent)
            assert shell.pid in members
            assert not cgroups.remove(cage)  # not while somebody lives in it
            found.forbid_forks(cage)
        finally:
            cgroups.kill_all(cgroups.members(join.parent))
        assert shell.wait() == -signal.SIGKILL
    while cgroups.members(join.parent):
        pass
    assert cgroups.remove(cage)
    assert all(cgroups.remove({"": base}) for base in found.bases())


@pytest.mark.process
def test_what_a_process_and_its_children_use_is_measured_together() -> None:
    code = "import sys; held = b'x' * (40 << 20); print('held', flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", f'exec 3<&0; python3 -c "{code}" <&3'], stdin=pipe, stdout=pipe) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"held\n"
        usage = rlimits.usage(shell.pid)
        assert usage.memory_bytes > 40 * MIB
        assert usage.pids >= 1
    assert rlimits.usage(shell.pid) == Usage()


def in_child(act: Callable[[], str]) -> str:
    """What `act` returns in a forked process, which is then gone."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(tell, act().encode())
        except BaseException as exc:
            os.write(tell, repr(exc).encode())
        finally:
            os._exit(0)
    os.close(tell)
    with open(told) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


@pytest.mark.process
def test_without_cgroups_a_process_gets_no_memory_far_beyond_its_limit() -> None:
    def allocate() -> str:
        rlimits.take_on(rlimits.told(Limits(memory_bytes=16 * MIB)))
        small = bytearray(64 * MIB)
        try:
            bytearray(2048 * MIB)
        except MemoryError:
            return f"{len(small)} and no more"
        return "as much as it liked"

    assert in_child(allocate) == f"{64 * MIB} and no more"


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody without processes")
def test_without_cgroups_who_is_not_root_gets_no_more_processes_than_its_limit() -> None:
    def fork() -> str:
        os.setresuid(54321, 54321, 54321)
        rlimits.take_on(rlimits.told(Limits(pids=5)))
        children = []
        try:
            while len(children) < 50:
                if pid := os.fork():
                    children.append(pid)
                else:
                    signal.alarm(60)
                    signal.pause()
        except OSError as exc:
            return f"{exc.strerror} after {len(children)}"
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return "as many as it liked"

    assert in_child(fork) == "Resource temporarily unavailable after 5"


def test_what_a_cgroup_holds_needs_no_rlimit() -> None:
    assert rlimits.told(ALL, but=("memory", "cpu", "pids")) == {}
    assert set(rlimits.told(ALL, but=("pids",))) == {"data_bytes"}
    assert set(rlimits.told(ALL)) == {"data_bytes", "tasks"}


@pytest.mark.process
def test_version_2_finds_and_lets_go_of_processes_even_without_controllers() -> None:
    """On this machine's own hierarchy, wherever it is."""
    mount = next((found for found in cgroups.mounts() if not found.controllers), None)
    own = mount and cgroups.folder_of(mount, cgroups.own_paths().get("", "/"))
    if own is None or not os.access(own, os.W_OK):
        pytest.skip("no cgroup v2 that we may write to")
    base = own / f"{cgroups.PREFIX}test2.{os.getpid()}"
    base.mkdir()
    found = Cgroup2(base, ())
    cage = found.make("A.1", ALL)
    procs = cage[""] / "cgroup.procs"
    try:
        with subprocess.Popen(["sh", "-c", f"echo $$ > {procs}; echo in; sleep 300"], stdout=subprocess.PIPE) as shell:
            assert shell.stdout is not None
            assert shell.stdout.readline() == b"in\n"
            assert found.find(shell.pid) == cage
            assert shell.pid in cgroups.members(cage[""])
            assert not cgroups.remove(cage)
            while cgroups.members(cage[""]):
                cgroups.kill_all(cgroups.members(cage[""]))
        assert cgroups.remove(cage)
    finally:
        base.rmdir()


class Hierarchy:
    """A folder that looks like a cgroup v2 mount, with us in `path`."""

    def __init__(self, folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = folder
        monkeypatch.setattr(cgroup2, "mounts", lambda: [cgroups.Mount(folder, "/", frozenset())])
        monkeypatch.setattr(cgroup2, "own_paths", lambda: {"": path})

    def cgroup(self, path: str, *, is_root: bool = False, controllers: str = "cpu memory pids") -> Path:
        folder = self.top / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {"cgroup.controllers": controllers, "cgroup.subtree_control": "", "cgroup.procs": ""}.items():
            (folder / name).write_text(text)
        if not is_root:
            (folder / "cgroup.type").write_text("domain")
        return folder


ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="about what root may")


@ONLY_ROOT
def test_the_top_of_a_containers_own_hierarchy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchy = Hierarchy(tmp_path, "/", monkeypatch)
    top = hierarchy.cgroup("")
    base = hierarchy.cgroup("agentkit.c.m")
    found = Cgroup2.open("agentkit.c.m")
    assert found.bases() == [base]
    assert found.holds == ("memory", "cpu", "pids")
    for folder in (top, base):
        assert (folder / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert (top / cgroup2.LEAF).is_dir()


@ONLY_ROOT
@pytest.mark.parametrize("path", ["/user.slice/session-3.scope", "/system.slice/fleet.service"])
def test_root_of_the_whole_machine_goes_to_the_top_where_its_own_cgroup_is_not_its_to_divide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    hierarchy = Hierarchy(tmp_path, path, monkeypatch)
    hierarchy.cgroup("", is_root=True)
    own = hierarchy.cgroup(path[1:])
    assert Cgroup2.foreseen() == tmp_path
    hierarchy.cgroup("agentkit.c.m")
    assert Cgroup2.open("agentkit.c.m").bases() == [tmp_path / "agentkit.c.m"]
    assert not (own / cgroup2.LEAF).exists()


@ONLY_ROOT
def test_a_cgroup_that_nobody_gave_us_is_left_alone_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hierarchy = Hierarchy(tmp_path, "/user.slice/session-3.scope", monkeypatch)
    hierarchy.cgroup("")
    hierarchy.cgroup("user.slice/session-3.scope")
    with pytest.raises(cgroups.Unavailable, match=r"session-3\.scope is not delegated to us; run the node as a unit"):
        Cgroup2.open("agentkit.c.m")


@ONLY_ROOT
def test_a_hierarchy_whose_controllers_are_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchy = Hierarchy(tmp_path, "/", monkeypatch)
    hierarchy.cgroup("", is_root=True, controllers="hugetlb")
    with pytest.raises(cgroups.Unavailable, match="has no `pids` controller, but hugetlb"):
        Cgroup2.open("agentkit.c.m")


@pytest.mark.process
def test_processes_of_a_delegated_folder_move_to_its_leaf() -> None:
    mount = next((found for found in cgroups.mounts() if not found.controllers), None)
    own = mount and cgroups.folder_of(mount, cgroups.own_paths().get("", "/"))
    if own is None or not os.access(own, os.W_OK):
        pytest.skip("no cgroup v2 that we may write to")
    base = own / f"{cgroups.PREFIX}leaf.{os.getpid()}"
    base.mkdir()
    leaf = base / cgroup2.LEAF
    try:
        with subprocess.Popen(
            ["sh", "-c", f"echo $$ > {base}/cgroup.procs; echo in; exec sleep 300"], stdout=subprocess.PIPE
        ) as shell:
            assert shell.stdout is not None
            assert shell.stdout.readline() == b"in\n"
            cgroup2._move_into_leaf(base)
            assert not cgroups.members(base)
            assert shell.pid in cgroups.members(leaf)
            shell.kill()
        while cgroups.members(leaf):
            pass
    finally:
        leaf.rmdir()
        base.rmdir()


@pytest.mark.process
@ONLY_ROOT
def test_who_was_given_no_part_of_any_hierarchy_gets_rlimits_and_is_told_why() -> None:
    def look() -> str:
        os.setresuid(54321, 54321, 54321)
        return "|".join(foreseen({}))

    kind, _, why = in_child(look).partition("|")
    assert kind == "rlimits"
    assert "cgroup v1" in why
    assert "cgroup v2" in why


@pytest.mark.process
@ONLY_ROOT
def test_only_root_starts_agents_as_other_users() -> None:
    def ask() -> str:
        os.setresuid(54321, 54321, 54321)
        return user_problem("nobody")

    assert in_child(ask).startswith("only root starts agents as other users, this is uid 54321")
    assert user_problem("nobody") == ""
    assert user_problem("nobody:no_such_group").startswith("this machine knows no group `no_such_group`")
    assert user_problem("root").startswith("`root` is root")
