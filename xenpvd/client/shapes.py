"""What methods answer, and larger things that they take. Made by ``python -m xenpvd.rpc --python shapes``."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class AccessConfig(TypedDict):
    viewer: NotRequired[list[str]]
    operator: NotRequired[list[str]]
    admin: NotRequired[list[str]]


class Attached(TypedDict):
    mode: str
    offset: int
    viewer: int


class ChannelAdded(TypedDict):
    console: ConsoleInfo
    changed: bool


class ChannelConfig(TypedDict):
    name: str
    number: NotRequired[int | None]
    history: NotRequired[int]
    input: NotRequired[Literal["single", "shared"]]
    log: NotRequired[str | None]


class ConsoleConfig(TypedDict):
    history: NotRequired[int]
    input: NotRequired[Literal["single", "shared"]]
    log: NotRequired[str | None]
    xen_log: NotRequired[str | None]
    log_max: NotRequired[int]
    log_keep: NotRequired[int]
    log_timestamps: NotRequired[bool]
    log_safe: NotRequired[bool]
    match: NotRequired[list[str]]


class ConsoleData(TypedDict):
    text: str | None
    base64: str | None
    start: int
    end: int
    lost: int


class ConsoleFound(TypedDict):
    text: str | None
    base64: str | None
    start: int
    end: int
    groups: list[str | None]


class ConsoleInfo(TypedDict):
    console: str
    number: int | None
    input: str
    connected: bool
    start: int
    end: int
    boots: int
    writer: str | None
    viewers: int
    log: str | None


class ConsoleStats(TypedDict):
    console: str
    output: int
    input: int
    viewers: int
    log_lost: int


class ConsoleViewerInfo(TypedDict):
    console: str
    viewer: int
    who: str
    mode: str
    since: float
    offset: int
    behind: int


class DaemonInfo(TypedDict):
    name: str
    version: str
    api: str
    pid: int
    epoch: str
    started: float
    loop: str
    features: list[str]


class DescriptorAdded(TypedDict):
    descriptor: DescriptorInfo
    changed: bool


class DescriptorInfo(TypedDict):
    name: str
    kind: str
    access: str
    size: int
    drives: list[str]
    path: str | None


class DiskConfig(TypedDict):
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


class DriveAdded(TypedDict):
    drive: DriveInfo
    changed: bool
    connected_ms: float | None


class DriveInfo(TypedDict):
    vdev: str
    devid: int
    target: str
    access: str
    format: str
    size: int
    sector_size: int
    state: str
    frontend_state: str
    error: str | None
    protocol: str | None
    rings: int
    ring_pages: int
    features: list[str]
    grants: int
    cache: str
    limits: DriveLimits
    plane: str | None
    stats: dict[str, int]
    engine: EngineInfo | None


class DriveLimits(TypedDict):
    bytes_per_second: int
    ops_per_second: int
    burst: float


class DriveStats(TypedDict):
    vdev: str
    requests: dict[str, int]
    bytes: dict[str, int]
    errors: int
    throttled: int
    in_flight: int
    latency: Histogram


class EngineInfo(TypedDict):
    program: str
    version: str
    pid: int | None
    restarts: int


class EventNote(TypedDict):
    epoch: str
    seq: int
    time: float
    name: str
    data: dict[str, Any]


class EventStats(TypedDict):
    published: int
    lost: int
    subscribers: int


EvtchnInfo = TypedDict(
    "EvtchnInfo",
    {
        "port": "int",
        "vcpu": "int",
        "type": 'Literal["closed", "unbound", "interdomain", "pirq", "virq", "ipi"]',
        "remote-domain": "str",
        "target": "int",
        "pending": "bool",
        "masked": "bool",
    },
)


class ExpectStep(TypedDict):
    path: str
    op: Literal["expect"]
    text: NotRequired[str | None]
    base64: NotRequired[str | None]
    absent: NotRequired[Literal[True] | None]


class GrantInfo(TypedDict):
    gref: int
    frame: int
    domid: int
    readonly: bool
    reading: bool
    writing: bool
    maps: int


class GuestConfig(TypedDict):
    name: NotRequired[str]
    type: NotRequired[Literal["pv", "pvh"]]
    accel: NotRequired[Literal["auto", "kvm-xen", "kvm"]]
    xen_version: NotRequired[str]
    memory: NotRequired[int]
    vcpus: NotRequired[int]
    kernel: str
    ramdisk: NotRequired[str | None]
    cmdline: NotRequired[str]
    shim: NotRequired[ShimConfig]
    disk: NotRequired[list[DiskConfig]]
    console: NotRequired[ConsoleConfig]
    channel: NotRequired[list[ChannelConfig]]
    ready: NotRequired[ReadyConfig]
    access: NotRequired[AccessConfig]
    metrics: NotRequired[MetricsConfig]
    on_poweroff: NotRequired[Literal["destroy", "restart", "preserve"]]
    on_reboot: NotRequired[Literal["destroy", "restart", "preserve"]]
    on_crash: NotRequired[Literal["destroy", "restart", "preserve"]]
    on_watchdog: NotRequired[Literal["destroy", "restart", "preserve"]]


class GuestStats(TypedDict):
    name: str
    version: str
    state: Runstate
    uptime: float | None
    boots: int
    boot_times: dict[str, float]
    labels: dict[str, str]
    memory: MemoryStats | None
    vcpus: list[VcpuStats]
    hypercalls: list[HypercallCount]
    ports: dict[str, int]
    grants_mapped: int
    xen_log_lost: int
    drives: list[DriveStats]
    consoles: list[ConsoleStats]
    xenstore: XenstoreStats
    rpc: RpcStats
    events: EventStats
    loop_lag: Histogram
    process: ProcessStats


class GuestStatus(TypedDict):
    name: str
    type: str
    state: Runstate
    memory_mib: int
    vcpus: int
    domid: int
    phase: Phase | None
    reason: str | None
    uptime: float | None
    boot_times: dict[str, float]
    hypercalls: int
    log_writes: int
    viewers: int
    host: HostInfo | None
    shim: str | None
    ready: bool


class Hello(TypedDict):
    name: str
    version: str
    api: str
    features: list[str]
    epoch: str
    guest: str
    state: str
    role: str
    limits: Limits


class Histogram(TypedDict):
    bounds: list[float]
    counts: list[int]
    sum: float


class HostInfo(TypedDict):
    accel: str
    accel_why: str
    xen_caps: int
    pages: str
    pages_why: str


class HypercallCall(TypedDict):
    seq: int
    vcpu: int
    name: str
    args: list[int]
    result: int


class HypercallCount(TypedDict):
    name: str
    count: int
    results: dict[str, int]


class HypercallStats(TypedDict):
    total: int
    counts: list[HypercallCount]
    recent: list[HypercallCall]
    exits: dict[str, int]


class JobError(TypedDict):
    code: int
    message: str
    data: dict[str, Any]


class JobInfo(TypedDict):
    job: int
    kind: str
    state: JobState
    begun: float
    ended: float | None
    progress: JobProgress
    result: dict[str, Any] | None
    error: JobError | None


class JobProgress(TypedDict):
    done: int
    total: int
    unit: str


JobState: TypeAlias = Literal["running", "done", "failed", "cancelled"]


class LevelSet(TypedDict):
    logger: str
    level: str


class Limits(TypedDict):
    message: int
    batch: int
    in_flight: int
    connections: int
    queue: int


class LimitsConfig(TypedDict):
    bytes_per_second: NotRequired[int]
    ops_per_second: NotRequired[int]
    burst: NotRequired[float]


class LogRecord(TypedDict):
    seq: int
    time: float
    level: str
    logger: str
    message: str


class MemoryInfo(TypedDict):
    ram: int
    guest: int | None
    ballooned: int
    target: int | None
    resident: int
    pages: str
    regions: list[MemoryRegion]


class MemoryRegion(TypedDict):
    name: str
    gpa: int
    size: int
    resident: int
    huge: int


class MemoryStats(TypedDict):
    ram: int
    ballooned: int
    resident: int


class MemoryTarget(TypedDict):
    asked_mib: int
    reached_mib: int
    confirmed: float | None


class MetricsConfig(TypedDict):
    labels: NotRequired[dict[str, Any]]


class PathStep(TypedDict):
    path: str
    op: Literal["read", "list", "get_perms", "mkdir", "remove"]


Phase: TypeAlias = Literal["created", "shim", "kernel", "xenbus", "devices", "ready"]


class Pong(TypedDict):
    epoch: str
    seq: int


class Pressed(TypedDict):
    key: str


class Problem(TypedDict):
    loc: str
    msg: str


class Problems(TypedDict):
    problems: list[Problem]


class ProcessStats(TypedDict):
    started: float
    cpu_seconds: float
    resident: int
    fds: int
    threads: int


class Quitting(TypedDict):
    stopping: bool


class ReadyConfig(TypedDict):
    when: NotRequired[str]


class Reloaded(TypedDict):
    applied: list[str]
    next_start: list[str]
    next_daemon: list[str]


class Removed(TypedDict):
    removed: bool


class RpcCall(TypedDict):
    method: str
    code: int
    count: int


class RpcStats(TypedDict):
    connected: int
    connections: int
    calls: list[RpcCall]


Runstate: TypeAlias = Literal["defined", "starting", "running", "paused", "stopping", "stopped", "crashed"]


class SetPermsStep(TypedDict):
    path: str
    op: Literal["set_perms"]
    perms: list[str]


class ShimConfig(TypedDict):
    path: NotRequired[str]
    extra: NotRequired[str]


class ShutdownResult(TypedDict):
    mode: str
    acknowledged: float | None
    stopped: float | None
    state: Runstate
    destroyed: bool


class Subscribed(TypedDict):
    seq: int
    epoch: str
    replayed: int
    lost: int


class VcpuInfo(TypedDict):
    id: int
    online: bool
    state: str
    exits: int
    regs: dict[str, int] | None


class VcpuStats(TypedDict):
    id: int
    online: bool
    state: str
    cpu_seconds: float
    waited_seconds: float
    exits: dict[str, int]


class VcpusSet(TypedDict):
    asked: int
    online: list[int]
    confirmed: float | None


class WriteStep(TypedDict):
    path: str
    text: NotRequired[str | None]
    base64: NotRequired[str | None]
    op: Literal["write"]


class Written(TypedDict):
    written: int


class XenstoreChanged(TypedDict):
    watch: int
    path: str


class XenstoreCount(TypedDict):
    operation: str
    result: str
    count: int


class XenstoreNode(TypedDict):
    path: str
    value: str
    perms: list[str]
    base64: str | None


class XenstoreOperation(TypedDict):
    seq: int
    time: float
    who: str
    domid: int
    op: str
    tx: int
    arguments: list[str]
    result: str


class XenstoreQuota(TypedDict):
    name: str
    limit: int
    used: int | None


class XenstoreStats(TypedDict):
    requests: list[XenstoreCount]
    watch_events: int
    connections: int
    nodes: int
    quotas: list[XenstoreQuota]


class XenstoreStep(TypedDict):
    text: str | None
    base64: str | None
    path: str
    names: list[str] | None


class XenstoreValue(TypedDict):
    text: str | None
    base64: str | None
    path: str


class XenstoreWatching(TypedDict):
    watch: int
