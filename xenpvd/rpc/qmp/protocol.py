"""QMP on the wire (QEMU: docs/interop/qmp-spec): requests in, greeting, replies and events out. Sans-IO."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

from xenpvd import __version__
from xenpvd.errors import NotFound
from xenpvd.events import Event
from xenpvd.rpc.errors import fault_of

#: The QEMU that these commands and events are like, for programs that go by its version; and what we are.
VERSION = {"qemu": {"major": 9, "minor": 0, "micro": 0}, "package": f"xenpvd-{__version__}"}

#: No ``oob``: commands run in their order.
GREETING = {"QMP": {"version": VERSION, "capabilities": []}}

ErrorClass = Literal["GenericError", "CommandNotFound", "DeviceNotFound"]

_MEMBERS = {"execute", "arguments", "id"}


class Refused(Exception):
    """What a client reads as an error: ``what failed: why. What to do.``"""

    def __init__(self, desc: str, class_: ErrorClass = "GenericError") -> None:
        super().__init__(desc)
        self.class_ = class_


class Request(NamedTuple):
    command: str
    arguments: dict[str, Any]


def request_of(message: Any) -> Request:
    """Raises :class:`Refused`."""
    if not isinstance(message, dict):
        raise Refused("cannot read the request: it must be an object, one by one.")
    if "exec-oob" in message:
        raise Refused("cannot run a command out of band: the greeting does not offer oob. Use execute.")
    if unknown := sorted(message.keys() - _MEMBERS):
        raise Refused(f"cannot read the request: there is no member {unknown[0][:64]!r}.")
    command, arguments = message.get("execute"), message.get("arguments", {})
    if not isinstance(command, str):
        raise Refused("cannot read the request: execute must be a command's name.")
    if not isinstance(arguments, dict):
        raise Refused("cannot read the request: arguments must be an object.")
    return Request(command, arguments)


def reply(message: Any, result: Any) -> dict[str, Any]:
    """To ``message``, whose id it has; None as ``result`` is nothing to tell."""
    return {"return": {} if result is None else result, **_id(message)}


def error(message: Any, fault: Exception, command: str = "the command") -> dict[str, Any]:
    """A fault of the daemon's own is told by its incident number, as everywhere."""
    if isinstance(fault, Refused):
        told = {"class": fault.class_, "desc": str(fault)}
    else:
        gone = isinstance(fault, NotFound) and fault.data["kind"] == "drive"
        told = {
            "class": "DeviceNotFound" if gone else "GenericError",
            "desc": fault_of(fault, command).message,
        }
    return {"error": told, **_id(message)}


def event(happened: Event) -> dict[str, Any]:
    seconds, microseconds = divmod(round(happened.time * 1_000_000), 1_000_000)
    return {
        "event": happened.name,
        **({"data": happened.data} if happened.data else {}),
        "timestamp": {"seconds": seconds, "microseconds": microseconds},
    }


def encode(message: dict[str, Any]) -> bytes:
    """ASCII, and CR LF behind it."""
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\r\n"


def _id(message: Any) -> dict[str, Any]:
    return {"id": message["id"]} if isinstance(message, dict) and "id" in message else {}
