"""Agents that run as another user than their node, which is root: what they can do, and what they can't."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import pytest

from startup.plan.phase import Phase
from startup.spec.users import user_of
from tests.faults.scratch import Scratch, is_alive, kill, until

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root starts agents as other users"),
]

NOBODY = "nobody"

AGENTS = '''
    from __future__ import annotations
    import os, subprocess, sys
    from agentkit import BaseAgent, Delivery, Event, rpc, subscribe
    from startup.control import NodeConnection

    class LowlySaid(Event, topic="lowly.said"):
        who: str

    class ProudSaid(Event, topic="proud.said"):
        who: str

    class Lowly(BaseAgent):
        """Tells what it is and what it may."""
        @rpc
        def is_(self) -> dict:
            status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
            return {
                "uids": list(os.getresuid()), "gids": list(os.getresgid()), "groups": os.getgroups(),
                "capabilities": status["CapEff"].strip(), "no_new_privs": status["NoNewPrivs"].strip(),
                "home": os.environ["HOME"], "secrets": dict(self.secrets), "data_dir": str(self.data_dir),
            }

        @rpc
        def becomes_root(self) -> str:
            for act in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
                try:
                    act()
                    return "root again"
                except PermissionError:
                    pass
            return "refused"

        @rpc
        def write(self, text: str) -> str:
            (self.data_dir / "own").write_text(text)
            return (self.data_dir / "own").read_text()

        @rpc
        def ask(self, operation: str, arguments: dict) -> str:
            """Of the node, as an operator would."""
            try:
                with NodeConnection.connect(os.environ["AGENTKIT_DOOR"]) as connection:
                    return f"ok {connection.ask(operation, **arguments)}"
            except Exception as exc:
                return f"{getattr(exc, 'code', type(exc).__name__)}: {exc}"

        @rpc
        def reads(self, path: str) -> str:
            try:
                return f"read {len(os.listdir(path)) if os.path.isdir(path) else len(open(path).read())}"
            except OSError as exc:
                return exc.strerror

        @rpc
        async def publishes(self) -> None:
            await self.publish("lowly.said", {"who": self.name})

        @subscribe("proud.said")
        async def hears(self, event: Delivery) -> None:
            print("heard", event, flush=True)

        @rpc
        async def reports(self) -> None:
            self.report_error("warning", "a complaint of nobody's")

    class Proud(BaseAgent):
        """Runs as root."""
        @rpc
        async def greets(self) -> dict:
            await self.publish("proud.said", {"who": self.name})
            return await self.call("Lowly", "is_")

        @subscribe("lowly.said")
        async def hears(self, event: Delivery) -> None:
            print("heard", event, flush=True)
'''


@pytest.fixture
def fleet(fleet: Scratch) -> Scratch:
    fleet.folder.chmod(0o755)  # else nobody could come to the project
    fleet.python("lowly.py", AGENTS)
    return fleet


def write(fleet: Scratch, **agents: dict[str, object]) -> None:
    """Imported in the zygote: Python itself may lie where only root can read."""
    fleet.write(
        agents, preload=["lowly", "agentkit.events.route", "agentkit.events.receiver", "agentkit.events.publisher"]
    )


def lowly(**more: object) -> dict[str, object]:
    return {"agent": "lowly:Lowly", "user": NOBODY, **more}


def test_an_agent_runs_as_its_user_and_stays_it(fleet: Scratch) -> None:
    secret, readable = fleet.folder / "secret", fleet.folder / "readable"
    secret.write_text("for root and Lowly\n")
    secret.chmod(0o600)
    readable.write_text("for all\n")
    secrets = {"HIDDEN": {"file": str(secret)}, "OPEN": {"file": str(readable)}}
    write(fleet, Lowly=lowly(secrets=secrets), Proud={"agent": "lowly:Proud"})
    fleet.up()
    told, nobody = fleet.call("Proud", "greets"), pwd.getpwnam(NOBODY)
    assert told["uids"] == [nobody.pw_uid] * 3
    assert told["gids"] == [nobody.pw_gid] * 3
    assert told["groups"] == list(user_of(NOBODY).groups)
    assert int(told["capabilities"], 16) == 0
    assert told["no_new_privs"] == "1"
    assert told["home"] == nobody.pw_dir
    assert told["secrets"] == {"HIDDEN": "for root and Lowly", "OPEN": "for all"}
    assert fleet.call("Lowly", "becomes_root") == "refused"
    assert fleet.call("Lowly", "write", text="mine") == "mine"
    assert Path(told["data_dir"]).stat().st_uid == nobody.pw_uid
    assert fleet.call("Lowly", "reads", path=str(secret)) == "Permission denied"
    assert fleet.call("Lowly", "reads", path=str(fleet.place("m").state)) == "Permission denied"
    assert fleet.call("Lowly", "reads", path=str(fleet.place("m").run)) == "Permission denied"
    assert "heard" in until(lambda: (log := fleet.log("Lowly")) and "heard" in log and log)


def test_it_speaks_with_its_node_as_an_agent_and_not_as_an_operator(fleet: Scratch) -> None:
    write(fleet, Lowly=lowly(), Proud={"agent": "lowly:Proud"})
    fleet.up()
    for operation in (
        "propose",
        "restart",
        "stop_node",
        "status",
        "lend",
        "logs",
        "errors",
        "revision",
        "keys_add",
        "watch",
    ):
        assert fleet.call("Lowly", "ask", operation=operation, arguments={}).startswith("forbidden: "), operation
    proud = fleet.rows()["Proud"]
    for operation in ("attach", "report", "lead", "resign"):
        arguments = {"id": "m/Proud", "incarnation": int(proud.incarnation)}
        told = fleet.call("Lowly", "ask", operation=operation, arguments=arguments)
        assert told.startswith("forbidden: m/Proud is no agent of uid"), told
    assert fleet.call("Lowly", "ask", operation="names", arguments={}).startswith("ok ")
    fleet.call("Lowly", "reports")
    until(lambda: "a complaint of nobody's" in fleet.run("errors", "--json").out)
    fleet.call("Lowly", "publishes")
    until(lambda: "heard" in fleet.log("Proud"))
    assert fleet.rows()["Lowly"].phase is Phase.READY


def test_it_is_known_to_the_next_node(fleet: Scratch) -> None:
    write(fleet, Lowly=lowly(), Proud={"agent": "lowly:Proud"})
    fleet.up()
    before, node = fleet.rows()["Lowly"], fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)
    assert fleet.wait_phase(Phase.READY, "Lowly")["Lowly"].pid == before.pid
    fleet.call("Lowly", "reports")
    until(lambda: "a complaint of nobody's" in fleet.run("errors", "--json").out)
    assert fleet.run("restart", "Lowly").code == 0
    assert fleet.rows()["Lowly"].phase is Phase.READY
    assert fleet.run("down").code == 0
    assert not is_alive(int(before.pid or 0))
    assert not (fleet.run_root / ".users").exists()


def test_a_program_runs_as_its_user_too(fleet: Scratch) -> None:
    program = {"agent": None, "command": ["sh", "-c", "id -un; id -Gn; sleep 300"], "ready": {"log": "nogroup|nobody"}}
    fleet.write({"Program": program | {"user": NOBODY}})
    fleet.up()
    assert fleet.log("Program").splitlines()[0] == NOBODY


def test_a_stranger_is_not_let_in_by_whatever_door(fleet: Scratch) -> None:
    """A user that no agent runs as, in the group of one."""
    write(fleet, Lowly=lowly())
    fleet.up()
    (door,) = (fleet.run_root / ".users" / fleet.cluster / "m").iterdir()
    told, tell = os.pipe()
    if not (pid := os.fork()):
        try:
            os.setgroups([])
            os.setresgid(*[pwd.getpwnam(NOBODY).pw_gid] * 3)
            os.setresuid(12345, 12345, 12345)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(door / "node.sock"))
                sock.settimeout(30)
                try:
                    said = sock.recv(100)
                except ConnectionError:
                    said = b""
            os.write(tell, said or b"cut off")
        except BaseException as exc:
            os.write(tell, repr(exc).encode())
        finally:
            os._exit(0)
    os.close(tell)
    with open(told, "rb") as answer:
        assert answer.read() == b"cut off"
    os.waitpid(pid, 0)
    assert "control.stranger" in fleet.node_log()


@pytest.mark.parametrize(
    ("user", "said"),
    [("no_such_user", "knows no user `no_such_user`"), ("nobody:no_such", "knows no group"), ("root", "is root")],
)
def test_a_user_that_can_not_be_had_is_refused_with_its_line(fleet: Scratch, user: str, said: str) -> None:
    fleet.write({"Lowly": lowly(user=user)})
    for command in ("validate", "up"):
        result = fleet.run(command, "fleet.yaml")
        assert result.code == 2
        assert said in result.out + result.err
        assert "fleet.yaml:" in result.out + result.err


def test_a_folder_that_is_closed_to_the_user_is_named(fleet: Scratch) -> None:
    closed = fleet.folder / "closed"
    closed.mkdir(mode=0o700)
    fleet.more_environment["AGENTKIT_STATE_DIR"] = str(closed / "state")
    fleet.write({"Lowly": lowly(restart={"policy": "never"})})
    assert fleet.run("up", "fleet.yaml").code == 1
    reason = fleet.wait_phase(Phase.FAILED, "Lowly")["Lowly"].reason
    assert reason.startswith(f"{closed} is closed to nobody, on its way to ")
    assert "set AGENTKIT_STATE_DIR to a folder" in reason
