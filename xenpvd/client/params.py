"""What methods take. Made by ``python -m xenpvd.rpc --python params``."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from xenpvd.client.shapes import (
    ExpectStep,
    GuestConfig,
    LimitsConfig,
    PathStep,
    SetPermsStep,
    WriteStep,
)


class ChannelAddParams(TypedDict):
    name: str
    number: NotRequired[int | None]
    history: NotRequired[int]
    input: NotRequired[Literal["single", "shared"]]
    log: NotRequired[str | None]
    wait: NotRequired[bool]
    timeout: NotRequired[float]


class ChannelRemoveParams(TypedDict):
    name: str
    force: NotRequired[bool]
    missing_ok: NotRequired[bool]
    timeout: NotRequired[float]


class CheckParams(TypedDict):
    config: dict[str, Any]


class ConsoleParams(TypedDict):
    console: NotRequired[str]


class ConsoleReadParams(TypedDict):
    console: NotRequired[str]
    ago: NotRequired[float | None]
    since: NotRequired[int]
    max: NotRequired[int]


class ConsoleViewerParams(TypedDict):
    viewer: int


class ConsoleWaitParams(TypedDict):
    regex: str
    console: NotRequired[str]
    since: NotRequired[int]
    timeout: NotRequired[float]


class ConsoleWriteParams(TypedDict):
    console: NotRequired[str]
    text: NotRequired[str | None]
    base64: NotRequired[str | None]
    timeout: NotRequired[float]


class DescriptorRemoveParams(TypedDict):
    name: str
    missing_ok: NotRequired[bool]


class DriveAddParams(TypedDict):
    vdev: str
    device: NotRequired[Literal["disk", "cdrom"]]
    target: NotRequired[str]
    access: NotRequired[Literal["rw", "ro"]]
    format: NotRequired[Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]]
    sector_size: NotRequired[Literal[512, 4096]]
    cache: NotRequired[Literal["writeback", "writethrough", "none", "directsync"]]
    discard: NotRequired[bool]
    persistent: NotRequired[bool]
    limits: NotRequired[LimitsConfig]
    wait: NotRequired[bool]
    timeout: NotRequired[float]


class DriveLimitsParams(TypedDict):
    vdev: str
    bytes_per_second: NotRequired[int]
    ops_per_second: NotRequired[int]
    burst: NotRequired[float]


class DriveParams(TypedDict):
    vdev: str


class DriveRemoveParams(TypedDict):
    vdev: str
    force: NotRequired[bool]
    missing_ok: NotRequired[bool]
    timeout: NotRequired[float]


class DriveResizeParams(TypedDict):
    vdev: str
    size: NotRequired[int | None]
    shrink: NotRequired[bool]


class DriveSwapParams(TypedDict):
    vdev: str
    target: str


class DumpParams(TypedDict):
    file: NotRequired[str | None]
    memory: NotRequired[bool]


class HistoryParams(TypedDict):
    names: NotRequired[list[str]]
    max: NotRequired[int]


class InjectParams(TypedDict):
    port: int


class JobCancelParams(TypedDict):
    job: int
    timeout: NotRequired[float]


class JobParams(TypedDict):
    job: int


class JobWaitParams(TypedDict):
    job: int
    timeout: NotRequired[float]


class LogLevelParams(TypedDict):
    level: Literal["debug", "info", "warning", "error", "inherit"]
    logger: NotRequired[str]


class LogTailParams(TypedDict):
    max: NotRequired[int]
    level: NotRequired[Literal["debug", "info", "warning", "error"]]
    logger: NotRequired[str]


class QuitParams(TypedDict):
    guest: NotRequired[Literal["fail", "shutdown", "destroy"]]


class SetOnlineParams(TypedDict):
    count: int
    wait: NotRequired[bool]
    timeout: NotRequired[float]


class SetTargetParams(TypedDict):
    mib: int
    wait: NotRequired[bool]
    timeout: NotRequired[float]


class ShutdownParams(TypedDict):
    mode: NotRequired[Literal["poweroff", "reboot", "halt"]]
    timeout: NotRequired[float]
    then: NotRequired[Literal["fail", "destroy"]]


class StartParams(TypedDict):
    config: NotRequired[GuestConfig | None]
    paused: NotRequired[bool]


class StatsParams(TypedDict):
    recent: NotRequired[int]


class SysrqParams(TypedDict):
    key: str
    timeout: NotRequired[float]


class VcpuListParams(TypedDict):
    regs: NotRequired[bool]


class WaitParams(TypedDict):
    for_: str
    timeout: NotRequired[float]
    since: NotRequired[int]


class XenstoreHistoryParams(TypedDict):
    max: NotRequired[int]
    match: NotRequired[str]
    domid: NotRequired[int | None]


class XenstorePathParams(TypedDict):
    path: str


class XenstoreQuotaParams(TypedDict):
    name: str
    limit: int


class XenstoreTransactionParams(TypedDict):
    steps: list[PathStep | WriteStep | SetPermsStep | ExpectStep]


class XenstoreTreeParams(TypedDict):
    path: NotRequired[str]
    depth: NotRequired[int]


class XenstoreWriteParams(TypedDict):
    path: str
    text: NotRequired[str | None]
    base64: NotRequired[str | None]
