"""What the daemon tells about itself: plain values that cross the doors, from the inside to the street.

Frozen dataclasses: the inside builds them, ``rpc`` turns them into JSON and schemas. Sizes are bytes unless
a name says otherwise; times are Unix seconds, durations seconds.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Runstate(StrEnum):
    """Where a guest is. ``defined`` has no VM; ``crashed`` may keep its VM's remains for a look."""

    DEFINED = "defined"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"


class Phase(StrEnum):
    """How far a boot has come, in order. Each is announced once by ``guest.boot``."""

    CREATED = "created"
    SHIM = "shim"
    KERNEL = "kernel"
    XENBUS = "xenbus"
    DEVICES = "devices"
    READY = "ready"  # as its definition says; may come before others


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    name: str
    version: str
    api: str
    pid: int
    epoch: str
    started: float
    loop: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What of a definition that was read anew counts now, what waits for the next start, and what only a new
    daemon takes: TOML paths, as ``console.log_max``."""

    applied: tuple[str, ...]
    next_start: tuple[str, ...]
    next_daemon: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One of the daemon's own log, with the traceback if it has one. ``seq`` counts all of this daemon's."""

    seq: int
    time: float
    level: str  # "debug" | "info" | "warning" | "error" | "critical"
    logger: str
    message: str


class JobState(StrEnum):
    """Of a job; only a running one can become another."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class JobProgress:
    """``done`` of ``total``, in ``unit`` (bytes); a total may be an estimate."""

    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class JobError:
    """As the error of a reply."""

    code: int
    message: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class JobInfo:
    """Work that outlasts its call. ``kind`` is the method that began it; ``result`` is there once it is done,
    ``error`` once it has failed."""

    job: int
    kind: str
    state: JobState
    begun: float
    ended: float | None
    progress: JobProgress
    result: dict[str, Any] | None
    error: JobError | None


@dataclass(frozen=True, slots=True)
class HostInfo:
    """What the guest runs on: which accelerator and pages were taken, and why."""

    accel: str
    accel_why: str
    xen_caps: int
    pages: str
    pages_why: str


@dataclass(frozen=True, slots=True)
class GuestStatus:
    name: str
    type: str  # "pv" | "pvh"
    state: Runstate
    memory_mib: int
    vcpus: int
    domid: int
    phase: Phase | None
    reason: str | None
    uptime: float | None
    boot_times: dict[str, float] = field(default_factory=dict)
    hypercalls: int = 0
    log_writes: int = 0
    viewers: int = 0
    host: HostInfo | None = None
    shim: str | None = None
    ready: bool = False


@dataclass(frozen=True, slots=True)
class VcpuInfo:
    """A virtual CPU. ``online`` is what the guest makes of it: a PV guest keeps IPI ports on each CPU that it
    uses. ``regs`` only if asked for: general registers, cr0, cr2, cr3, cr4, efer, cs, ss, and the bases of fs
    and gs."""

    id: int
    online: bool
    state: str  # "running" | "paused" | "stopped"
    exits: int
    regs: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class VcpusSet:
    """What became of a wish for ``asked`` CPUs: those now ``online``, and how long the guest took (seconds,
    None if it has not done it)."""

    asked: int
    online: tuple[int, ...]
    confirmed: float | None


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """A slot of guest memory; ``resident`` is what the host holds for it, ``huge`` of it in huge pages."""

    name: str
    gpa: int
    size: int
    resident: int
    huge: int


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """The guest's memory. ``ram`` is the VM's; ``guest`` what its kernel was given at boot (None until known:
    the shim keeps some); ``ballooned`` what it has given back; ``target`` what was last asked for, as a size
    of the VM."""

    ram: int
    guest: int | None
    ballooned: int
    target: int | None
    resident: int
    pages: str
    regions: tuple[MemoryRegion, ...]


@dataclass(frozen=True, slots=True)
class MemoryTarget:
    """What became of a wish: the guest's VM now holds ``reached_mib``; ``confirmed`` as in VcpusSet."""

    asked_mib: int
    reached_mib: int
    confirmed: float | None


@dataclass(frozen=True, slots=True)
class PortInfo:
    """An event-channel port of the guest, with QEMU's names (EvtchnInfo of its qapi)."""

    port: int
    vcpu: int
    type: str  # "closed" | "unbound" | "interdomain" | "pirq" | "virq" | "ipi"
    remote_domain: str  # a domid in decimal, "" where there is none
    target: int  # the remote port, the virq, 0 else
    pending: bool
    masked: bool


@dataclass(frozen=True, slots=True)
class GrantInfo:
    """An entry of the guest's grant table that grants something; ``maps`` are ours."""

    gref: int
    frame: int
    domid: int
    readonly: bool
    reading: bool
    writing: bool
    maps: int


@dataclass(frozen=True, slots=True)
class HypercallCount:
    """How often an operation was called and how it ended: ``results`` has "ok" and errno names."""

    name: str
    count: int
    results: dict[str, int]


@dataclass(frozen=True, slots=True)
class HypercallCall:
    """One call, decoded: ``args`` are the registers that the operation reads, ``result`` is RAX (signed)."""

    seq: int
    vcpu: int
    name: str
    args: tuple[int, ...]
    result: int


@dataclass(frozen=True, slots=True)
class HypercallStats:
    """Operations that reached us, most frequent first; the newest calls, oldest first; exits by kind."""

    total: int
    counts: tuple[HypercallCount, ...]
    recent: tuple[HypercallCall, ...]
    exits: dict[str, int]


@dataclass(frozen=True, slots=True)
class DriveLimits:
    """0 is no limit. ``burst``: seconds of these rates that an idle disk may save up."""

    bytes_per_second: int = 0
    ops_per_second: int = 0
    burst: float = 1.0


NO_LIMITS = DriveLimits()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The process that serves a disk's image: ``pid`` is None while there is none, and ``restarts`` is how
    often it ended and was started anew."""

    program: str
    version: str
    pid: int | None
    restarts: int


@dataclass(frozen=True, slots=True)
class DriveInfo:
    """One disk as both ends see it; states are XenbusState names ("Connected"). ``protocol``, ``rings``,
    ``ring_pages`` (of each) and ``features`` are what they have agreed on, once they are connected;
    ``grants`` is how many of the guest's pages are held for that: those with data are for the time of their
    request only. ``plane`` is what serves the rings, and why if it is not the fast one."""

    vdev: str
    devid: int
    target: str
    access: str
    format: str
    size: int
    sector_size: int
    state: str
    frontend_state: str
    error: str | None = None
    protocol: str | None = None
    rings: int = 0
    ring_pages: int = 0
    features: tuple[str, ...] = ()
    grants: int = 0
    cache: str = "writeback"
    limits: DriveLimits = NO_LIMITS
    plane: str | None = None
    stats: dict[str, int] = field(default_factory=dict)
    engine: EngineInfo | None = None


@dataclass(frozen=True, slots=True)
class DriveAdded:
    """``changed`` is false if the very same drive was there already; ``connected_ms`` None unless waited."""

    drive: DriveInfo
    changed: bool
    connected_ms: float | None


@dataclass(frozen=True, slots=True)
class DescriptorInfo:
    """A file or block device (``kind``) that the daemon was given open. ``access`` is how it was opened,
    ``size`` a file's now, a device's when it came, ``drives`` which disks are on it. ``path`` is where the
    kernel says that it lies now, behind which `` (deleted)`` may stand; null where that is not told."""

    name: str
    kind: str
    access: str
    size: int
    drives: tuple[str, ...] = ()
    path: str | None = None


@dataclass(frozen=True, slots=True)
class DescriptorAdded:
    """``changed`` is false if the very same file was there already."""

    descriptor: DescriptorInfo
    changed: bool


@dataclass(frozen=True, slots=True)
class ShutdownResult:
    """What became of a shutdown: ``acknowledged`` is when the guest cleared control/shutdown (seconds after
    the request), ``stopped`` when its VM was gone; ``destroyed`` if that was done because it did not end."""

    mode: str
    acknowledged: float | None
    stopped: float | None
    state: Runstate
    destroyed: bool = False


@dataclass(frozen=True, slots=True)
class ConsoleChunk:
    """A piece of a console's recording: ``data`` begins at absolute offset ``start`` and ends at ``end``;
    ``lost`` bytes before it were asked for and are no longer kept."""

    start: int
    end: int
    lost: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ConsoleMatch:
    """What was waited for: ``text`` stands at offset ``start`` and ends before ``end``."""

    start: int
    end: int
    text: bytes
    groups: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class ConsoleInfo:
    """A console; ``number`` is that of the guest's device/console/N. What is kept begins at offset ``start``
    and ends at ``end``. ``connected``: a guest writes to it; ``boots``: how many have begun to.
    ``input``: single, shared or none; ``writer`` has the keyboard; ``log`` is the file it is logged to."""

    console: str
    number: int | None
    input: str
    connected: bool
    start: int
    end: int
    boots: int
    writer: str | None
    viewers: int
    log: str | None = None


@dataclass(frozen=True, slots=True)
class ChannelAdded:
    """``changed`` is false if the very same channel was there already."""

    console: ConsoleInfo
    changed: bool


@dataclass(frozen=True, slots=True)
class ConsoleViewerInfo:
    """One who is attached: ``viewer`` is its number; it has read all before ``offset``, and is ``behind`` by
    that many bytes."""

    console: str
    viewer: int
    who: str
    mode: str
    since: float
    offset: int
    behind: int


@dataclass(frozen=True, slots=True)
class XenstoreNode:
    """A node of a tree listing: ``perms`` in wire form, ``value`` decoded as UTF-8. One that is something
    else has replacement characters there, and ``base64`` has it whole."""

    path: str
    value: str
    perms: tuple[str, ...]
    base64: str | None = None

    @classmethod
    def of(cls, path: str, value: bytes, perms: Iterable[str]) -> XenstoreNode:
        text = value.decode("utf-8", "replace")
        whole = text.encode() == value
        return cls(path, text, tuple(perms), None if whole else b64encode(value).decode())


@dataclass(frozen=True, slots=True)
class XenstoreOperation:
    """What somebody asked of the store. ``seq`` counts all since the store began; ``time`` is Unix seconds;
    ``tx`` is the transaction's number, 0 for none; ``result`` is OK or the error's name. ``arguments`` are
    printable, and cut after 256 bytes."""

    seq: int
    time: float
    who: str
    domid: int
    op: str
    tx: int
    arguments: tuple[str, ...]
    result: str


@dataclass(frozen=True, slots=True)
class XenstoreQuota:
    """``limit`` 0: there is none. ``used`` is null where nothing is used up."""

    name: str
    limit: int
    used: int | None
