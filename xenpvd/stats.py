"""All that is counted, gathered from where it is counted: what ``guest.stats`` and /metrics tell."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from xenpvd.counts import Calls, Durations, histogram
from xenpvd.domain import Domain
from xenpvd.events import EventLog
from xenpvd.figures import DriveStats, GuestStats, MemoryStats, ProcessStats, VcpuStats
from xenpvd.guest import Guest
from xenpvd.tasks import in_thread
from xenpvd.views import (
    DaemonInfo,
    DriveInfo,
)

PROC = Path("/proc/self")

_OPERATIONS = {"read": "reads", "write": "writes", "flush": "flushes", "discard": "discards"}


async def of(guest: Guest, daemon: DaemonInfo, events: EventLog, calls: Calls, lag: Durations) -> GuestStats:
    """Takes the machine's lock for microseconds, as ``evtchn.list`` does; what asks the kernel for much is
    done in a thread."""
    memory: MemoryStats | None = None
    vcpus: tuple[VcpuStats, ...] = ()
    if (domain := guest.domain) is not None:
        memory, vcpus = await _machine(guest, domain)
        if domain is not guest.domain:  # it has ended meanwhile
            memory, vcpus, domain = None, (), None
    machine, progress = guest.machine, guest.progress
    return GuestStats(
        name=daemon.name,
        version=daemon.version,
        state=progress.state,
        uptime=progress.uptime if domain else None,
        boots=guest.consoles.main.info().boots,
        boot_times=dict(progress.boot_times),
        labels=dict(guest.config.metrics.labels) if guest.config else {},
        memory=memory,
        vcpus=vcpus,
        hypercalls=machine.hypercall_stats(0).counts if machine else (),
        ports=dict(Counter(port.type for port in domain.machine.ports())) if domain else {},
        grants_mapped=domain.machine.grants.active if domain else 0,
        xen_log_lost=machine.log_lost if machine else 0,
        drives=tuple(_drive(drive.info()) for drive in domain.drives.values()) if domain else (),
        consoles=guest.consoles.stats(),
        xenstore=guest.xenstore.stats(guest.domid),
        rpc=calls.view(),
        events=events.stats(),
        loop_lag=lag.view(),
        process=_process(daemon.started),
    )


async def _machine(guest: Guest, domain: Domain) -> tuple[MemoryStats, tuple[VcpuStats, ...]]:
    memory = await guest.balloon.info(domain)
    vcpus = await in_thread(domain.machine.vcpu_stats)
    return MemoryStats(memory.ram, memory.ballooned, memory.resident), tuple(vcpus)


def _drive(info: DriveInfo) -> DriveStats:
    stats: Mapping[str, int] = Counter(info.stats)  # a disk that was never connected has none
    return DriveStats(
        vdev=info.vdev,
        requests={operation: stats[key] for operation, key in _OPERATIONS.items()},
        bytes={"read": stats["read_bytes"], "write": stats["write_bytes"]},
        errors=stats["errors"],
        throttled=stats["throttled"],
        in_flight=stats["in_flight"],
        latency=histogram(stats),
    )


def _process(started: float) -> ProcessStats:
    resident = int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return ProcessStats(
        started=started,
        cpu_seconds=time.process_time(),
        resident=resident,
        fds=sum(1 for _ in (PROC / "fd").iterdir()),
        threads=threading.active_count(),
    )
