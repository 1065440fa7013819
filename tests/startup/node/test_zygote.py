from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from startup.node import procinfo
from startup.node.exits import Exit, ExitWatch
from startup.node.listeners import open_listener
from startup.node.zygote import wire as zygote_wire
from startup.node.zygote.link import ForkFailed, ZygoteLost
from tests.orphans import subreaper
from tests.startup.node.conftest import PATIENCE_S, Hosted, host

pytestmark = pytest.mark.process

SLEEPS = "import time; time.sleep(600)"


@contextlib.asynccontextmanager
async def hosted(folder: Path, preload: tuple[str, ...] = (), **options: object) -> AsyncIterator[Hosted]:
    zygote = host(folder, preload, supervised=True, **options)  # type: ignore[arg-type]
    await zygote.connect()
    try:
        yield zygote
    finally:
        await zygote.close()


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_next_node_inherits_processes_and_live_listening_sockets(zygote: Hosted) -> None:
    with open_listener("127.0.0.1", 0) as listener, open_listener("127.0.0.1", 0) as idle:
        port, idle_port = listener.getsockname()[1], idle.getsockname()[1]
        forked = await zygote.fork("m/a", zygote.script(SLEEPS), {"inbox": listener.fileno(), "http": idle.fileno()})
        assert zygote.link is not None
        await zygote.link.keep("m/asleep", {"inbox": idle.fileno()})
    zygote.link.close()

    link = await zygote.connect()
    running, asleep = link.inventory
    assert (running.key, running.incarnation, running.pid) == ("m/a", 1, forked.pid)
    assert (asleep.key, asleep.pid, list(asleep.listeners)) == ("m/asleep", None, ["inbox"])
    with (
        socket.socket(fileno=running.listeners["inbox"]) as inbox,
        socket.socket(fileno=running.listeners["http"]) as http,
    ):
        assert (inbox.getsockname()[1], http.getsockname()[1]) == (port, idle_port)
        assert not os.get_inheritable(inbox.fileno())
    assert await accepts(port)
    os.close(asleep.listeners["inbox"])
    assert running.pidfd is not None
    signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)
    assert (await zygote.exit_of("m/a")).code == -9


async def test_exits_while_there_is_no_node_are_told_to_the_next(zygote: Hosted) -> None:
    target = zygote.script("open('wait').read(); raise SystemExit(7)")
    os.mkfifo(zygote.folder / "wait")
    forked = await zygote.fork("m/a", target)
    assert zygote.link is not None
    zygote.link.close()
    with open(zygote.folder / "wait", "w"):
        pass
    async with asyncio.timeout(PATIENCE_S):
        while procinfo.stat(forked.pid) is not None:  # reaped, so the zygote has seen it
            await asyncio.sleep(0.01)
    link = await zygote.connect()
    assert link.inventory == ()
    assert zygote.exits["m/a"].code == 7  # already
    link.close()
    zygote.exits.clear()
    await zygote.connect()
    assert zygote.exits["m/a"].code == 7  # again: a node that was killed may not have read it


async def test_sockets_are_forgotten_on_request_and_their_port_is_free(zygote: Hosted) -> None:
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        await zygote.run("m/a", zygote.script("pass"), {"inbox": listener.fileno()})
    assert await accepts(port)  # the zygote's dup
    assert zygote.link is not None
    await zygote.link.forget("m/a")
    await zygote.run("m/b", zygote.script("pass"))  # answered after it
    assert not await accepts(port)


async def test_many_forks_at_once_are_all_told_with_their_exits(zygote: Hosted) -> None:
    target = zygote.script("import os; os._exit(int(os.environ['N']))")
    with open_listener("127.0.0.1", 0) as listener:
        fds = {"inbox-local": listener.fileno(), "inbox": listener.fileno(), "http": listener.fileno()}
        forked = await asyncio.gather(*(zygote.fork(f"m/a{n}", target, fds, env={"N": str(n)}) for n in range(84)))
    assert len({one.pid for one in forked}) == 84
    codes = [(await zygote.exit_of(f"m/a{n}")).code for n in range(84)]
    assert codes == list(range(84))


async def test_inventory_of_more_descriptors_than_fit_in_a_message_arrives_whole(zygote: Hosted) -> None:
    with open_listener("127.0.0.1", 0) as listener:
        assert zygote.link is not None
        for n in range(150):
            await zygote.link.keep(f"m/a{n}", {"inbox": listener.fileno(), "http": listener.fileno()})
    zygote.link.close()
    link = await zygote.connect()
    assert [inherited.key for inherited in link.inventory] == [f"m/a{n}" for n in range(150)]
    fds = [fd for inherited in link.inventory for fd in inherited.listeners.values()]
    assert len(set(fds)) == 300
    zygote_wire.close_all(fds)


async def test_order_longer_than_a_message_is_carried_out(zygote: Hosted) -> None:
    long = "x" * 100_000
    target = zygote.script("import os; print(sum(len(os.environ[f'V{n}']) for n in range(9)))")
    text = await zygote.run("m/a", target, env={f"V{n}": long for n in range(9)})
    assert text == "900000\n"


async def test_orphans_of_agents_become_the_zygotes_children_and_are_reaped(zygote: Hosted) -> None:
    text = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        os.rename("target.py", "printed")
        open("wait").read()
        os._exit(0)
    os._exit(0)
os.wait()
while not os.path.exists("printed"):
    time.sleep(0.01)
"""
    os.mkfifo(zygote.folder / "wait")
    orphan = int(await zygote.run("m/a", zygote.script(text)))
    found = procinfo.stat(orphan)
    assert found is not None
    assert zygote.link is not None
    assert found.ppid == zygote.link.facts.pid
    with open(zygote.folder / "wait", "w"):
        pass
    async with asyncio.timeout(PATIENCE_S):
        while procinfo.stat(orphan) is not None:
            await asyncio.sleep(0.01)


async def test_zygote_has_one_thread_and_its_title(zygote: Hosted) -> None:
    assert zygote.link is not None
    pid = zygote.link.facts.pid
    assert os.listdir(f"/proc/{pid}/task") == [str(pid)]
    assert procinfo.command(pid) == "agentkit: zygote c/m"


async def test_preloaded_module_is_there_in_forks_and_its_change_on_disk_is_noticed(run_folder: Path) -> None:
    (run_folder / "preloaded.py").write_text("import os; PID = os.getpid()")
    with_path = {"PYTHONPATH": str(run_folder)}
    zygote = host(run_folder, ("preloaded",), supervised=True, env=with_path)
    link = await zygote.connect()
    try:
        target = zygote.script("import preloaded; print(preloaded.PID)")
        assert await zygote.run("m/a", target) == f"{link.facts.pid}\n"
        assert list(link.facts.files) == [str(run_folder / "preloaded.py")]
        assert link.facts.stale_files() == []
        os.utime(run_folder / "preloaded.py", ns=(1, 1))
        assert link.facts.stale_files() == [str(run_folder / "preloaded.py")]
    finally:
        await zygote.close()


async def test_module_that_leaves_a_thread_is_refused_by_name_and_not_imported(run_folder: Path) -> None:
    (run_folder / "fine.py").write_text("")
    (run_folder / "threaded.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    )
    zygote = host(run_folder, ("fine", "threaded", "absent"), supervised=True, env={"PYTHONPATH": str(run_folder)})
    link = await zygote.connect()
    try:
        assert link.facts.preload == ("fine",)
        assert link.facts.refused["threaded"] == "importing it left 1 thread behind, which a fork would lose"
        assert link.facts.refused["absent"] == "ModuleNotFoundError: No module named 'absent'"
        assert await zygote.run("m/a", zygote.script("import sys; print('threaded' in sys.modules)")) == "False\n"
        assert len(os.listdir(f"/proc/{link.facts.pid}/task")) == 1
    finally:
        await zygote.close()


async def test_numpy_can_be_preloaded_because_its_threads_are_capped(run_folder: Path) -> None:
    pytest.importorskip("numpy")
    async with hosted(run_folder, ("numpy",)) as zygote:
        assert zygote.link is not None
        assert zygote.link.facts.preload == ("numpy",)
        assert zygote.link.facts.files == {}  # an installed package
        target = zygote.script("import numpy; print(numpy.random.random())")
        assert await zygote.run("m/a", target) != (await zygote.run("m/b", target))


async def test_renewed_zygote_keeps_processes_sockets_and_connection_and_imports_afresh(run_folder: Path) -> None:
    module = run_folder / "versioned.py"
    module.write_text("VERSION = 1")
    zygote = host(run_folder, ("versioned",), supervised=True, env={"PYTHONPATH": str(run_folder)})
    link = await zygote.connect()
    try:
        before = link.facts.pid
        with open_listener("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
            await zygote.fork(
                "m/a", zygote.script("import time; time.sleep(600)", "sleeps.py"), {"inbox": listener.fileno()}
            )
        module.write_text("VERSION = 22")
        assert link.facts.stale_files()
        facts = await link.renew(["versioned"])
        assert (facts.pid, facts.preload, facts.stale_files()) == (before, ("versioned",), [])
        assert await zygote.run("m/b", zygote.script("import versioned; print(versioned.VERSION)")) == "22\n"
        assert await accepts(port)
        signal.pidfd_send_signal(zygote.pidfds[0], signal.SIGTERM)
        assert (await zygote.exit_of("m/a")).code == -15
        assert procinfo.command(before) == "agentkit: zygote c/m"
    finally:
        await zygote.close()


async def test_zygote_without_enough_descriptors_says_what_is_needed(run_folder: Path) -> None:
    zygote = host(run_folder, supervised=True)
    await zygote.connect()
    try:
        assert zygote.link is not None
        resource.prlimit(zygote.process.pid, resource.RLIMIT_NOFILE, (24, 24))
        with open_listener("127.0.0.1", 0) as listener:
            fds = {name: listener.fileno() for name in ("inbox-local", "inbox", "http")}
            with pytest.raises(
                ForkFailed, match=r"out of file descriptors: it may have 24 .* needs about \d+ for \d+ agents"
            ):
                for n in range(20):
                    try:
                        await zygote.fork(f"m/a{n}", zygote.script("pass"), fds)
                    except ForkFailed as error:
                        if "can't be watched" not in str(error):  # it has ended already
                            raise
            for n in range(20):
                await zygote.link.forget(f"m/a{n}")
        await zygote.run("m/after", zygote.script("pass"))
    finally:
        await zygote.close()


async def test_open_orders_fail_and_the_loss_is_told_when_the_zygote_is_killed(zygote: Hosted) -> None:
    assert zygote.link is not None
    os.kill(zygote.process.pid, signal.SIGSTOP)
    order = asyncio.create_task(zygote.link.fork(zygote.order("m/a", zygote.script("pass")), {}))
    await asyncio.sleep(0)
    zygote.process.kill()
    async with asyncio.timeout(PATIENCE_S):
        await zygote.lost.wait()
    with pytest.raises(ForkFailed, match="went away"):
        await order
    with pytest.raises(ZygoteLost):
        await zygote.link.forget("m/a")


@pytest.fixture
def adopting() -> Iterator[None]:
    """As a node does."""
    with subreaper():
        yield


@pytest.mark.usefixtures("adopting")
async def test_processes_of_a_dead_zygote_are_watched_and_reaped_by_the_node(zygote: Hosted) -> None:
    exits: asyncio.Queue[Exit] = asyncio.Queue()
    watch = ExitWatch(exits.put_nowait)
    try:
        forked = await zygote.fork("m/a", zygote.script("open('wait').read(); raise SystemExit(5)"))
        os.mkfifo(zygote.folder / "wait")
        watch.watch(key="m/a", incarnation=1, pid=forked.pid, pidfd=os.dup(forked.pidfd))
        zygote.process.kill()
        async with asyncio.timeout(PATIENCE_S):
            await zygote.lost.wait()
        with open(zygote.folder / "wait", "w"):
            pass
        async with asyncio.timeout(PATIENCE_S):
            exit_ = await exits.get()
        assert (exit_.key, exit_.pid, exit_.code) == ("m/a", forked.pid, 5)
    finally:
        watch.close()
        zygote.process.returncode = -9  # reaped by the watch


async def test_end_of_a_process_that_is_not_our_child_is_told_without_a_code(zygote: Hosted) -> None:
    exits: asyncio.Queue[Exit] = asyncio.Queue()
    watch = ExitWatch(exits.put_nowait)
    try:
        forked = await zygote.fork("m/a", zygote.script("raise SystemExit(5)"))
        watch.watch(key="m/a", incarnation=1, pid=forked.pid, pidfd=os.dup(forked.pidfd))
        async with asyncio.timeout(PATIENCE_S):
            exit_ = await exits.get()
        assert (exit_.pid, exit_.code) == (forked.pid, None)
    finally:
        watch.close()


@pytest.mark.parametrize("data", [b"", b"i\xc1", b"i\x91\xa4fork", b"i\x91\xa1?", b"mxx"])
async def test_garbage_ends_the_strangers_connection_and_nothing_else(zygote: Hosted, data: bytes) -> None:
    def bother() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(PATIENCE_S)
            stranger.connect(str(zygote.options.places.zygote))
            stranger.send(data)
            return stranger.recv(100)

    assert await asyncio.to_thread(bother) == b""
    assert await zygote.run("m/a", zygote.script("print(1)")) == "1\n"


async def test_zygote_that_is_told_to_stop_exits_when_its_last_process_has(zygote: Hosted) -> None:
    forked = await zygote.fork("m/a", zygote.script(SLEEPS))
    assert zygote.link is not None
    await zygote.link.stop()
    zygote.link.close()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await _wait(zygote)
    signal.pidfd_send_signal(forked.pidfd, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        await _wait(zygote)
    assert zygote.process.returncode == 0


async def _wait(zygote: Hosted) -> None:
    while zygote.process.poll() is None:
        await asyncio.sleep(0.01)


async def test_word_to_stop_is_heard_although_an_exit_was_on_its_way_back(zygote: Hosted) -> None:
    """A connection closed with something unread is reset, and the kernel tells that before it tells what was sent."""
    assert zygote.link is not None
    forked = await zygote.fork("m/a", zygote.script("pass"))
    while procinfo.stat(forked.pid) is not None:
        time.sleep(0.01)  # the loop does not run: what the zygote tells of its exit stays unread
    os.kill(zygote.process.pid, signal.SIGSTOP)
    await zygote.link.stop()
    zygote.link.close()
    os.kill(zygote.process.pid, signal.SIGCONT)
    async with asyncio.timeout(PATIENCE_S):
        await _wait(zygote)
    assert zygote.process.returncode == 0
