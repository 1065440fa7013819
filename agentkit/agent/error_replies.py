"""What a handler raised, in the words that its caller gets."""

from __future__ import annotations

import traceback
from typing import Any

from agentkit.errors import CallError, HandlerError


def as_told(error: CallError) -> CallError:
    """A handler's own CallError crosses as itself, but never claims that nothing ran: something did."""
    if error.retry_safe:
        return type(error)(error.message, retry_safe=False, details=error.details)
    return error


def explained(exc: BaseException, *, shows_traceback: bool) -> CallError:
    """Anything else, by its type and its text."""
    details: dict[str, Any] = {"type": type(exc).__qualname__}
    if shows_traceback:
        details["traceback"] = "".join(traceback.format_exception(exc))
    return HandlerError(f"{type(exc).__qualname__}: {_text(exc)}", details=details)


def _text(exc: BaseException) -> str:
    """What an author's exception says of itself, should it manage to."""
    try:
        return str(exc)
    except Exception as failure:  # noqa: BLE001 - their __str__
        return f"(its text could not be made: {type(failure).__name__})"
