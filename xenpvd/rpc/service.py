"""The street's door into the house: the verbs that RPC may ask for. ``xenpvd.service.Service`` fits it.

Every verb raises ``XenpvdError`` or below for what the asker can mend; anything else is the daemon's fault.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from xenpvd.config import ChannelConfig, DiskConfig, GuestConfig, LimitsConfig
from xenpvd.counts import Calls
from xenpvd.events import EventLog
from xenpvd.figures import GuestStats
from xenpvd.views import (
    ChannelAdded,
    ConsoleChunk,
    ConsoleInfo,
    ConsoleMatch,
    ConsoleViewerInfo,
    DaemonInfo,
    DescriptorAdded,
    DescriptorInfo,
    DriveAdded,
    DriveInfo,
    GrantInfo,
    GuestStatus,
    HypercallStats,
    JobInfo,
    LogRecord,
    MemoryInfo,
    MemoryTarget,
    PortInfo,
    Reloaded,
    ShutdownResult,
    VcpuInfo,
    VcpusSet,
    XenstoreNode,
    XenstoreOperation,
    XenstoreQuota,
)


class ConsoleViewer(Protocol):
    """One attached viewer of a console, at an absolute offset of its recording."""

    @property
    def mode(self) -> str:
        """``rw`` or ``ro``; a ``rw`` viewer whose keyboard was stolen becomes ``ro``."""

    @property
    def number(self) -> int:
        """As ``console.viewers`` and ``console.kick`` have it."""

    @property
    def offset(self) -> int:
        """Where the next :meth:`read` begins."""

    @property
    def input(self) -> str:
        """single, shared or none."""

    @property
    def live(self) -> int:
        """Where it attached: what comes before was printed earlier."""

    @property
    def kicked(self) -> bool:
        """Somebody ended it."""

    async def read(self) -> bytes:
        """The next bytes, waiting for some; b"" at the end (viewer closed, console gone, too slow)."""

    async def write(self, data: bytes) -> None:
        """Type ``data``; waits while the guest does not take it. Raises ``Busy`` when mode is ``ro``, or the
        viewer has ended, or that comes to be meanwhile."""

    def boot_at(self, offset: int) -> int | None:
        """The number of the boot whose output begins there, if one's does."""

    async def wait_ended(self) -> None:
        """Return once it is detached, by whomever."""

    def release(self) -> None:
        """Give the keyboard up."""

    def steal(self) -> None:
        """Take the keyboard from who has it. Raises ``Unsupported`` if there is none, ``Busy`` if the viewer
        is over."""

    def close(self) -> str:
        """Detach; returns why the viewer ended ("detached", "too slow: N bytes lost", ...). Idempotent."""


class Consoles(Protocol):
    """The guest's consoles. All that take a ``name`` raise ``NotFound``; ``since`` is an absolute offset, and
    ``ago`` seconds, which come before it if they are given."""

    def listing(self) -> list[ConsoleInfo]: ...
    def read(self, name: str, since: int, ago: float | None, limit: int) -> ConsoleChunk:
        """``since`` below 0 counts from the end."""

    async def write(self, name: str, data: bytes, timeout: float) -> int:
        """Type ``data``; the number of bytes. What the guest was given when it is cancelled or raises
        ``TimedOut`` (its data ``written``) stays given, the rest is not typed. Raises ``Busy``."""

    def attach(
        self,
        name: str,
        mode: str,
        since: int | None,
        ago: float | None,
        who: str,
        on_mode: Callable[[str], None] = ...,
        may_type: bool = ...,
    ) -> ConsoleViewer:
        """``mode`` rw, ro or steal; ``since`` None for all that is kept. ``on_mode`` is called when the
        viewer gets or loses the keyboard; it can be given that later if it ``may_type``. Raises ``Busy``,
        ``Unsupported``, ``LimitReached``."""

    def viewers(self) -> list[ConsoleViewerInfo]: ...
    def kick(self, number: int, by: str) -> None:
        """End a viewer. Raises ``NotFound``."""

    def steal(self, number: int) -> None:
        """Give a viewer the keyboard. Raises ``NotFound``, ``Unsupported``, ``PermissionRefused``."""

    async def wait(self, name: str, regex: str, since: int, timeout: float, privileged: bool) -> ConsoleMatch:
        """Places are kept for those who are ``privileged``. Raises ``BadConfig``, ``TimedOut``,
        ``LimitReached``; ``NotFound`` if the daemon ends before."""

    async def clear(self, name: str) -> None:
        """Forget what is kept; offsets go on. A log file gets it first, if it can be written."""


class StoreTx(Protocol):
    """What can be done in a transaction, as domain 0. Everything raises ``XenstoreFault``."""

    def read(self, path: str) -> bytes: ...
    def directory(self, path: str) -> list[str]:
        """The children's names."""

    def write(self, path: str, value: bytes) -> None: ...
    def mkdir(self, path: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def get_perms(self, path: str) -> list[str]:
        """In wire form, the owner's first: n1, r0."""

    def set_perms(self, path: str, perms: list[str]) -> None: ...


class StoreWatch(Protocol):
    """Yields the paths that have changed, the watched one first; for one reader."""

    def __aiter__(self) -> AsyncIterator[str]: ...

    def close(self) -> None:
        """End the iteration. Idempotent."""


class Store(StoreTx, Protocol):
    """The guest's xenstore, outside of transactions."""

    def transaction(self) -> AbstractContextManager[StoreTx]:
        """Commits at the end of the block, which must not await; drops everything on an exception."""

    def watch(self, path: str) -> StoreWatch: ...


class Jobs(Protocol):
    """All but ``listing`` raise ``NotFound``."""

    def listing(self) -> list[JobInfo]: ...
    def get(self, number: int) -> JobInfo: ...
    async def wait(self, number: int, timeout: float) -> JobInfo:
        """Until it is over. Raises ``TimedOut``."""

    async def cancel(self, number: int, timeout: float) -> JobInfo:
        """As it is when it is over. Raises ``TimedOut``."""


class Service(Protocol):
    events: EventLog
    calls: Calls

    @property
    def consoles(self) -> Consoles: ...

    @property
    def xenstore(self) -> Store: ...

    @property
    def jobs(self) -> Jobs: ...

    def daemon_info(self) -> DaemonInfo: ...
    def daemon_quit(self, guest: str, /) -> None:
        """Begin to stop. ``guest`` is what becomes of one: fail (raises ``StateError``), shutdown or destroy.
        Returns at once."""

    async def daemon_reload(self) -> Reloaded: ...
    def log_set_level(self, logger: str, level: str, /) -> None:
        """Of the daemon's own log; ``logger`` "" is all of it. Raises ``NotFound``, ``BadConfig``."""

    def log_tail(self, most: int, level: str, logger: str, /) -> list[LogRecord]:
        """The newest ones, oldest first."""

    def guest_status(self) -> GuestStatus: ...
    def guest_config(self) -> GuestConfig: ...
    async def guest_stats(self) -> GuestStats:
        """All that is counted, of the guest and its daemon."""

    async def guest_check(self, config: GuestConfig) -> list[tuple[str, str]]:
        """Every problem that ``guest_start`` would meet, as (location, message). No effect."""

    async def guest_start(self, config: GuestConfig | None, paused: bool) -> GuestStatus: ...
    async def guest_pause(self) -> GuestStatus:
        """No vCPU runs when it returns; backends go on. No error if the guest is paused."""

    async def guest_resume(self) -> GuestStatus: ...
    async def guest_reset(self) -> GuestStatus:
        """End this life as by a reset button and begin another one."""

    async def guest_dump(self, file: str | None, memory: bool) -> JobInfo: ...
    async def guest_sysrq(self, key: str, timeout: float) -> None:
        """Press a key of Linux's SysRq through control/sysrq; returns when the guest has taken it."""

    async def guest_shutdown(self, mode: str, timeout: float, then: str) -> ShutdownResult:
        """Ask the guest by control/shutdown; wait for the acknowledgement and the end."""

    async def guest_destroy(self) -> GuestStatus: ...
    async def guest_wait(self, for_: str, timeout: float, since: int) -> GuestStatus:
        """Wait for a phase ("devices"), a state ("stopped") or "console:TEXT" from offset ``since`` on."""

    async def vcpu_list(self, regs: bool) -> list[VcpuInfo]: ...
    async def vcpu_set_online(self, count: int, wait: bool, timeout: float) -> VcpusSet:
        """Have the guest use its first ``count`` CPUs. Raises ``TimedOut`` with who is online."""

    async def memory_info(self) -> MemoryInfo: ...
    async def memory_set_target(self, mib: int, wait: bool, timeout: float) -> MemoryTarget:
        """Have the guest's balloon make the VM ``mib`` MiB large. ``TimedOut`` says how far it came."""

    def evtchn_list(self) -> list[PortInfo]: ...
    def evtchn_inject(self, port: int) -> PortInfo:
        """Raise an event on one of the guest's ports, as a lost one would have been."""

    def grant_list(self) -> list[GrantInfo]: ...
    def hypercall_stats(self, recent: int) -> HypercallStats: ...

    def drive_list(self) -> list[DriveInfo]: ...
    async def drive_add(self, disk: DiskConfig, wait: bool, timeout: float) -> DriveAdded: ...
    async def drive_remove(self, vdev: str, force: bool, missing_ok: bool, timeout: float) -> bool:
        """True if a drive was removed, False if there was none and ``missing_ok``."""

    async def drive_resize(self, vdev: str, size: int | None, shrink: bool) -> DriveInfo: ...
    async def drive_set_limits(self, vdev: str, limits: LimitsConfig) -> DriveInfo: ...
    async def drive_flush(self, vdev: str) -> None: ...
    async def drive_swap(self, vdev: str, target: str) -> DriveInfo: ...

    async def fd_add(self, name: str, fd: int) -> DescriptorAdded:
        """``fd`` is the service's from now on, also if this raises."""

    async def fd_list(self) -> list[DescriptorInfo]: ...
    def fd_remove(self, name: str, missing_ok: bool) -> bool:
        """True if one was removed, False if there was none and ``missing_ok``. Raises ``Busy``."""

    async def channel_add(self, config: ChannelConfig, wait: bool, timeout: float) -> ChannelAdded: ...
    async def channel_remove(self, name: str, force: bool, missing_ok: bool, timeout: float) -> bool:
        """True if one was removed, False if there was none and ``missing_ok``."""

    def xenstore_tree(self, path: str, depth: int) -> Iterable[XenstoreNode]: ...
    def xenstore_history(self) -> Iterable[XenstoreOperation]:
        """The newest first; to be used up at once."""

    def xenstore_quotas(self) -> list[XenstoreQuota]:
        """The guest's."""

    def xenstore_set_quota(self, name: str, value: int) -> None:
        """0 is no limit. Raises ``NotFound``."""
