"""A rpc.service.Service with a guest in memory: verbs do at once what a test expects of them.

The xenstore is a real one, and so are the jobs.

A test can make a verb fail (``faults``), or hold it: ``hold("guest_wait")`` returns a Gate whose ``entered``
is set when the verb is called; it goes on when ``open`` is set, and ``left`` is set then or when it is given
up. ``done`` names the verbs that ended well.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.fakes.console import FakeConsole
from xenpvd.backends.console.backend import Console
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.config import ChannelConfig, DiskConfig, GuestConfig, LimitsConfig
from xenpvd.consoles import Consoles
from xenpvd.counts import Calls, Durations
from xenpvd.errors import Exists, NotFound, StateError, TimedOut
from xenpvd.events import EventLog
from xenpvd.figures import DriveStats, GuestStats, MemoryStats, ProcessStats, VcpuStats
from xenpvd.jobs import Jobs, Work
from xenpvd.rpc.errors import fault_of
from xenpvd.rpc.models import API
from xenpvd.views import (
    ChannelAdded,
    DaemonInfo,
    DescriptorAdded,
    DescriptorInfo,
    DriveAdded,
    DriveInfo,
    GrantInfo,
    GuestStatus,
    HostInfo,
    HypercallCall,
    HypercallCount,
    HypercallStats,
    JobInfo,
    LogRecord,
    MemoryInfo,
    MemoryRegion,
    MemoryTarget,
    Phase,
    PortInfo,
    Reloaded,
    Runstate,
    ShutdownResult,
    VcpuInfo,
    VcpusSet,
    XenstoreNode,
    XenstoreOperation,
    XenstoreQuota,
)


@dataclass
class Gate:
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)


MIB = 1 << 20
REGS = {"rax": 0x2A, "rsp": 0xFFFF_8300_0000_7F68, "rip": 0xFFFF_82D0_4020_0123, "rflags": 0x246,
        "cr0": 0x8005_0033, "cr3": 0x1F00_0000, "efer": 0xD01}  # fmt: skip


class FakeService:
    """``lazy``: the guest does not heed its CPUs' nor its balloon's targets, nor a shutdown."""

    def __init__(self, name: str = "web1") -> None:
        self.events = EventLog()
        self.calls = Calls()
        self.jobs = Jobs(self.events.publish, fault_of)
        self.labels: dict[str, str] = {}
        self.latency = Durations()
        self.config = GuestConfig(name=name, kernel="/boot/vmlinuz")
        self.state = Runstate.RUNNING
        self.console = FakeConsole(self.events.publish)
        self.consoles = Consoles(self.events.publish, self.console)
        self.consoles.xen.history.append(b"(XEN) Xen version 4.17\n")
        self.drives: dict[str, DriveInfo] = {}
        self.asked_for: dict[str, DiskConfig] = {}
        self.channels: dict[str, ChannelConfig] = {}
        self.descriptors: dict[str, DescriptorInfo] = {}
        self.store = Xenstore(self.events.publish)
        self.xenstore = self.store.client_of("rpc")
        self.xenstore.write("/tool/name", "web1")
        self.xenstore.write("/tool/raw", b"\xff\0")
        self.faults: dict[str, Exception] = {}
        self.gates: dict[str, Gate] = {}
        self.done: list[str] = []
        self.quitting = asyncio.Event()
        self.reloaded = Reloaded(("on_crash", "console.log_max"), ("memory",), ("access.viewer",))
        self.lazy = False
        self.levels: dict[str, str] = {}
        self.log = [
            LogRecord(1, 1795792071.25, "info", "xenpvd.guest", "a life begins"),
            LogRecord(2, 1795792072.5, "error", "xenpvd.rpc.errors", "incident 1\nTraceback:\n  \x1b[31m"),
        ]
        self.cpu_seconds = 4.5
        self.reason: str | None = None
        self.online = 1
        self.target: int | None = None
        self.ports = {
            1: PortInfo(1, 0, "interdomain", "0", 5, False, False),
            2: PortInfo(2, 0, "virq", "", 0, True, True),
            3: PortInfo(3, 1, "ipi", "", 0, False, False),
        }

    def hold(self, verb: str) -> Gate:
        return self.gates.setdefault(verb, Gate())

    def move(self, state: Runstate) -> None:
        before, self.state = self.state, state
        self.events.publish("guest.state", from_=before, to=state, reason="test")

    def _enter(self, verb: str) -> None:
        if verb in self.faults:
            raise self.faults[verb]

    async def _pass(self, verb: str) -> None:
        self._enter(verb)
        if gate := self.gates.get(verb):
            gate.entered.set()
            try:
                await gate.open.wait()
            finally:
                gate.left.set()

    def daemon_info(self) -> DaemonInfo:
        self._enter("daemon_info")
        return DaemonInfo(
            "xenpvd", "0.1.0", API, os.getpid(), self.events.epoch, 1.0, "asyncio", ("console",)
        )

    def daemon_quit(self, guest: str, /) -> None:
        if guest == "fail" and self._lives:
            why = "cannot end the daemon: there is a guest. Say what becomes of it: shutdown or destroy."
            raise StateError(why, self.state, ["stopped"])
        self.done.append(f"daemon_quit {guest}")
        self.quitting.set()

    async def daemon_reload(self) -> Reloaded:
        await self._pass("daemon_reload")
        self.done.append("daemon_reload")
        return self.reloaded

    def log_set_level(self, logger: str, level: str, /) -> None:
        if logger not in ("", "xenpvd.rpc"):
            why = f"cannot set the level of {logger!r}: nothing logs by that name."
            raise NotFound(why, "logger", logger)
        self.levels[logger] = level

    def log_tail(self, most: int, level: str, logger: str, /) -> list[LogRecord]:
        self.done.append(f"log_tail {most} {level} {logger}")
        return self.log[-most:]

    def guest_status(self) -> GuestStatus:
        self._enter("guest_status")
        return GuestStatus(
            name=self.config.name,
            type=self.config.type,
            state=self.state,
            memory_mib=self.config.memory,
            vcpus=self.config.vcpus,
            domid=1,
            phase=Phase.DEVICES if self._lives else None,
            reason=self.reason,
            uptime=192.4 if self._lives else None,
            boot_times={"shim": 0.2, "devices": 1.5},
            ready=self.state is Runstate.RUNNING,
            host=HostInfo("kvm-xen", "KVM_CAP_XEN_HVM", 0x1FF, "4k", "no hugepages"),
        )

    @property
    def _lives(self) -> bool:
        return self.state in (Runstate.RUNNING, Runstate.PAUSED)

    def _needs_life(self, verb: str) -> None:
        self._enter(verb)
        if not self._lives:
            why = f"cannot do that: {self.config.name} is {self.state}. Start it first."
            raise StateError(why, self.state, ["running", "paused"])

    async def guest_stats(self) -> GuestStats:
        await self._pass("guest_stats")
        vcpus = await self.vcpu_list(False) if self._lives else []
        ram = self.config.memory * MIB
        return GuestStats(
            name=self.config.name,
            version="0.1.0",
            state=self.state,
            uptime=192.4 if self._lives else None,
            boots=3,
            boot_times={"shim": 0.2, "devices": 1.5},
            labels=self.labels,
            memory=MemoryStats(ram, ram - (self.target or ram), 300 * MIB) if self._lives else None,
            vcpus=tuple(
                VcpuStats(each.id, each.online, each.state, self.cpu_seconds, 0.5, {"hypercall": each.exits})
                for each in vcpus
            ),
            hypercalls=self.hypercall_stats(0).counts,
            ports=dict(Counter(port.type for port in self.ports.values())),
            grants_mapped=1,
            xen_log_lost=0,
            drives=tuple(
                DriveStats(
                    vdev,
                    {"read": 10, "write": 5, "flush": 1, "discard": 0},
                    {"read": 10 * MIB, "write": 5 * MIB},
                    errors=2,
                    throttled=0,
                    in_flight=1,
                    latency=self.latency.view(),
                )
                for vdev in self.drives
            ),
            consoles=self.consoles.stats(),
            xenstore=self.store.stats(1),
            rpc=self.calls.view(),
            events=self.events.stats(),
            loop_lag=self.latency.view(),
            process=ProcessStats(1.0, 12.5, 350 * MIB, 40, 6),
        )

    def guest_config(self) -> GuestConfig:
        return self.config

    async def guest_check(self, config: GuestConfig) -> list[tuple[str, str]]:
        await self._pass("guest_check")
        return [("kernel", "none")] if "missing" in config.kernel else []

    async def guest_start(self, config: GuestConfig | None, paused: bool) -> GuestStatus:
        await self._pass("guest_start")
        if self._lives:
            raise StateError(
                "cannot start web1: it runs. Shut it down first.", "running", ["defined", "stopped"]
            )
        self.config = config or self.config
        self.move(Runstate.PAUSED if paused else Runstate.RUNNING)
        self.done.append("guest_start")
        return self.guest_status()

    async def guest_pause(self) -> GuestStatus:
        return await self._change("guest_pause", Runstate.PAUSED)

    async def guest_resume(self) -> GuestStatus:
        return await self._change("guest_resume", Runstate.RUNNING)

    async def guest_reset(self) -> GuestStatus:
        return await self._change("guest_reset", Runstate.RUNNING)

    async def _change(self, verb: str, state: Runstate) -> GuestStatus:
        self._needs_life(verb)
        await self._pass(verb)
        self.move(state)
        self.done.append(verb)
        return self.guest_status()

    async def guest_dump(self, file: str | None, memory: bool) -> JobInfo:
        await self._pass("guest_dump")
        self.done.append(f"guest_dump {file} {memory}")
        return self.jobs.start("guest.dump", self._dump(file or "/d/web1.tar.gz", memory), 4 * MIB, "bytes")

    def _dump(self, file: str, memory: bool) -> Work:
        yield MIB
        more = {"core": "/d/web1.core", "core_size": 128 * MIB, "live": True} if memory else {}
        nothing = {"core": None, "live": None, "missing": {}}
        return {"file": file, "size": 40 << 10, **nothing, **more}

    async def guest_sysrq(self, key: str, timeout: float) -> None:
        self._needs_life("guest_sysrq")
        await self._pass("guest_sysrq")
        self.console.print(f"sysrq: {key}\n".encode())
        self.done.append("guest_sysrq")

    async def guest_shutdown(self, mode: str, timeout: float, then: str) -> ShutdownResult:
        await self._pass("guest_shutdown")
        self.move(Runstate.STOPPED)
        self.done.append("guest_shutdown")
        return ShutdownResult(mode, None if self.lazy else 0.1, 1.5, self.state, self.lazy)

    async def guest_destroy(self) -> GuestStatus:
        await self._pass("guest_destroy")
        self.move(Runstate.STOPPED)
        self.done.append("guest_destroy")
        return self.guest_status()

    async def guest_wait(self, for_: str, timeout: float, since: int = 0) -> GuestStatus:
        await self._pass("guest_wait")
        self.done.append("guest_wait")
        return self.guest_status()

    async def vcpu_list(self, regs: bool) -> list[VcpuInfo]:
        self._needs_life("vcpu_list")
        state = "running" if self.state is Runstate.RUNNING else "paused"
        return [
            VcpuInfo(n, n < self.online, state, 1000 * (n + 1), REGS if regs else None)
            for n in range(self.config.vcpus)
        ]

    async def vcpu_set_online(self, count: int, wait: bool, timeout: float) -> VcpusSet:
        self._needs_life("vcpu_set_online")
        await self._pass("vcpu_set_online")
        if count > self.config.vcpus:
            raise NotFound(
                f"cannot use {count} CPUs: {self.config.name} has {self.config.vcpus}.", "vcpu", ""
            )
        if not self.lazy:
            self.online = count
        elif wait:
            raise TimedOut(f"the guest has not come to {count} CPUs: 0 is online.", online=[0])
        return VcpusSet(count, tuple(range(self.online)), 0.25 if wait else None)

    async def memory_info(self) -> MemoryInfo:
        self._needs_life("memory_info")
        ram = self.config.memory * MIB
        given_back = ram - (self.target or ram)
        regions = (
            MemoryRegion("ram", 0, ram, 300 * MIB, 296 * MIB),
            MemoryRegion("special", 0xFEFF8000, 8 * 4096, 4096, 0),
        )
        held = sum(region.resident for region in regions)
        return MemoryInfo(ram, ram - 24 * MIB, given_back, self.target, held, "thp", regions)

    async def memory_set_target(self, mib: int, wait: bool, timeout: float) -> MemoryTarget:
        self._needs_life("memory_set_target")
        await self._pass("memory_set_target")
        if not self.lazy:
            self.target = mib * MIB
            self.events.publish("memory.target", asked_mib=mib, reached_mib=mib)
        elif wait:
            raise TimedOut(f"the guest has not come to {mib} MiB.", reached_mib=self.config.memory)
        return MemoryTarget(mib, self.config.memory if self.lazy else mib, 1.5 if wait else None)

    def evtchn_list(self) -> list[PortInfo]:
        self._needs_life("evtchn_list")
        return list(self.ports.values())

    def evtchn_inject(self, port: int) -> PortInfo:
        self._needs_life("evtchn_inject")
        if port not in self.ports:
            raise NotFound(f"cannot raise an event: port {port} is closed.", "port", str(port))
        self.ports[port] = replace(self.ports[port], pending=True)
        return self.ports[port]

    def grant_list(self) -> list[GrantInfo]:
        self._needs_life("grant_list")
        return [
            GrantInfo(1, 0xFEFFC, 0, False, True, True, 1),
            GrantInfo(8, 0x12345, 0, True, False, False, 0),
        ]

    def hypercall_stats(self, recent: int) -> HypercallStats:
        self._enter("hypercall_stats")
        calls = (
            HypercallCall(40, 0, "version", (0, 0), 0x40011),
            HypercallCall(41, 0, "send", (5,), 0),
            HypercallCall(42, 1, "physdev_op", (24, 0xFFFF_8300_0000_7F68), -38),
        )
        counts = (
            HypercallCount("send", 30, {"ok": 30}),
            HypercallCount("physdev_op", 12, {"ENOSYS": 11, "ok": 1}),
        )
        return HypercallStats(42, counts, calls[len(calls) - min(recent, 3) :], {"xen": 42, "io": 7})

    def drive_list(self) -> list[DriveInfo]:
        return list(self.drives.values())

    async def drive_add(self, disk: DiskConfig, wait: bool, timeout: float) -> DriveAdded:
        await self._pass("drive_add")
        if old := self.drives.get(disk.vdev):
            if (old.target, old.access) != (disk.target, disk.access):
                raise Exists(
                    f"cannot add {disk.vdev}: it is {old.target}. Choose another name.", vdev=disk.vdev
                )
            return DriveAdded(old, False, None)
        drive = DriveInfo(
            disk.vdev,
            51712,
            disk.target,
            disk.access,
            disk.format,
            1 << 20,
            disk.sector_size,
            "Connected",
            "Connected",
            cache=disk.cache,
            limits=disk.limits.view(),
            plane="native, io_uring",
        )
        self.drives[disk.vdev] = drive
        self.asked_for[disk.vdev] = disk
        self.done.append("drive_add")
        self.events.publish("drive.added", vdev=disk.vdev)
        return DriveAdded(drive, True, 41.0 if wait else None)

    async def drive_remove(self, vdev: str, force: bool, missing_ok: bool, timeout: float) -> bool:
        await self._pass("drive_remove")
        if vdev not in self.drives:
            if missing_ok:
                return False
            raise NotFound(f"cannot remove {vdev}: there is no such drive.", "drive", vdev)
        del self.drives[vdev]
        self.events.publish("drive.removed", vdev=vdev)
        return True

    async def fd_add(self, name: str, fd: int) -> DescriptorAdded:
        try:
            await self._pass("fd_add")
            path = str(Path(f"/proc/self/fd/{fd}").readlink())
            info = DescriptorInfo(name, "file", "rw", os.fstat(fd).st_size, path=path)
        finally:
            os.close(fd)
        changed = self.descriptors.setdefault(name, info) is info
        return DescriptorAdded(self.descriptors[name], changed)

    async def fd_list(self) -> list[DescriptorInfo]:
        return list(self.descriptors.values())

    def fd_remove(self, name: str, missing_ok: bool) -> bool:
        self._enter("fd_remove")
        if name not in self.descriptors and not missing_ok:
            raise NotFound(f"cannot remove descriptor {name}: there is none.", "descriptor", name)
        return self.descriptors.pop(name, None) is not None

    async def drive_resize(self, vdev: str, size: int | None, shrink: bool) -> DriveInfo:
        await self._pass("drive_resize")
        return self._changed(vdev, size=size or self.drives[vdev].size)

    async def drive_set_limits(self, vdev: str, limits: LimitsConfig) -> DriveInfo:
        return self._changed(vdev, limits=limits.view())

    async def drive_flush(self, vdev: str) -> None:
        await self._pass("drive_flush")
        self.done.append("drive_flush")

    async def drive_swap(self, vdev: str, target: str) -> DriveInfo:
        await self._pass("drive_swap")
        return self._changed(vdev, target=target)

    def _changed(self, vdev: str, **changes: Any) -> DriveInfo:
        if vdev not in self.drives:
            raise NotFound(f"cannot change {vdev}: there is no such drive.", "drive", vdev)
        self.with_drive(vdev, **changes)
        return self.drives[vdev]

    async def channel_add(self, config: ChannelConfig, wait: bool, timeout: float) -> ChannelAdded:
        await self._pass("channel_add")
        if (there := self.channels.get(config.name)) is not None:
            if there != config:
                raise Exists(f"cannot add channel {config.name}: there is another.", name=config.name)
            return ChannelAdded(self.consoles.info(config.name), False)
        number = config.number or 1
        console = Console(self.events.publish, config.history, config.name, config.input, number)
        self.consoles.put(console, await self.consoles.open_log(console, config.log))
        self.channels[config.name] = config
        return ChannelAdded(self.consoles.info(config.name), True)

    async def channel_remove(self, name: str, force: bool, missing_ok: bool, timeout: float) -> bool:
        await self._pass("channel_remove")
        if self.channels.pop(name, None) is None:
            if missing_ok:
                return False
            raise NotFound(f"cannot remove channel {name}: there is none.", "console", name)
        await self.consoles.drop(name)
        return True

    def xenstore_tree(self, path: str, depth: int) -> Iterable[XenstoreNode]:
        return self.store.tree(path, depth)

    def xenstore_history(self) -> Iterable[XenstoreOperation]:
        return self.store.history()

    def xenstore_quotas(self) -> list[XenstoreQuota]:
        return self.store.quotas(1)

    def xenstore_set_quota(self, name: str, value: int) -> None:
        self.store.set_quota(1, name, value)

    def with_drive(self, vdev: str, **changes: Any) -> None:
        self.drives[vdev] = replace(self.drives[vdev], **changes)
