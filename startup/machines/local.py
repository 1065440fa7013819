"""Starts the nodes of this host's machines that have none: one boot process for all, begun before anybody knows what to order.

A fresh Python takes 0.4 s to import what agents need. `up` starts it first of all, checks the file meanwhile, then either
orders the machines on its standard input or closes that, and it ends without having done anything.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from agentkit.directory.locate import run_root
from agentkit.errors import ConfigError, StartupError
from startup.node.launch import boot_command, boot_environment
from startup.node.options import EXIT_ALREADY_RUNS, EXIT_UNFIT, BootOptions
from startup.node.paths import state_root

#: How long the boot process may take to import and fork.
BOOTS_WITHIN_S: Final = 60.0


class Boot:
    """One boot process that waits for its order. A context manager: whatever was not ordered ends."""

    def __init__(self, python: str = sys.executable) -> None:
        options = BootOptions(run_root=str(run_root()), state_root=str(state_root()), from_stdin=True)
        reading, self._order = os.pipe()
        self._said = os.memfd_create("agentkit-boot")  # a pipe would be kept open by the nodes
        # posix_spawn and not subprocess, which takes 20 ms to import: it is the first thing that `up` does
        self._pid = os.posix_spawn(
            python,
            [python, *boot_command(options)[1:]],
            boot_environment(),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, source, target)
                for source, target in ((reading, 0), (self._said, 1), (self._said, 2))
            ],
            setsid=True,  # Ctrl-C is for the command, which then decides
        )
        os.close(reading)
        self._exit_code: int | None = None

    def order(self, cluster: str, machines: Sequence[str], *, file: str = "", preload: Sequence[str] = ()) -> None:
        """Have nodes forked for these machines; returns at once. `finish` waits for them."""
        order = {"cluster": cluster, "machines": list(machines), "file": file, "preload": list(preload)}
        with suppress(BrokenPipeError):  # it has died; `finish` says why
            os.write(self._order, json.dumps(order).encode())
        os.close(self._order)
        self._order = -1

    def finish(self) -> None:
        """Until the nodes are forked. ConfigError when a machine's folders are unfit, StartupError when it failed otherwise."""
        code = self._wait(BOOTS_WITHIN_S)
        if code is None:
            os.kill(self._pid, signal.SIGKILL)
            self._wait(None)
            raise StartupError(f"the boot process did not get ready within {BOOTS_WITHIN_S:g} s: {self._words()}")
        if code in (0, EXIT_ALREADY_RUNS):  # somebody else's `up` was faster: its nodes are as good
            return
        if code == EXIT_UNFIT:
            raise ConfigError(at="node", got=self._words(), want="folders for sockets and state that are ours")
        raise StartupError(f"nodes could not be started (exit {code}): {self._words()}")

    def close(self) -> None:
        """Ends it when nothing was ordered; what was ordered is carried out, whoever waits for it."""
        if self._order >= 0:
            os.close(self._order)
            with suppress(ProcessLookupError):  # it would notice only after its imports
                os.kill(self._pid, signal.SIGKILL)
            self._wait(None)
        os.close(self._said)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, timeout_s: float | None) -> int | None:
        """Its exit code; None when it still runs after `timeout_s`."""
        if self._exit_code is None:
            pidfd = os.pidfd_open(self._pid)
            try:
                if select.select([pidfd], [], [], timeout_s)[0]:
                    self._exit_code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            finally:
                os.close(pidfd)
        return self._exit_code

    def _words(self) -> str:
        size = os.fstat(self._said).st_size
        return os.pread(self._said, size, 0).decode("utf-8", "replace").strip() or "it said nothing"
