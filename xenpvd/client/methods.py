"""Every method with its types. Made by ``python -m xenpvd.rpc --python methods``."""
# mypy: no-warn-return-any

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Unpack

from xenpvd.client.params import (
    ChannelAddParams,
    ChannelRemoveParams,
    CheckParams,
    ConsoleParams,
    ConsoleReadParams,
    ConsoleViewerParams,
    ConsoleWaitParams,
    ConsoleWriteParams,
    DescriptorRemoveParams,
    DriveAddParams,
    DriveLimitsParams,
    DriveParams,
    DriveRemoveParams,
    DriveResizeParams,
    DriveSwapParams,
    DumpParams,
    HistoryParams,
    InjectParams,
    JobCancelParams,
    JobParams,
    JobWaitParams,
    LogLevelParams,
    LogTailParams,
    QuitParams,
    SetOnlineParams,
    SetTargetParams,
    ShutdownParams,
    StartParams,
    StatsParams,
    SysrqParams,
    VcpuListParams,
    WaitParams,
    XenstoreHistoryParams,
    XenstorePathParams,
    XenstoreQuotaParams,
    XenstoreTransactionParams,
    XenstoreTreeParams,
    XenstoreWriteParams,
)
from xenpvd.client.shapes import (
    ChannelAdded,
    ConsoleData,
    ConsoleFound,
    ConsoleInfo,
    ConsoleViewerInfo,
    DaemonInfo,
    DescriptorInfo,
    DriveAdded,
    DriveInfo,
    EventNote,
    EvtchnInfo,
    GrantInfo,
    GuestConfig,
    GuestStats,
    GuestStatus,
    HypercallStats,
    JobInfo,
    LevelSet,
    LogRecord,
    MemoryInfo,
    MemoryTarget,
    Pong,
    Pressed,
    Problems,
    Quitting,
    Reloaded,
    Removed,
    ShutdownResult,
    VcpuInfo,
    VcpusSet,
    Written,
    XenstoreNode,
    XenstoreOperation,
    XenstoreQuota,
    XenstoreStep,
    XenstoreValue,
)

#: They merely wait: each has a connection of its own, whose end gives it up at the daemon, too.
WAITING = (
    "console.wait",
    "console.write",
    "guest.sysrq",
    "guest.wait",
    "job.cancel",
    "job.wait",
    "memory.set_target",
    "vcpu.set_online",
)
#: They change what a connection is for, or take more than JSON.
STREAMING = (
    "console.attach",
    "events.subscribe",
    "events.unsubscribe",
    "fd.add",
    "xenstore.unwatch",
    "xenstore.watch",
)


class Methods(ABC):
    """The API's methods: ``drive.add`` is :meth:`drive_add`. Parameters go by name; results are JSON's.

    A parameter whose name is Python's own takes an underscore: ``for_="devices"``.
    """

    @abstractmethod
    async def call(self, method: str, /, **params: Any) -> Any:
        """Any method by the API's name, without types."""

    async def rpc_discover(self) -> dict[str, Any]:
        """This API as an OpenRPC document."""
        return await self.call("rpc.discover")

    async def daemon_info(self) -> DaemonInfo:
        """What this daemon is and can do."""
        return await self.call("daemon.info")

    async def daemon_ping(self) -> Pong:
        """Answer at once, with the place in the event log."""
        return await self.call("daemon.ping")

    async def daemon_quit(self, **params: Unpack[QuitParams]) -> Quitting:
        """End the daemon; with a guest that is not over, only if it is said what becomes of it."""
        return await self.call("daemon.quit", **params)

    async def daemon_reload(self) -> Reloaded:
        """Read the definition's file anew, and open log files anew."""
        return await self.call("daemon.reload")

    async def log_set_level(self, **params: Unpack[LogLevelParams]) -> LevelSet:
        """How much the daemon writes into its own log, or a part of it, from now on."""
        return await self.call("log.set_level", **params)

    async def log_tail(self, **params: Unpack[LogTailParams]) -> list[LogRecord]:
        """The newest records of the daemon's own log, oldest first; the last 1000 are kept."""
        return await self.call("log.tail", **params)

    async def events_history(self, **params: Unpack[HistoryParams]) -> list[EventNote]:
        """The newest kept events of these names, oldest first."""
        return await self.call("events.history", **params)

    async def guest_status(self) -> GuestStatus:
        """Where the guest is, and what it runs on."""
        return await self.call("guest.status")

    async def guest_config(self) -> GuestConfig:
        """The guest's definition, defaults filled in."""
        return await self.call("guest.config")

    async def guest_stats(self) -> GuestStats:
        """What is counted of the guest and its daemon; http.sock has it for Prometheus, as
        /metrics."""
        return await self.call("guest.stats")

    async def guest_check(self, **params: Unpack[CheckParams]) -> Problems:
        """Every problem that guest.start would meet with this definition. No effect."""
        return await self.call("guest.check", **params)

    async def guest_start(self, **params: Unpack[StartParams]) -> GuestStatus:
        """Start the guest; guest.wait tells how far its boot has come."""
        return await self.call("guest.start", **params)

    async def guest_pause(self) -> GuestStatus:
        """Stop the guest's vCPUs where they are, until guest.resume."""
        return await self.call("guest.pause")

    async def guest_resume(self) -> GuestStatus:
        """Let the vCPUs of a paused guest run on."""
        return await self.call("guest.resume")

    async def guest_shutdown(self, **params: Unpack[ShutdownParams]) -> ShutdownResult:
        """Ask the guest to shut itself down, and wait until it has."""
        return await self.call("guest.shutdown", **params)

    async def guest_reset(self) -> GuestStatus:
        """End the guest at once and boot it again, as by a reset button."""
        return await self.call("guest.reset")

    async def guest_dump(self, **params: Unpack[DumpParams]) -> JobInfo:
        """Write what a developer wants to see of a guest that misbehaves into a file; answers with
        the job."""
        return await self.call("guest.dump", **params)

    async def guest_sysrq(self, **params: Unpack[SysrqParams]) -> Pressed:
        """Press a SysRq key; answers when the guest has taken it."""
        return await self.call("guest.sysrq", **params)

    async def guest_destroy(self) -> GuestStatus:
        """End the guest at once, as by pulling the plug."""
        return await self.call("guest.destroy")

    async def guest_wait(self, **params: Unpack[WaitParams]) -> GuestStatus:
        """Wait for a boot phase, a state or a text on the console."""
        return await self.call("guest.wait", **params)

    async def vcpu_list(self, **params: Unpack[VcpuListParams]) -> list[VcpuInfo]:
        """The virtual CPUs: whether the guest uses them, what they do, and their registers if asked
        for."""
        return await self.call("vcpu.list", **params)

    async def vcpu_set_online(self, **params: Unpack[SetOnlineParams]) -> VcpusSet:
        """Ask the guest to use its first so many vCPUs."""
        return await self.call("vcpu.set_online", **params)

    async def memory_info(self) -> MemoryInfo:
        """The guest's memory: what it has, what it has given back, and what the host holds for it."""
        return await self.call("memory.info")

    async def memory_set_target(self, **params: Unpack[SetTargetParams]) -> MemoryTarget:
        """Ask the guest's balloon to make the VM so large: down to give memory back, up to take it
        again."""
        return await self.call("memory.set_target", **params)

    async def drive_list(self) -> list[DriveInfo]:
        """The disks, as both ends see them."""
        return await self.call("drive.list")

    async def drive_add(self, **params: Unpack[DriveAddParams]) -> DriveAdded:
        """Attach a disk, also while the guest runs."""
        return await self.call("drive.add", **params)

    async def drive_remove(self, **params: Unpack[DriveRemoveParams]) -> Removed:
        """Detach a disk; answers when the guest has let go of it."""
        return await self.call("drive.remove", **params)

    async def drive_resize(self, **params: Unpack[DriveResizeParams]) -> DriveInfo:
        """Have the guest see a disk's new size: the one given, or what its image has become
        meanwhile."""
        return await self.call("drive.resize", **params)

    async def drive_set_limits(self, **params: Unpack[DriveLimitsParams]) -> DriveInfo:
        """Limit what a disk may use of its storage, from now on; what is left out is no limit."""
        return await self.call("drive.set_limits", **params)

    async def drive_flush(self, **params: Unpack[DriveParams]) -> None:
        """Have everything that the guest has written to a disk on stable storage."""
        return await self.call("drive.flush", **params)

    async def drive_swap(self, **params: Unpack[DriveSwapParams]) -> DriveInfo:
        """Put another image behind a disk while the guest goes on; it waits until what is under way
        is done."""
        return await self.call("drive.swap", **params)

    async def fd_list(self) -> list[DescriptorInfo]:
        """The descriptors that the daemon was given, at its start and since."""
        return await self.call("fd.list")

    async def fd_remove(self, **params: Unpack[DescriptorRemoveParams]) -> Removed:
        """Close one; BUSY while a disk is on it."""
        return await self.call("fd.remove", **params)

    async def console_list(self) -> list[ConsoleInfo]:
        """The consoles: "0" is the guest's hvc0, "xen" the log of the Xen below it, others are its
        channels."""
        return await self.call("console.list")

    async def console_read(self, **params: Unpack[ConsoleReadParams]) -> ConsoleData:
        """A piece of what a console has printed."""
        return await self.call("console.read", **params)

    async def console_write(self, **params: Unpack[ConsoleWriteParams]) -> Written:
        """Type on the guest's console; waits while the guest does not read what was typed before."""
        return await self.call("console.write", **params)

    async def console_wait(self, **params: Unpack[ConsoleWaitParams]) -> ConsoleFound:
        """Wait for a pattern, in what is kept from ``since`` on or in what comes; answers with the
        first match."""
        return await self.call("console.wait", **params)

    async def console_viewers(self) -> list[ConsoleViewerInfo]:
        """Who is attached to which console."""
        return await self.call("console.viewers")

    async def console_kick(self, **params: Unpack[ConsoleViewerParams]) -> None:
        """End a viewer."""
        return await self.call("console.kick", **params)

    async def console_steal(self, **params: Unpack[ConsoleViewerParams]) -> None:
        """Give a viewer the keyboard, and take it from who has it. The viewer must be one who may
        type."""
        return await self.call("console.steal", **params)

    async def console_clear(self, **params: Unpack[ConsoleParams]) -> None:
        """Forget what a console has printed so far; offsets go on. A log file gets it first."""
        return await self.call("console.clear", **params)

    async def channel_add(self, **params: Unpack[ChannelAddParams]) -> ChannelAdded:
        """Give the running guest one more console, hvc1 and so on. It is attached to by its name."""
        return await self.call("channel.add", **params)

    async def channel_remove(self, **params: Unpack[ChannelRemoveParams]) -> Removed:
        """Take a channel from the guest; answers when the guest has let go of it. Its recording
        ends."""
        return await self.call("channel.remove", **params)

    async def evtchn_list(self) -> list[EvtchnInfo]:
        """The guest's event-channel ports, with the names of QEMU's xen-event-list."""
        return await self.call("evtchn.list")

    async def evtchn_inject(self, **params: Unpack[InjectParams]) -> EvtchnInfo:
        """Raise an event on a port of the guest's, as a lost one would have been; answers with the
        port."""
        return await self.call("evtchn.inject", **params)

    async def grant_list(self) -> list[GrantInfo]:
        """What the guest grants, and which of it is in use."""
        return await self.call("grant.list")

    async def hypercall_stats(self, **params: Unpack[StatsParams]) -> HypercallStats:
        """The hypercalls that have reached the daemon since this boot, by operation and outcome."""
        return await self.call("hypercall.stats", **params)

    async def xenstore_read(self, **params: Unpack[XenstorePathParams]) -> XenstoreValue:
        """The value of a node."""
        return await self.call("xenstore.read", **params)

    async def xenstore_list(self, **params: Unpack[XenstorePathParams]) -> list[str]:
        """The names of a node's children."""
        return await self.call("xenstore.list", **params)

    async def xenstore_tree(self, **params: Unpack[XenstoreTreeParams]) -> list[XenstoreNode]:
        """A node and what is below it, parents first."""
        return await self.call("xenstore.tree", **params)

    async def xenstore_write(self, **params: Unpack[XenstoreWriteParams]) -> XenstoreValue:
        """Set the value of a node, as domain 0; what is missing of it and above it is made."""
        return await self.call("xenstore.write", **params)

    async def xenstore_remove(self, **params: Unpack[XenstorePathParams]) -> None:
        """Remove a node and what is below it, as domain 0. If its parent is there, it need not be."""
        return await self.call("xenstore.remove", **params)

    async def xenstore_transaction(self, **params: Unpack[XenstoreTransactionParams]) -> list[XenstoreStep]:
        """Do all of these operations at once, or none of them."""
        return await self.call("xenstore.transaction", **params)

    async def xenstore_history(self, **params: Unpack[XenstoreHistoryParams]) -> list[XenstoreOperation]:
        """What was asked of the store lately, by whom, and what came of it; oldest first."""
        return await self.call("xenstore.history", **params)

    async def xenstore_quotas(self) -> list[XenstoreQuota]:
        """How much of the store the guest may take, and what it has taken."""
        return await self.call("xenstore.quotas")

    async def xenstore_set_quota(self, **params: Unpack[XenstoreQuotaParams]) -> None:
        """Set one of the guest's quotas. It holds from now on, over reboots too, until the daemon
        ends."""
        return await self.call("xenstore.set_quota", **params)

    async def job_list(self) -> list[JobInfo]:
        """Jobs that go on and the last ones that are over, oldest first."""
        return await self.call("job.list")

    async def job_get(self, **params: Unpack[JobParams]) -> JobInfo:
        """How far a job is, or what became of it."""
        return await self.call("job.get", **params)

    async def job_wait(self, **params: Unpack[JobWaitParams]) -> JobInfo:
        """Wait until a job is over, however it ends: its state tells."""
        return await self.call("job.wait", **params)

    async def job_cancel(self, **params: Unpack[JobCancelParams]) -> JobInfo:
        """Give a job up, and wait until it is over."""
        return await self.call("job.cancel", **params)
