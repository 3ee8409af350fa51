"""The shapes of the RPC surface that are not views already: parameters, results and notifications."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import to_jsonable_python

from xenpvd.config import DiskConfig, GuestConfig, Vdev
from xenpvd.events import Event
from xenpvd.views import Phase, Runstate

#: The surface's version: the major grows when a client must change, the minor with every addition.
API = "1.0"

CONSOLE_READ_MAX = 128 << 10
CONSOLE_WRITE_MAX = 64 << 10

Timeout = Annotated[float, Field(ge=0, le=86400, description="seconds")]
Patterns = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=64)]],
    Field(min_length=1, max_length=32, description="event names, with * and ?: drive.*"),
]
Offset = Annotated[
    int, Field(ge=0, lt=1 << 63, description="a byte of the recording, counted from the first boot")
]
XenstorePath = Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=3072)]


class Params(BaseModel):
    """By name only; an unknown name or another type is refused before anything happens."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NoParams(Params):
    pass


class CheckParams(Params):
    config: dict[str, Any] = Field(description="a guest definition, as in the TOML file")


class StartParams(Params):
    config: GuestConfig | None = Field(None, description="the guest to run; left out: the one known already")


class ShutdownParams(Params):
    mode: Literal["poweroff", "reboot", "halt"] = "poweroff"
    timeout: Timeout = 60.0
    then: Literal["fail", "destroy"] = Field("fail", description="what to do when the time is up")


class WaitParams(Params):
    for_: str = Field(
        alias="for",
        max_length=256,
        description="a boot phase (devices), a state (stopped) or console:TEXT",
    )
    timeout: Timeout = 60.0
    since: Offset = Field(0, description="console:TEXT counts from this byte of the recording on")

    @field_validator("for_")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (*Phase, *Runstate) and not (value.startswith("console:") and value != "console:"):
            raise ValueError(f"one of {', '.join((*Phase, *Runstate))} or console:TEXT")
        return value


class DriveAddParams(DiskConfig):
    model_config = ConfigDict(strict=True)

    wait: bool = Field(True, description="answer when the guest has connected it")
    timeout: Timeout = 30.0

    def disk(self) -> DiskConfig:
        return DiskConfig.model_validate(self.model_dump(include=set(DiskConfig.model_fields)))


class DriveRemoveParams(Params):
    vdev: Vdev
    force: bool = Field(False, description="cut it off though the guest still uses it")
    missing_ok: bool = False
    timeout: Timeout = 10.0


class ConsoleReadParams(Params):
    stream: Literal["guest", "xen"] = Field("guest", description="the guest's console, or Xen's own log")
    since: int = Field(
        0, ge=-(1 << 63), lt=1 << 63, description="a byte of the recording; negative: from its end"
    )
    max: int = Field(CONSOLE_READ_MAX, ge=1, le=CONSOLE_READ_MAX, description="bytes")


class ConsoleWriteParams(Params):
    """Exactly one of ``text`` and ``base64``."""

    text: str | None = Field(None, max_length=CONSOLE_WRITE_MAX)
    base64: str | None = Field(None, max_length=CONSOLE_WRITE_MAX * 4 // 3 + 4)
    timeout: Timeout = 30.0

    @field_validator("base64")
    @classmethod
    def _decodes(cls, value: str | None) -> str | None:
        if value is not None:
            base64.b64decode(value, validate=True)
        return value

    @model_validator(mode="after")
    def _one(self) -> ConsoleWriteParams:
        if (self.text is None) == (self.base64 is None):
            raise ValueError("exactly one of text and base64")
        return self

    def data(self) -> bytes:
        return self.text.encode() if self.text is not None else base64.b64decode(self.base64 or "")


class ConsoleAttachParams(Params):
    mode: Literal["rw", "ro", "steal"] = Field("rw", description="steal takes the keyboard from who has it")
    since: Offset | None = Field(None, description="where the replay begins; left out: all that is kept")


class XenstorePathParams(Params):
    path: XenstorePath


class XenstoreTreeParams(Params):
    path: XenstorePath = "/"
    depth: int = Field(64, ge=0, le=1024, description="levels below path")


class SubscribeParams(Params):
    names: Patterns = ["*"]
    since: int | None = Field(None, ge=0, lt=1 << 63, description="replay what came after this seq")
    epoch: str | None = Field(None, max_length=64, description="of since; another epoch replays all")


class HistoryParams(Params):
    names: Patterns = ["*"]
    max: int = Field(1000, ge=1, le=4096, description="the newest so many")


class Result(BaseModel):
    """Clients must bear members that they do not know."""


class Pong(Result):
    epoch: str
    seq: int = Field(description="of the last event")


class Quitting(Result):
    stopping: bool


class Problem(Result):
    loc: str = Field(description="the TOML path: disk.0.access")
    msg: str


class Problems(Result):
    problems: list[Problem]


class Removed(Result):
    removed: bool


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


class Attached(Result):
    mode: str = Field(description="rw or ro")
    offset: int = Field(description="of the first raw byte that follows this reply")


class XenstoreValue(Octets):
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
