"""What RPC methods answer where it is no view already, and what the server sends unasked."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_jsonable_python

from xenpvd.events import Event
from xenpvd.views import PortInfo


class Result(BaseModel):
    """Clients must bear members that they do not know."""

    model_config = ConfigDict(defer_build=True)  # as Params


class Pong(Result):
    epoch: str
    seq: int = Field(description="of the last event")


class LevelSet(Result):
    logger: str
    level: str


class Quitting(Result):
    stopping: bool


class Problem(Result):
    loc: str = Field(description="the TOML path: disk.0.access")
    msg: str


class Problems(Result):
    problems: list[Problem]


class Pressed(Result):
    key: str


class Removed(Result):
    removed: bool


class EvtchnInfo(Result):
    """An event-channel port of the guest, in the words of QEMU's qapi. ``target`` is the remote port of an
    interdomain one, the number of a virq or pirq, else 0; ``remote-domain`` is "" where there is none."""

    port: int
    vcpu: int
    type: Literal["closed", "unbound", "interdomain", "pirq", "virq", "ipi"]
    remote_domain: str = Field(alias="remote-domain")
    target: int
    pending: bool
    masked: bool


def evtchn_info(port: PortInfo) -> EvtchnInfo:
    fields = asdict(port)
    return EvtchnInfo(**{"remote-domain": fields.pop("remote_domain")}, **fields)


class Octets(Result):
    """Bytes: ``text`` if they are UTF-8, else ``base64``; the other is null."""

    text: str | None
    base64: str | None


def octets(data: bytes) -> dict[str, str | None]:
    """The members of :class:`Octets` for ``data``."""
    try:
        return {"text": data.decode(), "base64": None}
    except UnicodeDecodeError:
        return {"text": None, "base64": base64.b64encode(data).decode()}


class ConsoleData(Octets):
    """A piece of the recording: it begins at ``start``, ends before ``end``; ``lost`` bytes that were asked
    for before it are no longer kept."""

    start: int
    end: int
    lost: int


class Written(Result):
    written: int = Field(description="bytes")


class ConsoleFound(Octets):
    """What was waited for: it stands at ``start`` and ends before ``end``; ``groups`` are the pattern's."""

    start: int
    end: int
    groups: list[str | None]


class Attached(Result):
    mode: str = Field(description="rw or ro")
    offset: int = Field(description="of the first raw byte that follows this reply")
    viewer: int = Field(description="its number, for console.kick")


class XenstoreValue(Octets):
    path: str


class XenstoreStep(Octets):
    """``text`` or ``base64`` of a read, ``names`` of a list or get_perms; all null for the others."""

    path: str
    names: list[str] | None


class XenstoreWatching(Result):
    watch: int = Field(description="its number, in xenstore.changed and for xenstore.unwatch")


class XenstoreChanged(Result):
    watch: int
    path: str


class Subscribed(Result):
    seq: int = Field(description="of the last event before this reply, replayed ones included")
    epoch: str
    replayed: int
    lost: int = Field(description="events asked for by since that are no longer kept")


class EventNote(Result):
    """``seq`` grows by one within ``epoch``; ``time`` is Unix seconds."""

    epoch: str
    seq: int
    time: float
    name: str
    data: dict[str, Any]


def note(epoch: str, event: Event) -> EventNote:
    data = to_jsonable_python(event.data, fallback=str, bytes_mode="base64")  # whatever was published
    return EventNote(epoch=epoch, seq=event.seq, time=event.time, name=event.name, data=data)


class Limits(Result):
    message: int = Field(description="bytes")
    batch: int
    in_flight: int
    connections: int
    queue: int = Field(description="events kept for a client that does not read")


class Hello(Result):
    """The first thing that a client reads."""

    name: str
    version: str
    api: str
    features: list[str]
    epoch: str
    guest: str
    state: str
    role: str
    limits: Limits
