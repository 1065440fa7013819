"""What a fork server does once for all of its children."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import BaseModel

from agentkit import BaseAgent, rpc
from agentkit.rehearsal import prepare

REHEARSED = """
import json, os, signal
import agentkit.main, agentkit.rehearsal

def facts():
    fds = sorted(os.listdir("/proc/self/fd"))
    handlers = [signal.getsignal(number).__class__.__name__ for number in (signal.SIGINT, signal.SIGTERM)]
    return {
        "threads": len(os.listdir("/proc/self/task")), "fds": fds, "handlers": handlers,
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "environment": dict(os.environ),
    }

lived = []
serve = agentkit.main.serve

async def witnessed(*args):
    lived.append(await serve(*args))
    return lived[0]

agentkit.main.serve = witnessed
before = facts()
agentkit.rehearsal.rehearse()
print(json.dumps([before, facts(), lived]))
"""


class Named(BaseModel):
    name: str


class Namer(BaseAgent):
    @rpc
    async def name_it(self, name: str) -> Named:
        return Named(name=name)

    @rpc
    async def odd(self, value: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Can't be prepared."""


@pytest.mark.process
def test_a_rehearsal_plays_a_life_to_its_end_and_leaves_nothing_that_a_fork_would_inherit() -> None:
    done = subprocess.run([sys.executable, "-c", REHEARSED], capture_output=True, text=True, timeout=60, check=True)
    before, after, lived = json.loads(done.stdout)
    assert lived == [0], done.stderr
    assert after == before
    assert after["threads"] == 1


def test_a_prepared_class_needs_nothing_made_at_its_first_call() -> None:
    prepare(Namer)
    made = vars(Namer.methods["name_it"])
    assert {"arguments", "result", "_validate"} <= made.keys()
    assert Namer.methods["name_it"].check({"name": "x"}) == {"name": "x"}
