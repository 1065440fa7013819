"""An agent as a process: what the launcher's fork and `MyAgent.main()` end in. Signals, logging, loop, exit code, command line."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop

from agentkit.agent.base import BaseAgent
from agentkit.agent.error_exporter import last_words
from agentkit.agent.orders import HIBERNATE, WAKE
from agentkit.clock import wall_s
from agentkit.errors import ConfigError, StartupError
from agentkit.observe import log as logs
from agentkit.runtime import AgentRuntime
from agentkit.settings import AgentSettings
from agentkit.transport import adopt
from agentkit.transport.context import close_context
from agentkit.transport.gate import HANDED_OVER, STACKS, SUCCEEDED, Gate
from agentkit.transport.notify import Notifier

log = logs.get_logger("agentkit.main")

#: Exit codes of an agent process that failed.
EXIT_FAILED, EXIT_CONFIG = 1, 2


def run_class(cls: type[BaseAgent], environ: Mapping[str, str] | None = None, *, gate: Gate | None = None) -> int:
    """Run one agent until it is told to stop; its exit code. Takes over signals, logging and the event loop of the process.

    `gate`: it serves beside a predecessor, and what only one may do waits until that is gone."""
    # os.environ itself, not a copy: LISTEN_FDS is taken out of it, so that programs that the agent starts don't see it
    environment: MutableMapping[str, str] = os.environ if environ is None else dict(environ)
    notifier = Notifier.from_environment(environment)
    faulthandler.register(STACKS, all_threads=True, chain=False)
    faulthandler.enable()  # a starved watchdog ends us by SIGABRT: all stacks go to the log first
    try:
        settings = AgentSettings.from_environment(environment, default_name=cls.__name__)
        logs.configure(service=settings.id.name, fmt=settings.log_format, level=settings.log_level)
        listeners = adopt.adopted(environment)
        agent = cls._from_settings(settings, settings.read_secrets())
    except ConfigError as exc:
        return _fail(notifier, str(exc), exc, EXIT_CONFIG)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - an author's __init__ may raise anything
        return _fail(notifier, f"__init__ raised {type(exc).__name__}: {exc}", exc, EXIT_FAILED)
    # Else the Runner installs a handler of its own, which ours replaces at once: 0.2 ms of signal's enumerations and of reprs
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(serve(agent, settings, listeners, notifier, gate))
        finally:
            last_words(agent._error_bus, settings.node_socket, settings.sender)
            close_context()
            notifier.close()
            logging.shutdown()


async def serve(
    agent: BaseAgent,
    settings: AgentSettings,
    listeners: Mapping[str, socket.socket],
    notifier: Notifier,
    gate: Gate | None = None,
) -> int:
    """Run an agent on this loop from start to stop; the exit code. SIGTERM and SIGINT stop it, and are blocked when this returns."""
    try:
        runtime = AgentRuntime(agent, settings, listeners=listeners, notifier=notifier, gate=gate)
    except ConfigError as exc:
        return _fail(notifier, str(exc), exc, EXIT_CONFIG)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_Threads(thread_name_prefix="agent"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runtime.request_stop)
    loop.add_signal_handler(SUCCEEDED, runtime.succeeded)
    loop.add_signal_handler(HANDED_OVER, runtime.handed_over)
    for depth, order in HIBERNATE.items():
        loop.add_signal_handler(order, runtime.deep_sleep.told, depth)
    loop.add_signal_handler(WAKE, runtime.hibernation.nudge, "an operator")
    failure: str
    starting = loop.create_task(runtime.start(), name="start")
    stopped = loop.create_task(runtime.until_stopped(), name="until_stopped")
    try:
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # told to stop while it was starting
            starting.cancel()
            await asyncio.wait((starting,), timeout=settings.grace_s)
            failure = ""
        else:
            starting.result()
            log.info(
                "agent.ready",
                port=runtime.port,
                health_port=runtime.health_port,
                took_s=round(wall_s() - runtime.start_time, 3),
            )
            failure = await stopped
    except (StartupError, ConfigError) as exc:
        failure = str(exc)
        log.error("agent.start_failed", why=failure, exc_info=exc.__cause__ or exc)
    except (Exception, asyncio.CancelledError) as exc:
        failure = f"the start failed: {type(exc).__name__}: {exc}"
        log.error("agent.start_failed", why=failure, exc_info=exc)
    finally:
        stopped.cancel()
    if failure:
        notifier.send({"X_AGENTKIT_FAILED": failure})
    await runtime.stop()
    # The loop takes its handlers along; a signal that comes again from here on would be a KeyboardInterrupt in the clean-up
    signal.pthread_sigmask(
        signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, SUCCEEDED, HANDED_OVER, *HIBERNATE.values(), WAKE)
    )
    log.info("agent.stopped", failure=failure or None)
    return EXIT_FAILED if failure else runtime.deep_sleep.exit_code


def main(cls: type[BaseAgent]) -> int:
    """The command line of one agent's own file. Ends the process even when threads of the author's are left."""
    parser = argparse.ArgumentParser(description=(cls.__doc__ or cls.__name__).split("\n")[0])
    parser.add_argument("--name", help=f"its name (default: AGENT_NAME, else {cls.__name__})")
    parser.add_argument("--port", type=int, help="where its inbox listens (default: PORT, else the kernel chooses)")
    parser.add_argument(
        "--health-port", type=int, help="where health and metrics are (default: HEALTH_CHECK_PORT, else nowhere)"
    )
    parser.add_argument("--config", help="its config: a JSON object, or the path of a JSON file")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=tcp://HOST:PORT", help="where another agent is"
    )
    options = parser.parse_args()
    environ = os.environ
    given = {"AGENT_NAME": options.name, "PORT": options.port, "HEALTH_CHECK_PORT": options.health_port}
    environ.update({key: str(value) for key, value in given.items() if value is not None})
    try:
        if options.config:
            environ["AGENT_CONFIG"] = _config_text(options.config)
        if options.peer:
            environ["AGENTKIT_PEERS"] = json.dumps(dict(_peer(text) for text in options.peer))
        code = run_class(cls)
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        code = EXIT_CONFIG
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not sys.exit: it would wait for threads that nobody ends


class _Threads(ThreadPoolExecutor):
    """The loop's threads for `asyncio.to_thread`. The loop waits for them when it closes; a thread that hangs must not keep a
    stopped agent alive."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - whatever is asked for
        super().shutdown(wait=False, cancel_futures=True)


def _config_text(option: str) -> str:
    if option.lstrip().startswith("{"):
        return option
    try:
        return Path(option).read_text()
    except OSError as exc:
        raise ConfigError(at="--config", got=option, want="a JSON object or a readable file", fix=str(exc)) from exc


def _peer(text: str) -> tuple[str, str]:
    name, equals, endpoint = text.partition("=")
    if not equals or "://" not in endpoint:
        raise ConfigError(at="--peer", got=text, want="NAME=tcp://HOST:PORT")
    return name, endpoint


def _fail(notifier: Notifier, reason: str, exc: BaseException, code: int) -> int:
    log.error("agent.start_failed", why=reason, exc_info=exc)
    notifier.send({"X_AGENTKIT_FAILED": reason})
    return code
