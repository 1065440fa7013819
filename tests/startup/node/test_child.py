from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from typing import Any

import pytest

from startup.node.listeners import open_listener
from tests.startup.node.conftest import Hosted

pytestmark = pytest.mark.process


async def test_environment_is_exactly_what_was_ordered(zygote: Hosted) -> None:
    target = zygote.script("import json, os; print(json.dumps(dict(os.environ)))")
    order = zygote.order("m/a", target)
    found = json.loads(await zygote.run("m/a", target, env={"X": "ü=\n1"}))
    assert found == dict(order.env) | {"X": "ü=\n1", "AGENTKIT_INCARNATION": "2"}


async def test_descriptors_are_stdio_and_the_listeners_in_order(zygote: Hosted) -> None:
    text = """
import json, os, socket
fds = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in sorted(os.listdir("/proc/self/fd"), key=int)
       if os.path.exists(f"/proc/self/fd/{fd}")}
ports = [socket.socket(fileno=os.dup(fd)).getsockname()[1] for fd in (3, 4)]
print(json.dumps([fds, ports, os.environ["LISTEN_FDS"], os.environ["LISTEN_FDNAMES"], int(os.environ["LISTEN_PID"]) == os.getpid()]))
"""
    with open_listener("127.0.0.1", 0) as first, open_listener("127.0.0.1", 0) as second:
        # two others are kept by the zygote: they must not be seen
        await zygote.run(
            "m/other", zygote.script("pass", "other.py"), {"inbox": first.fileno(), "http": second.fileno()}
        )
        found = await zygote.run("m/a", zygote.script(text), {"http": second.fileno(), "inbox-local": first.fileno()})
        fds, ports, count, names, is_for_us = json.loads(found)
        assert ports == [second.getsockname()[1], first.getsockname()[1]]
    assert list(fds) == ["0", "1", "2", "3", "4"]
    assert fds["0"] == "/dev/null"
    assert fds["1"] == fds["2"] == str(zygote.log("m/a"))
    assert (count, names, is_for_us) == ("2", "http:inbox-local", True)


async def test_process_is_its_own_session_with_default_signals_limits_and_title(zygote: Hosted) -> None:
    text = """
import json, os, resource, signal, random
print(json.dumps({
    "session": os.getsid(0) == os.getpid() == os.getpgid(0),
    "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "handlers": {s.name: str(signal.getsignal(s)) for s in signal.Signals if signal.getsignal(s) not in (signal.SIG_DFL, None)},
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "umask": os.umask(0), "cwd": os.getcwd(), "affinity": sorted(os.sched_getaffinity(0)),
    "title": open("/proc/self/cmdline").read().rstrip("\\0"), "random": random.random(),
}))
"""
    cpu = min(os.sched_getaffinity(0))
    target = zygote.script(text)
    found = json.loads(await zygote.run("m/a", target, cpu_affinity=(cpu,), nofile=500, umask=0o027))
    drawn = found.pop("random")
    assert found.pop("handlers").keys() == {"SIGINT", "SIGPIPE"}
    assert found == {
        "session": True,
        "mask": 0,
        "core": 0,
        "nofile": 500,
        "umask": 0o027,
        "cwd": str(zygote.folder),
        "affinity": [cpu],
        "title": "agentkit: agent c/m/a",
    }
    again = json.loads((await zygote.run("m/b", target)).splitlines()[-1])
    assert again["random"] != drawn
    assert again["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # not what the zygote raised its own to


async def test_modules_of_the_project_come_first_on_the_path(zygote: Hosted) -> None:
    (zygote.folder / "json.py").write_text("HERE = True")
    text = "import sys; sys.modules.pop('json', None); import json; print(json.HERE, sys.path[1])"
    (zygote.folder / "sub").mkdir()
    target = zygote.script(text, "sub/target.py")
    assert await zygote.run("m/a", target, sys_path=(str(zygote.folder),)) == f"True {zygote.folder}\n"


async def test_command_gets_environment_descriptors_and_arguments(zygote: Hosted) -> None:
    code = (
        "import os, sys, socket; port = socket.socket(fileno=3).getsockname()[1];"
        " print(sys.argv[1:], os.environ['X'], port, sorted(os.listdir('/proc/self/fd')))"
    )
    with open_listener("127.0.0.1", 0) as listener:
        target = {"type": "program", "script": None, "argv": (sys.executable, "-c", code, "a b")}
        text = await zygote.run("m/a", target, {"inbox": listener.fileno()}, env={"X": "1"})
        assert text.startswith(f"['a b'] 1 {listener.getsockname()[1]} ['0', '1', '2', '3'")


async def test_command_that_does_not_exist_exits_127_with_the_reason_in_its_log(zygote: Hosted) -> None:
    target = {"type": "program", "script": None, "argv": ("no-such-command-here",)}
    text = await zygote.run("m/a", target)
    assert zygote.last.code == 127
    assert "no-such-command-here" in text
    assert "No such file" in text
    (zygote.folder / "plain.txt").write_text("")
    await zygote.run("m/b", {"type": "program", "script": None, "argv": (str(zygote.folder / "plain.txt"),)})
    assert zygote.last.code == 126


async def test_reason_of_a_failed_import_is_told_to_the_node_after_its_phases(zygote: Hosted) -> None:
    (zygote.folder / "broken.py").write_text("x = 1\nraise KeyError('setting')\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as node:
        node.bind(str(zygote.folder / "n"))
        target = {"type": "agent", "module": None, "script": str(zygote.folder / "broken.py"), "cls": None}
        text = await zygote.run("m/a", target, env={"NOTIFY_SOCKET": str(zygote.folder / "n")})
        told = [node.recv(4096).decode() for _ in range(2)]
    assert zygote.last.code == 1
    assert "Traceback" in text
    assert told[0] == "X_AGENTKIT_PHASE=importing"
    assert told[1] == (
        f"X_AGENTKIT_FAILED=import of {zygote.folder}/broken.py failed: KeyError: 'setting' ({zygote.folder}/broken.py:2)"
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('no')", 1),
        ("1/0", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
    ],
)
async def test_exit_code_of_a_script_is_what_python_would_give(zygote: Hosted, text: str, code: int) -> None:
    await zygote.run("m/a", zygote.script(text))
    assert zygote.last.code == code
    assert zygote.last.maxrss_bytes > 1_000_000


async def test_script_runs_as_main_and_its_threads_and_atexit_are_waited_for(zygote: Hosted) -> None:
    text = """
import atexit, sys, threading
def work():
    started.wait()
    print("thread", __name__, sys.argv)
started = threading.Event()
atexit.register(print, "atexit")
threading.Thread(target=work).start()
threading.Timer(0.05, started.set).start()
"""
    assert await zygote.run("m/a", zygote.script(text)) == f"thread __main__ ['{zygote.folder}/target.py']\natexit\n"


async def test_secrets_marked_as_env_come_from_file_or_the_nodes_environment(zygote: Hosted) -> None:
    (zygote.folder / "token").write_text("s3cret\n")
    refs = {
        "A": {"file": str(zygote.folder / "token"), "env": None, "as_env": True},
        "B": {"file": None, "env": "HOME", "as_env": True},
        "C": {"file": str(zygote.folder / "token"), "env": None, "as_env": False},
    }
    text = "import os; print(os.environ['A'], os.environ['B'], os.environ.get('C'))"
    found = await zygote.run("m/a", zygote.script(text), env={"AGENTKIT_SECRETS": json.dumps(refs)})
    assert found == f"s3cret {os.environ['HOME']} None\n"


async def test_process_runs_on_without_a_log_when_there_can_be_none(zygote: Hosted) -> None:
    target = zygote.script("print('lost'); open('made', 'w').close()")
    await zygote.fork("m/a", target, log_path=str(zygote.folder / "not" / "there.log"))
    assert (await zygote.exit_of("m/a")).code == 0
    assert (zygote.folder / "made").exists()


async def test_forked_process_can_be_killed_at_once(zygote: Hosted) -> None:
    forked = await zygote.fork("m/a", zygote.script("import time; time.sleep(60)"))
    signal.pidfd_send_signal(forked.pidfd, signal.SIGTERM)
    assert (await zygote.exit_of("m/a")).code == -signal.SIGTERM


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cwd": "/no/such/folder"}, "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/folder'"),
        ({"cpu_affinity": (9999,)}, "cpu_affinity: CPU 9999; there are "),
        (
            {"env": {"AGENTKIT_SECRETS": '{"TOKEN": {"env": "NOT_SET_ANYWHERE", "as_env": true}}'}},
            "secret TOKEN: the node's environment has no NOT_SET_ANYWHERE; set it before `up`",
        ),
    ],
)
async def test_order_that_can_not_be_carried_out_says_why_to_log_and_node(
    zygote: Hosted, changes: dict[str, Any], reason: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as node:
        node.bind(str(zygote.folder / "n"))
        env = changes.pop("env", {}) | {"NOTIFY_SOCKET": str(zygote.folder / "n")}
        text = await zygote.run("m/a", zygote.script("pass"), env=env, **changes)
        told = node.recv(4096).decode()
    assert zygote.last.code == 1
    assert reason in text
    assert told.startswith("X_AGENTKIT_FAILED=could not be set up: ")
    assert reason in told
