"""POSTs of JSON to addresses from the fleet file: on threads of their own, few at a time, with a time limit, never waited for.

What can't be delivered is tried once more, then given up and counted. Addresses may hold tokens: only their host is ever shown."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import IO, Any, Final, NoReturn
from urllib.parse import urlsplit

from agentkit._version import VERSION
from agentkit.observe.log import get_logger

log = get_logger("node.webhooks")

#: Time limit of one attempt, in seconds: for each step of it (connect, send, first byte of the answer).
LIMIT_S: Final = 5.0
#: Pause before the second attempt, in seconds.
AGAIN_S: Final = 1.0
#: POSTs that wait or are under way; above that they are dropped.
MAX_WAITING: Final = 100
#: Addresses that are spoken with at the same time: one that hangs must not keep the others.
THREADS: Final = 4


class Webhooks:
    """`close` gives up what waits."""

    def __init__(self, *, limit_s: float = LIMIT_S, again_s: float = AGAIN_S) -> None:
        self.delivered = self.failed = self.dropped = 0
        self._limit_s = limit_s
        self._again_s = again_s
        self._lock = Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._waiting = 0
        self._is_closed = False

    def post(self, url: str, document: Mapping[str, Any]) -> bool:
        """Begin to deliver `document`; False when too many wait already. Returns at once."""
        with self._lock:
            if self._is_closed or self._waiting >= MAX_WAITING:
                self.dropped += 1
                return False
            self._waiting += 1
            if self._threads is None:
                self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="webhook")
            delivery = self._threads.submit(self._deliver, url, json.dumps(document, default=str).encode())
        delivery.add_done_callback(self._done)
        return True

    def close(self) -> None:
        """Nothing new is begun; what is under way ends within its time limit, and is not waited for."""
        with self._lock:
            self._is_closed = True
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, delivery: Future[None]) -> None:
        with self._lock:
            self._waiting -= 1
        if not delivery.cancelled() and (failure := delivery.exception()) is not None:
            log.error("webhook.failed", exc_info=failure)

    def _deliver(self, url: str, body: bytes) -> None:
        host = urlsplit(url).hostname
        why = ""
        for attempt in (1, 2):
            try:
                self._attempt(url, body)
            except (OSError, ValueError, urllib.error.URLError) as exc:
                why = f"{type(exc).__name__}: {exc}".replace(url, "(its address)")
            else:
                self.delivered += 1
                return
            if attempt == 1 and not self._is_closed:
                time.sleep(self._again_s)
        self.failed += 1
        log.warning("webhook.not_delivered", host=host, why=why)

    def _attempt(self, url: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": f"agentkit/{VERSION}"}
        request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - http or https: the file was checked
        with _OPENER.open(request, timeout=self._limit_s):
            pass  # the answer's status is all that matters; errors above 299 are raised


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body, and perhaps at somebody else's."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> NoReturn:
        raise urllib.error.HTTPError(
            req.full_url, code, f"{msg}: redirected to {urlsplit(newurl).hostname}", headers, fp
        )


_OPENER: Final = urllib.request.build_opener(_NoRedirects)
