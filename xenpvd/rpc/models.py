"""What each RPC method takes: a model with bounds for everything, because a client may be hostile."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from xenpvd.config import (
    MEMORY_MAX_MIB,
    MEMORY_MIN_MIB,
    SIGN,
    VCPUS_MAX,
    AbsolutePath,
    ChannelConfig,
    DescriptorName,
    DiskConfig,
    GuestConfig,
    LimitsConfig,
    Medium,
    Vdev,
)
from xenpvd.views import Phase, Runstate

#: The surface's version: the major grows when a client must change, the minor with every addition.
API = "1.9"

#: 2-level event channels of a 64-bit guest: 64 words of 64 bits; port 0 is none.
PORT_MAX = 4095
#: The calls that hypercall.stats keeps.
RECENT_MAX = 256

#: The keys of Linux's sysrq table.
SYSRQ_KEY = r"^[0-9A-Za-z]$"
#: As xenstore has them: who, and what they may.
PERMISSION = r"^[nrwb][0-9]{1,5}$"

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
ConsoleName = Annotated[
    str, Field(max_length=64, description="0 is hvc0, xen the log of the Xen below it, else a channel's name")
]
Ago = Annotated[float, Field(ge=0, le=1e9, description="instead of since: all of the last so many seconds")]

Level = Literal["debug", "info", "warning", "error"]
Logger = Annotated[
    str, Field(max_length=128, description="as xenpvd.rpc, with all below it; empty is the whole log")
]


def _decodes(value: str) -> str:
    base64.b64decode(value, validate=True)
    return value


Base64 = Annotated[str, Field(max_length=CONSOLE_WRITE_MAX * 4 // 3 + 4), AfterValidator(_decodes)]
XenstorePath = Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=3072)]


class Params(BaseModel):
    """By name only; an unknown name or another type is refused before anything happens."""

    # built when first called: a daemon starts sooner, and most methods are never called
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class NoParams(Params):
    pass


class QuitParams(Params):
    guest: Literal["fail", "shutdown", "destroy"] = Field(
        "fail",
        description="if there is one: refuse, ask it to shut down for the stop time, or end it at once",
    )


class CheckParams(Params):
    config: dict[str, Any] = Field(description="a guest definition, as in the TOML file")


class StartParams(Params):
    config: GuestConfig | None = Field(None, description="the guest to run; left out: the one known already")
    paused: bool = Field(False, description="begin its boot only with guest.resume")


class ShutdownParams(Params):
    mode: Literal["poweroff", "reboot", "halt"] = "poweroff"
    timeout: Timeout = 60.0
    then: Literal["fail", "destroy"] = Field("fail", description="what to do when the time is up")


class SysrqParams(Params):
    key: str = Field(pattern=SYSRQ_KEY, description="a letter or digit: s syncs, t lists tasks, b resets")
    timeout: Timeout = 10.0


class WaitParams(Params):
    for_: str = Field(
        alias="for",
        max_length=256,
        description="a boot phase (devices, ready), a state (stopped), console:TEXT or xenstore:PATH",
    )
    timeout: Timeout = 60.0
    since: Offset = Field(0, description="console:TEXT counts from this byte of the recording on")

    @field_validator("for_")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (*Phase, *Runstate) and not SIGN.fullmatch(value):
            raise ValueError(f"one of {', '.join((*Phase, *Runstate))}, console:TEXT or xenstore:PATH")
        return value


class DumpParams(Params):
    file: AbsolutePath | None = Field(
        None, description="a tar.gz that is not there yet; left out: in a folder of the daemon's"
    )
    memory: bool = Field(False, description="the guest's memory as well, in a core file beside it")


class VcpuListParams(Params):
    regs: bool = Field(False, description="with the registers; each vCPU stops for a moment")


class SetOnlineParams(Params):
    count: int = Field(ge=1, le=VCPUS_MAX, description="the guest shall use its first so many vCPUs")
    wait: bool = Field(True, description="answer when the guest has done it")
    timeout: Timeout = 30.0


class SetTargetParams(Params):
    mib: int = Field(
        ge=MEMORY_MIN_MIB,
        le=MEMORY_MAX_MIB,
        description="how large the VM shall be, as memory in its definition",
    )
    wait: bool = Field(True, description="answer when the guest has done it")
    timeout: Timeout = 60.0


class InjectParams(Params):
    port: int = Field(ge=1, le=PORT_MAX)


class StatsParams(Params):
    recent: int = Field(0, ge=0, le=RECENT_MAX, description="how many of the newest calls to list, decoded")


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


class DriveParams(Params):
    vdev: Vdev


class DriveResizeParams(DriveParams):
    size: int | None = Field(
        None, ge=512, lt=1 << 63, description="bytes; left out: what the image has become"
    )
    shrink: bool = Field(False, description="it may become smaller: what is beyond is lost")


class DriveLimitsParams(LimitsConfig, DriveParams):
    model_config = ConfigDict(strict=True)

    def limits(self) -> LimitsConfig:
        return LimitsConfig.model_validate(self.model_dump(include=set(LimitsConfig.model_fields)))


class DriveSwapParams(DriveParams):
    target: Medium = Field(description="another image, also as fd:NAME; nothing, to empty a cdrom")


class DescriptorParams(Params):
    name: DescriptorName


class DescriptorRemoveParams(DescriptorParams):
    missing_ok: bool = False


class ChannelAddParams(ChannelConfig):
    model_config = ConfigDict(strict=True)

    wait: bool = Field(True, description="answer when the guest has connected it")
    timeout: Timeout = 30.0

    def channel(self) -> ChannelConfig:
        return ChannelConfig.model_validate(self.model_dump(include=set(ChannelConfig.model_fields)))


class ChannelRemoveParams(Params):
    name: ConsoleName
    force: bool = Field(False, description="cut it off though the guest still uses it")
    missing_ok: bool = False
    timeout: Timeout = 10.0


class ConsoleParams(Params):
    console: ConsoleName = "0"


class ConsoleReadParams(ConsoleParams):
    ago: Ago | None = None
    since: int = Field(
        0, ge=-(1 << 63), lt=1 << 63, description="a byte of the recording; negative: from its end"
    )
    max: int = Field(CONSOLE_READ_MAX, ge=1, le=CONSOLE_READ_MAX, description="bytes")


class OctetsParams(Params):
    """Exactly one of ``text`` and ``base64``."""

    text: str | None = Field(None, max_length=CONSOLE_WRITE_MAX)
    base64: Base64 | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.text is None) == (self.base64 is None):
            raise ValueError("exactly one of text and base64")
        return self

    def data(self) -> bytes:
        return self.text.encode() if self.text is not None else base64.b64decode(self.base64 or "")


class ConsoleWriteParams(OctetsParams, ConsoleParams):
    timeout: Timeout = 30.0


class ConsoleWaitParams(Params):
    regex: str = Field(min_length=1, max_length=1024, description="RE2; ^ and $ are those of lines")
    console: ConsoleName = "0"
    since: Offset = Field(0, description="a byte of the recording; 0: all that is kept")
    timeout: Timeout = 30.0


class ConsoleViewerParams(Params):
    viewer: int = Field(ge=1, lt=1 << 63, description="its number, of console.viewers")


class ConsoleAttachParams(ConsoleParams):
    ago: Ago | None = None
    mode: Literal["rw", "ro", "steal"] = Field("rw", description="steal takes the keyboard from who has it")
    since: Offset | None = Field(None, description="where the replay begins; left out: all that is kept")


class XenstorePathParams(Params):
    path: XenstorePath


class XenstoreWriteParams(OctetsParams, XenstorePathParams): ...


class PathStep(XenstorePathParams):
    op: Literal["read", "list", "get_perms", "mkdir", "remove"]


class WriteStep(XenstoreWriteParams):
    op: Literal["write"]


class SetPermsStep(XenstorePathParams):
    op: Literal["set_perms"]
    perms: list[Annotated[str, Field(pattern=PERMISSION)]] = Field(
        min_length=1, max_length=64, description="the owner's first, with the rights of all others: n1, r0"
    )


class ExpectStep(XenstorePathParams):
    """Exactly one of ``text``, ``base64`` and ``absent``."""

    op: Literal["expect"]
    text: str | None = Field(None, max_length=CONSOLE_WRITE_MAX)
    base64: Base64 | None = None
    absent: Literal[True] | None = Field(None, description="there is no such node")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.text, self.base64, self.absent].count(None) != 2:
            raise ValueError("exactly one of text, base64 and absent")
        return self

    def wanted(self) -> bytes | None:
        """The value; None if there shall be no node."""
        if self.text is not None:
            return self.text.encode()
        return base64.b64decode(self.base64) if self.base64 is not None else None


XenstoreStep = Annotated[PathStep | WriteStep | SetPermsStep | ExpectStep, Field(discriminator="op")]


class XenstoreTransactionParams(Params):
    steps: list[XenstoreStep] = Field(min_length=1, max_length=256, description="done in this order")


class XenstoreUnwatchParams(Params):
    watch: int = Field(ge=1, lt=1 << 63, description="as xenstore.watch has answered")


class XenstoreHistoryParams(Params):
    max: int = Field(100, ge=1, le=1024, description="the newest so many")
    match: str = Field("", max_length=3072, description="a part of a path or value that it must name")
    domid: int | None = Field(None, ge=0, le=65535, description="of this domain only")


class XenstoreQuotaParams(Params):
    name: str = Field(max_length=64, description="as xenstore.quotas names it")
    limit: int = Field(ge=0, le=0xFFFF_FFFF, description="0 is none")


class XenstoreTreeParams(Params):
    path: XenstorePath = "/"
    depth: int = Field(64, ge=0, le=1024, description="levels below path")


class SubscribeParams(Params):
    names: Patterns = ["*"]
    since: int | None = Field(None, ge=0, lt=1 << 63, description="replay what came after this seq")
    epoch: str | None = Field(None, max_length=64, description="of since; another epoch replays all")


class JobParams(Params):
    job: int = Field(ge=1, lt=1 << 63, description="its number")


class JobWaitParams(JobParams):
    timeout: Timeout = 60.0


class JobCancelParams(JobParams):
    timeout: Timeout = 10.0


class LogLevelParams(Params):
    level: Literal[Level, "inherit"] = Field(description="inherit: as the logger above it has it")
    logger: Logger = ""


class LogTailParams(Params):
    max: int = Field(100, ge=1, le=1000, description="the newest so many")
    level: Level = Field("debug", description="of this and above")
    logger: Logger = ""


class HistoryParams(Params):
    names: Patterns = ["*"]
    max: int = Field(1000, ge=1, le=4096, description="the newest so many")
