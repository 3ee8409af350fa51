"""What is counted, as values that cross the doors: ``views.py`` has the others, and the rules for all."""

from __future__ import annotations

from dataclasses import dataclass

from xenpvd.views import HypercallCount, Runstate, XenstoreQuota


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often something took how long. ``counts[n]`` took less than ``bounds[n]`` seconds and not less than
    the bound before; the last count is of all that took longer. ``sum`` is of all, in seconds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class VcpuStats:
    """``cpu_seconds`` its thread has run, ``waited_seconds`` it was ready and the host had no CPU for it;
    ``exits`` those that came to the daemon, by kind."""

    id: int
    online: bool
    state: str
    cpu_seconds: float
    waited_seconds: float
    exits: dict[str, int]


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """As in MemoryInfo."""

    ram: int
    ballooned: int
    resident: int


@dataclass(frozen=True, slots=True)
class DriveStats:
    """Of a disk's present life. ``requests`` were carried out, by operation, and ``bytes`` of them moved;
    ``errors`` were refused or failed; ``latency`` is from taking a request to its response."""

    vdev: str
    requests: dict[str, int]
    bytes: dict[str, int]
    errors: int
    throttled: int
    in_flight: int
    latency: Histogram


@dataclass(frozen=True, slots=True)
class ConsoleStats:
    """``log_lost``: bytes that are missing in its log file."""

    console: str
    output: int
    input: int
    viewers: int
    log_lost: int


@dataclass(frozen=True, slots=True)
class XenstoreCount:
    operation: str
    result: str
    count: int


@dataclass(frozen=True, slots=True)
class XenstoreStats:
    """Of the whole store: requests of all its clients, by operation and result (OK or the error's name).
    ``quotas`` are the guest's."""

    requests: tuple[XenstoreCount, ...]
    watch_events: int
    connections: int
    nodes: int
    quotas: tuple[XenstoreQuota, ...]


@dataclass(frozen=True, slots=True)
class RpcCall:
    """``code`` 0 is success."""

    method: str
    code: int
    count: int


@dataclass(frozen=True, slots=True)
class RpcStats:
    """``connected`` clients are at rpc.sock now, of ``connections`` so far; ``calls`` are those of http.sock,
    too."""

    connected: int
    connections: int
    calls: tuple[RpcCall, ...]


@dataclass(frozen=True, slots=True)
class EventStats:
    """``lost``: those that a subscriber did not read in time."""

    published: int
    lost: int
    subscribers: int


@dataclass(frozen=True, slots=True)
class ProcessStats:
    """The daemon's process, the guest's memory and CPUs included."""

    started: float
    cpu_seconds: float
    resident: int
    fds: int
    threads: int


@dataclass(frozen=True, slots=True)
class GuestStats:
    """What is counted of a guest and its daemon. Of the guest's VM it begins anew with each boot; where there
    is none now, ``memory`` is null and the lists are empty. ``labels`` are the definition's."""

    name: str
    version: str
    state: Runstate
    uptime: float | None
    boots: int
    boot_times: dict[str, float]
    labels: dict[str, str]
    memory: MemoryStats | None
    vcpus: tuple[VcpuStats, ...]
    hypercalls: tuple[HypercallCount, ...]
    ports: dict[str, int]
    grants_mapped: int
    xen_log_lost: int
    drives: tuple[DriveStats, ...]
    consoles: tuple[ConsoleStats, ...]
    xenstore: XenstoreStats
    rpc: RpcStats
    events: EventStats
    loop_lag: Histogram
    process: ProcessStats
