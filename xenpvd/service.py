"""The verbs of the street, answered: :class:`xenpvd.rpc.service.Service` over the guest and its daemon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from xenpvd import check, dump, logs, stats
from xenpvd.config import AccessConfig, ChannelConfig, DiskConfig, GuestConfig, LimitsConfig
from xenpvd.counts import Calls, Durations
from xenpvd.errors import BadConfig, Busy, StateError
from xenpvd.events import EventLog
from xenpvd.figures import GuestStats
from xenpvd.guest import Guest
from xenpvd.jobs import Jobs
from xenpvd.paths import BY_DESCRIPTOR
from xenpvd.tasks import in_thread
from xenpvd.views import (
    ChannelAdded,
    DaemonInfo,
    DescriptorAdded,
    DescriptorInfo,
    DriveAdded,
    DriveInfo,
    GrantInfo,
    GuestStatus,
    HypercallStats,
    JobInfo,
    MemoryInfo,
    MemoryTarget,
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


class DaemonVerbs(Protocol):
    """What the daemon itself answers."""

    name: str
    events: EventLog
    jobs: Jobs
    config: GuestConfig | None
    lag: Durations

    def as_run(self, config: GuestConfig) -> GuestConfig:
        """``config`` as this daemon runs it: its own options come first."""

    def info(self) -> DaemonInfo: ...

    def quit(self, guest: str) -> None:
        """Raises :class:`StateError`."""

    async def reload(self) -> Reloaded:
        """Raises what is wrong with the file, :class:`Unsupported` if there is none, :class:`HostError`."""


class Service:
    """:class:`xenpvd.rpc.service.Service`: what the street may ask, answered by the guest and the daemon."""

    def __init__(self, guest: Guest, daemon: DaemonVerbs) -> None:
        self._guest = guest
        self._daemon = daemon
        self.events = daemon.events
        self.calls = Calls()
        self.jobs = daemon.jobs
        self.xenstore = guest.xenstore.client_of("rpc")
        self.consoles = guest.consoles
        self.daemon_info = daemon.info
        self.daemon_quit = daemon.quit
        self.daemon_reload = daemon.reload
        self.log_set_level = logs.set_level
        self.log_tail = logs.tail

    def guest_status(self) -> GuestStatus:
        return self._guest.status(self._daemon.name)

    def guest_config(self) -> GuestConfig:
        config = self._guest.config or self._daemon.config
        if config is None:
            raise StateError("there is no guest yet. Start one with guest.start.", Runstate.DEFINED, [])
        return config

    async def guest_stats(self) -> GuestStats:
        daemon = self._daemon
        return await stats.of(self._guest, daemon.info(), daemon.events, self.calls, daemon.lag)

    async def guest_check(self, config: GuestConfig) -> list[tuple[str, str]]:
        return await in_thread(partial(check.problems, self._daemon.as_run(config), self._guest.descriptors))

    async def guest_start(self, config: GuestConfig | None, paused: bool) -> GuestStatus:
        if config is not None:
            self._check_access(config)
        config = config or self._guest.next_config or self._daemon.config
        if config is None:
            raise BadConfig("cannot start: this daemon has no guest definition. Pass one as config.")
        await self._guest.start(self._daemon.as_run(config), paused)
        return self.guest_status()

    def _check_access(self, config: GuestConfig) -> None:
        """Who may start a guest cannot say who may what."""
        own = self._daemon.config
        if config.access not in (AccessConfig(), own.access if own is not None else AccessConfig()):
            why = "who may what is the daemon's: it counts in the file that xenpvd is started with"
            raise BadConfig(f"cannot start: access: {why}. Leave it out here.", [("access", why)])

    async def guest_pause(self) -> GuestStatus:
        await self._guest.pause()
        return self.guest_status()

    async def guest_resume(self) -> GuestStatus:
        await self._guest.resume()
        return self.guest_status()

    async def guest_reset(self) -> GuestStatus:
        await self._guest.reset()
        return self.guest_status()

    async def guest_dump(self, file: str | None, memory: bool) -> JobInfo:
        machine = self._guest.there("dump the memory").machine if memory else None
        work, total = await dump.prepare(self, machine, Path(file) if file else None)
        return self.jobs.start("guest.dump", work, total, "bytes")

    async def guest_sysrq(self, key: str, timeout: float) -> None:
        await self._guest.requests.sysrq(key, timeout)

    async def guest_shutdown(self, mode: str, timeout: float, then: str) -> ShutdownResult:
        return await self._guest.shutdown(mode, timeout, then)

    async def guest_destroy(self) -> GuestStatus:
        await self._guest.destroy()
        return self.guest_status()

    async def guest_wait(self, for_: str, timeout: float, since: int) -> GuestStatus:
        await self._guest.wait(for_, timeout, since)
        return self.guest_status()

    async def vcpu_list(self, regs: bool) -> list[VcpuInfo]:
        machine = self._guest.there("list the CPUs").machine
        return await in_thread(partial(machine.vcpus, regs))

    async def vcpu_set_online(self, count: int, wait: bool, timeout: float) -> VcpusSet:
        return await self._guest.requests.set_online(count, wait, timeout)

    async def memory_info(self) -> MemoryInfo:
        return await self._guest.balloon.info(self._guest.there("look at the memory"))

    async def memory_set_target(self, mib: int, wait: bool, timeout: float) -> MemoryTarget:
        return await self._guest.balloon.set_target(mib, wait, timeout)

    def evtchn_list(self) -> list[PortInfo]:
        return self._guest.there("list the event channels").machine.ports()

    def evtchn_inject(self, port: int) -> PortInfo:
        return self._guest.there("raise an event").machine.inject(port)

    def grant_list(self) -> list[GrantInfo]:
        return self._guest.there("list the grants").machine.grants.listing()

    def hypercall_stats(self, recent: int) -> HypercallStats:
        """Of this life, or of the last one."""
        machine = self._guest.machine
        if machine is None:
            raise StateError("there are no hypercalls yet. Start the guest.", self._guest.state, [])
        return machine.hypercall_stats(recent)

    def drive_list(self) -> list[DriveInfo]:
        domain = self._guest.domain
        return [drive.info() for drive in domain.drives.values()] if domain else []

    async def drive_add(self, disk: DiskConfig, wait: bool, timeout: float) -> DriveAdded:
        domain = self._guest.running(f"add {disk.vdev}")
        return await self._guest.drives.add(domain, disk, wait, timeout)

    async def drive_remove(self, vdev: str, force: bool, missing_ok: bool, timeout: float) -> bool:
        if self._guest.state is Runstate.PAUSED and not force:
            self._guest.running(f"remove {vdev}")  # it could not let go
        return await self._guest.drives.remove(
            self._guest.domain, vdev, force=force, missing_ok=missing_ok, timeout=timeout
        )

    async def drive_resize(self, vdev: str, size: int | None, shrink: bool) -> DriveInfo:
        return await self._guest.drives.resize(self._guest.domain, vdev, size, shrink)

    async def drive_set_limits(self, vdev: str, limits: LimitsConfig) -> DriveInfo:
        return await self._guest.drives.set_limits(self._guest.domain, vdev, limits)

    async def drive_flush(self, vdev: str) -> None:
        await self._guest.drives.flush(self._guest.domain, vdev)

    async def drive_swap(self, vdev: str, target: str) -> DriveInfo:
        return await self._guest.drives.swap(self._guest.domain, vdev, target)

    async def fd_add(self, name: str, fd: int) -> DescriptorAdded:
        added = await self._guest.descriptors.add(name, fd)
        return replace(added, descriptor=self._with_drives(added.descriptor))

    async def fd_list(self) -> list[DescriptorInfo]:
        return [self._with_drives(info) for info in await self._guest.descriptors.listing()]

    def _with_drives(self, info: DescriptorInfo) -> DescriptorInfo:
        return replace(info, drives=self._guest.drives.on(BY_DESCRIPTOR + info.name))

    def fd_remove(self, name: str, missing_ok: bool) -> bool:
        if users := self._guest.drives.on(BY_DESCRIPTOR + name):
            raise Busy(
                f"cannot remove descriptor {name}: {users[0]} uses it. Remove that first.", by=users[0]
            )
        if missing_ok and not self._guest.descriptors.has(name):
            return False
        self._guest.descriptors.remove(name)
        return True

    async def channel_add(self, config: ChannelConfig, wait: bool, timeout: float) -> ChannelAdded:
        domain = self._guest.running(f"add channel {config.name}")
        return await self._guest.channels.add(domain, config, wait, timeout)

    async def channel_remove(self, name: str, force: bool, missing_ok: bool, timeout: float) -> bool:
        if self._guest.state is Runstate.PAUSED and not force:
            self._guest.running(f"remove channel {name}")  # it could not let go
        return await self._guest.channels.remove(
            self._guest.domain, name, force=force, missing_ok=missing_ok, timeout=timeout
        )

    def xenstore_tree(self, path: str, depth: int) -> Iterable[XenstoreNode]:
        return self._guest.xenstore.tree(path, depth)

    def xenstore_history(self) -> Iterable[XenstoreOperation]:
        return self._guest.xenstore.history()

    def xenstore_quotas(self) -> list[XenstoreQuota]:
        return self._guest.xenstore.quotas(self._guest.domid)

    def xenstore_set_quota(self, name: str, value: int) -> None:
        self._guest.xenstore.set_quota(self._guest.domid, name, value)
