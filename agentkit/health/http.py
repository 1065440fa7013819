"""The HTTP side of an agent: `/live`, `/ready`, `/startup`, `/health`, `/metrics` on its health port.

uvicorn's protocol and Starlette's routes, on the agent's own loop. Not `uvicorn.Server`: it wakes ten times a second
and costs 1.5 MB an agent; here an idle server wakes never. One request per connection: probes and scrapes come seconds
apart, so kept connections would only hold descriptors and stand in the way of a drain.

A connection lives at most CONNECTION_S, at most MAX_CONNECTIONS are open (the oldest makes room), and a request has at
most MAX_REQUEST_BYTES: slow or hostile clients cost a bounded amount and can't keep a probe out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from agentkit.clock import SYSTEM_CLOCK, Clock
from agentkit.health.checks import Health
from agentkit.health.report import HealthReport, HealthView, describe, is_ready
from agentkit.observe import metrics

__all__ = ["HealthReport", "HealthView", "HttpServer", "application", "describe", "is_ready", "serve"]

#: The queue of connections not yet accepted; a smaller number given to listen() would shrink the node's shared queue.
BACKLOG: Final = 4096
MAX_CONNECTIONS: Final = 128
MAX_REQUEST_BYTES: Final = 16 * 1024
#: From accept to the last byte of the answer, in seconds.
CONNECTION_S: Final = 5.0
#: How long `close` lets answers finish, in seconds.
CLOSE_S: Final = 1.0


async def _live(_: Request) -> Response:
    return JSONResponse({"status": "alive"})


async def _startup(request: Request) -> Response:
    report = _view(request).report()
    return _answer(report.started, {"started": report.started, "phase": report.phase, **_why(report)})


async def _ready(request: Request) -> Response:
    report = _view(request).report()
    takes_calls = is_ready(report)
    return _answer(takes_calls, {"ready": takes_calls, "phase": report.phase, **_why(report)})


async def _health(request: Request) -> Response:
    report = _view(request).report()
    return _answer(report.verdict.health is not Health.FAILING, describe(report))


async def _metrics(request: Request) -> Response:
    return Response(_view(request).metrics(), media_type=metrics.CONTENT_TYPE)


def _view(request: Request) -> HealthView:
    view: HealthView = request.scope["agentkit.view"]
    return view


# Routes, middleware and uvicorn's Config are the same for all agents. Made here, before the zygote forks, they are shared
# memory: made in each child they were 0.9 MB of its own.
_ROUTES: Final = Starlette(
    routes=[
        Route("/live", _live),
        Route("/startup", _startup),
        Route("/ready", _ready),
        Route("/health", _health),
        Route("/metrics", _metrics),
    ]
)
_ROUTES.middleware_stack = _ROUTES.build_middleware_stack()


def application(view: HealthView) -> ASGIApp:
    """The ASGI app over `view`. 200 or 503, and a JSON body that says why:

    - `/live`: 200 whenever the loop answers at all.
    - `/startup`: 200 once started.
    - `/ready`: 200 while it takes calls; degraded still does. 503 while it starts, fails, drains or stops.
    - `/health`: everything there is to say; 503 only when the verdict is failing.
    - `/metrics`: 200, Prometheus text."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["agentkit.view"] = view
        await _ROUTES(scope, receive, send)

    return app


def _why(report: HealthReport) -> dict[str, Any]:
    return {"status": report.verdict.health.value, "reasons": list(report.verdict.reasons)}


def _answer(good: bool, body: Mapping[str, Any]) -> Response:
    return JSONResponse(body, status_code=200 if good else 503)


class _State(ServerState):
    """uvicorn's shared state, with the headers that its Server would renew by a timer made when they are needed."""

    def __init__(self, clock: Clock) -> None:
        self.total_requests = 0
        self.connections = set()
        self.tasks = set()
        #: Oldest first.
        self.open: dict[_Connection, None] = {}
        self.all_closed = asyncio.Event()
        self.all_closed.set()
        self._clock = clock

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        date = formatdate(self._clock.wall_s(), usegmt=True)
        return [(b"date", date.encode("ascii")), (b"connection", b"close")]


class _Connection(HttpToolsProtocol):
    """One connection, one request, bounded in time and bytes."""

    server_state: _State

    def __init__(self, app: ASGIApp, state: _State, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(_CONFIG, state, app_state={}, _loop=loop)
        self.app = app  # not a config of its own for each: copying one touches 50 pages that forks share

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        state = self.server_state
        state.open[self] = None
        state.all_closed.clear()
        self._received = 0
        self._deadline = self.loop.call_later(CONNECTION_S, self.transport.abort)
        if len(state.open) > MAX_CONNECTIONS:
            next(iter(state.open)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        state = self.server_state
        state.open.pop(self, None)
        if not state.open:
            state.all_closed.set()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_REQUEST_BYTES:
            self.transport.abort()
            return
        super().data_received(data)


class HttpServer:
    """A running server. Close it before the loop ends."""

    def __init__(self, server: asyncio.Server, state: _State) -> None:
        self._server = server
        self._state = state

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._state.open)

    def accept_no_more(self) -> None:
        """Whoever connects from now on is another process's to answer, on the same listening socket."""
        self._server.close()

    async def close(self) -> None:
        """Accept no more, let the answers under way finish for up to CLOSE_S, cut the rest.

        The socket that was given to `serve` stays open and listening."""
        self._server.close()
        state = self._state
        for connection in tuple(state.open):
            connection.shutdown()
        try:
            async with asyncio.timeout(CLOSE_S):
                await state.all_closed.wait()
        except TimeoutError:
            for connection in tuple(state.open):
                connection.transport.abort()
            await state.all_closed.wait()
        tasks = tuple(state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _config() -> Config:
    config = Config(
        _ROUTES,
        http=HttpToolsProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        loop="none",
        workers=1,
        log_config=None,
        # Warnings are about what clients send ("Invalid HTTP request received."): theirs to mend, and anybody can send
        # thousands a second.
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    config.load()
    return config


_CONFIG: Final = _config()


async def serve(app: ASGIApp, sock: socket.socket, *, clock: Clock = SYSTEM_CLOCK) -> HttpServer:
    """Serve `app` on a dup of `sock`, bound or already listening, from now on.

    `sock` stays the caller's: it may be shared with other processes, so it is never shut down. Meant for uvloop:
    asyncio accepts and attaches in different turns of the loop, and closing in between strands a connection."""
    state = _State(clock)
    loop = asyncio.get_running_loop()
    own = sock.dup()
    try:
        own.setblocking(False)
        server = await loop.create_server(lambda: _Connection(app, state, loop), sock=own, backlog=BACKLOG)
    except BaseException:
        own.close()
        raise
    return HttpServer(server, state)
