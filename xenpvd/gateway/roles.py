"""What a caller may ask a daemon for. The daemon serves the gateway, which may everything there; so a message
is judged here before it goes on."""

from __future__ import annotations

from typing import Any

from xenpvd.access import Role, covers
from xenpvd.client.methods import STREAMING
from xenpvd.errors import PermissionRefused, Unsupported, XenpvdError
from xenpvd.rpc.errors import Fault, fault_of
from xenpvd.rpc.methods import METHODS


class Refused(Exception):
    """``reply`` is what the caller reads, None if it expects nothing."""

    def __init__(self, reply: Any) -> None:
        super().__init__("refused")
        self.reply = reply


def need(method: str) -> Role:
    """A method of a newer daemon, which we do not know, takes the highest role."""
    known = METHODS.get(method)
    return "admin" if known is None else known.role


def methods(message: Any) -> list[str]:
    """Those that a message, or a batch, calls."""
    requests = message if isinstance(message, list) else [message]
    found = [request.get("method") for request in requests if isinstance(request, dict)]
    return [method for method in found if isinstance(method, str)]


def judge(message: Any, role: Role, streams: bool) -> None:
    """Raises :class:`Refused` if one of its requests is not for ``role``, or needs a connection that can
    stream: then none is to be run. What is no request is left to the daemon, which says so."""
    faults = {method: fault for method in methods(message) if (fault := _fault(method, role, streams))}
    if not faults:
        return
    if not isinstance(message, list):
        raise Refused(faults[message["method"]].reply(_id(message)) if "id" in message else None)
    (first, *_) = faults
    others = fault_of(
        XenpvdError(f"nothing of this batch is run: {_named(first)} in it is refused."), "batch"
    )
    raise Refused(
        [
            (faults.get(request["method"], others) if methods(request) else others).reply(_id(request))
            for request in message
            if not isinstance(request, dict) or "id" in request
        ]
        or None
    )


def _fault(method: str, role: Role, streams: bool) -> Fault | None:
    named = _named(method)
    if not covers(role, needed := need(method)):
        why = f"cannot call {named}: you are {role} at this gateway, and that takes {needed}. Ask its admin."
        return fault_of(PermissionRefused(why, need=needed, role=role), method)
    if method == "console.attach":
        why = "cannot attach on this connection: it takes messages only. Use the WebSocket …/console/NAME."
        return fault_of(Unsupported(why, feature="raw stream", hint="console"), method)
    if method in STREAMING and not streams:
        why = f"cannot call {method} by POST: it goes on after its reply. Use the WebSocket …/rpc."
        return fault_of(Unsupported(why, feature="stream", hint="WebSocket"), method)
    return None


def _named(method: str) -> str:
    return method if method in METHODS else repr(method[:64])


def _id(request: Any) -> Any:
    id_ = request.get("id") if isinstance(request, dict) else None
    return id_ if isinstance(id_, str | int | float) and not isinstance(id_, bool) else None
