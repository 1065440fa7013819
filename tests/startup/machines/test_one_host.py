"""A fleet on one host pays nothing for the others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.measured import unmeasured

CODE = """
import sys
from contextlib import ExitStack
from startup.cli import down, up
from startup.cli.elsewhere import Elsewhere, greet_ahead
with ExitStack() as stack:
    assert greet_ahead(stack, "a-cluster-that-never-was") is None
    others = Elsewhere(stack, "c", [])
    others.begin_find()
    assert not others.finish().doors
print(sorted({"asyncio", "asyncssh", "cryptography"} & sys.modules.keys()))
"""


@pytest.mark.process
def test_neither_ssh_nor_an_event_loop_is_imported_for_machines_of_this_host() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=unmeasured(os.environ), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
