"""What can go wrong between a client and a daemon; all are ``XenpvdError``, with a message for people."""

from __future__ import annotations

from typing import Any

from xenpvd import errors
from xenpvd.errors import XenpvdError


class Unreachable(XenpvdError):
    """No daemon answers there now; one may later."""

    reason = "UNREACHABLE"


class ConnectionLost(XenpvdError):
    """The connection ended before what was asked for was answered. ``maybe_done``: the daemon may have
    done it, or may still do it; if false, it has not heard of it."""

    reason = "CONNECTION_LOST"

    def __init__(self, message: str, maybe_done: bool) -> None:
        super().__init__(message, maybe_done=maybe_done)
        self.maybe_done = maybe_done


class Closed(XenpvdError):
    """This client has been closed."""

    reason = "CLOSED"


class RpcError(XenpvdError):
    """The daemon refuses. ``code`` and ``reason`` are those of the API's document, ``data`` has what
    belongs to that reason; ``problems`` are VALIDATION's, (location, message) each.

    What is raised is of the class in ``xenpvd.errors`` that the daemon meant, too: ``except NotFound``
    works.
    """

    def __init__(self, code: int, message: str, data: dict[str, Any]) -> None:
        Exception.__init__(self, message)
        self.code = code
        self.data = data
        self.reason = str(data.get("reason", XenpvdError.reason))
        told = data.get("errors")
        self.problems = [
            (str(one.get("loc")), str(one.get("msg")))
            for one in (told if isinstance(told, list) else ())
            if isinstance(one, dict)
        ]


def _also(kind: type[XenpvdError]) -> type[RpcError]:
    return type(kind.__name__, (RpcError, kind), {"__doc__": kind.__doc__, "__module__": __name__})


_KINDS = {
    kind.reason: _also(kind)
    for kind in (
        errors.BadConfig,
        errors.StateError,
        errors.NotFound,
        errors.Exists,
        errors.Busy,
        errors.TimedOut,
        errors.LimitReached,
        errors.Unsupported,
        errors.PermissionRefused,
        errors.ImageError,
        errors.HostError,
        errors.KvmError,
        errors.XenstoreFault,
    )
}


def refusal(error: Any) -> RpcError:
    """The exception for the ``error`` member of a reply. Raises ValueError if it is none."""
    match error:
        case {"code": int(code), "message": str(message)}:
            data = error.get("data")
            data = data if isinstance(data, dict) else {}
            return _KINDS.get(str(data.get("reason")), RpcError)(code, message, data)
        case _:
            raise ValueError("an error without code or message")
