"""The outer Xen of one machine: its tables put together, and the machine's half of their doors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Protocol

from xenpvd.abi import hvm_op as h
from xenpvd.abi.sched import SHUTDOWN_NAMES, SHUTDOWN_crash, SHUTDOWN_watchdog
from xenpvd.errors import KvmError, NotFound, XenError
from xenpvd.views import HypercallStats, PortInfo
from xenpvd.vmm import boot, layout, registers
from xenpvd.vmm.accel import Accelerator
from xenpvd.vmm.fair_lock import FairLock
from xenpvd.vmm.grants import Grants
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.runstate import Runstate, RunstateClock
from xenpvd.vmm.shared_info import CHANNELS
from xenpvd.vmm.slots import Slots
from xenpvd.vmm.timers import Timers
from xenpvd.vmm.vcpu import VcpuThread
from xenpvd.vmm.xen.evtchn import Channel, EventChannels
from xenpvd.vmm.xen.gva import VirtualMemory
from xenpvd.vmm.xen.hypercall import Caller, Hypercalls

#: by EVTCHNSTAT_*; QEMU's names
_STATES = ("closed", "unbound", "interdomain", "pirq", "virq", "ipi")


class Outside(Protocol):
    """What the machine does for it. Called with the machine's lock held or not, from any thread."""

    def end(self, reason: str, detail: str, regs: dict[str, int] | None) -> None: ...

    def log(self, data: bytes) -> None: ...

    def fault(self, fault: BaseException) -> None:
        """We are wrong."""

    def changed(self) -> None:
        """The vCPUs online or the balloon may be others now."""


class OuterXen:
    """``lock`` (the machine's) guards the tables: held by :meth:`call` and by whoever uses ``evtchn``.

    Of the vCPUs, which may be many and never tire, only the one inside of the gate competes for it.
    """

    def __init__(
        self,
        *,
        domid: int,
        version: tuple[int, int],
        ram: int,
        vcpus: list[VcpuThread],
        memory: GuestMemory,
        slots: Slots,
        accel: Accelerator,
        timers: Timers,
        clock: Callable[[], int],
        lock: FairLock,
        outside: Outside,
    ) -> None:
        self._memory = memory
        self._lock = lock
        self._outside = outside
        self._gate = threading.Lock()
        self._caller: VcpuThread | None = None
        self.evtchn = EventChannels(domid, len(vcpus), accel, outside.changed)
        self.grants = Grants(memory)
        #: the guest's ends of the two primary channels, left unbound for domain 0
        self.console_port = self.evtchn.reserve()
        self.store_port = self.evtchn.reserve()
        self.accel = accel
        platform = _Platform(self, vcpus, memory, slots, timers, clock, outside)
        self.hypercalls = Hypercalls(
            domid=domid,
            vcpus=len(vcpus),
            version=version,
            ram=ram,
            e820=boot.memory_map(ram),
            params={
                h.HVM_PARAM_CALLBACK_IRQ: 0,
                h.HVM_PARAM_STORE_PFN: layout.STORE_PFN,
                h.HVM_PARAM_STORE_EVTCHN: self.store_port,
                h.HVM_PARAM_CONSOLE_PFN: layout.CONSOLE_PFN,
                h.HVM_PARAM_CONSOLE_EVTCHN: self.console_port,
            },
            evtchn=self.evtchn,
            gnttab=self.grants,
            platform=platform,
        )

    def call(self, vcpu: VcpuThread, longmode: bool, number: int, args: tuple[int, ...]) -> int:
        """A hypercall of the guest's kernel, on the vCPU's thread."""
        cr3, mode = registers.address_space(vcpu.vcpu.run_page)
        caller = Caller(vcpu.id, VirtualMemory(self._memory, cr3, mode), longmode)
        with self._gate, self._lock:
            self._caller = vcpu
            try:
                return self.hypercalls.call(caller, number, args)
            finally:
                self._caller = None

    def write_hypercall_page(self, vcpu: VcpuThread, gpa: int) -> bool:
        """The guest has written the hypercall MSR; False if it may not write that."""
        longmode = registers.longmode(vcpu.vcpu.run_page)
        with self._gate, self._lock:
            try:
                self.accel.hypercall_page(gpa, longmode)
            except XenError:
                return False
            self.evtchn.limit = CHANNELS[longmode]
        return True

    def let_others(self) -> None:
        """In the midst of a hypercall: the loop and the timers go first."""
        caller, self._caller = self._caller, None  # a watchdog that bites now is not the caller's doing
        self._lock.let_others()
        self._caller = caller

    def caller_registers(self) -> dict[str, int] | None:
        """Of the vCPU whose hypercall is being answered."""
        try:
            return self._caller.registers_here() if self._caller else None
        except KvmError:
            return None

    # -- for who looks

    def ports(self) -> list[PortInfo]:
        with self._lock:
            return [self._port_info(port, channel) for port, channel in self.evtchn.listing()]

    def inject(self, port: int) -> PortInfo:
        """Raises :class:`NotFound`."""
        with self._lock:
            try:
                self.evtchn.inject(port)
            except XenError:
                raise NotFound(
                    f"cannot raise port {port}: it is closed. See the guest's event channels.",
                    "port",
                    str(port),
                ) from None
            return next(self._port_info(*row) for row in self.evtchn.listing() if row[0] == port)

    def _port_info(self, port: int, channel: Channel) -> PortInfo:
        kind = _STATES[channel.state]
        remote = str(channel.remote_dom) if kind in ("unbound", "interdomain") else ""
        pending, masked = self.accel.is_pending(port), self.accel.is_masked(port)
        return PortInfo(port, channel.vcpu, kind, remote, channel.remote_port, pending, masked)

    def stats(self, recent: int, exits: dict[str, int]) -> HypercallStats:
        with self._lock:
            return HypercallStats(*self.hypercalls.stats(recent), exits)


class _Platform:
    """:class:`xenpvd.vmm.xen.doors.Platform`. What depends on the accelerator is its own method."""

    def __init__(
        self,
        xen: OuterXen,
        vcpus: list[VcpuThread],
        memory: GuestMemory,
        slots: Slots,
        timers: Timers,
        clock: Callable[[], int],
        outside: Outside,
    ) -> None:
        self._xen = xen
        self._memory = memory
        self._outside = outside
        self._timers = timers
        self._runstates = [RunstateClock(vcpu) for vcpu in vcpus]
        self.system_time = clock
        accel = xen.accel
        self.latch_long_mode = accel.latch_long_mode
        self.set_shared_info = accel.set_shared_info
        self.set_vcpu_info = accel.set_vcpu_info
        self.set_time_info = accel.set_time_info
        self.set_runstate_area = accel.set_runstate_area
        self.set_upcall_vector = accel.set_upcall_vector
        self.set_callback_vector = accel.set_callback_vector
        self.set_timer = accel.set_timer
        self.claim = slots.claim
        self.is_backed = slots.is_backed
        self.is_ram = memory.is_ram
        self.let_others = xen.let_others
        self.disarm = timers.disarm
        self.console_write = outside.log

    def arm(self, key: Hashable, deadline: int, act: Callable[[], None]) -> None:
        self._timers.arm(key, deadline, act)

    def runstate(self, vcpu: int) -> Runstate:
        return self._runstates[vcpu].read(self.system_time())

    def ballooned(self) -> int:
        return self._memory.ballooned

    def discard(self, gfn: int) -> None:
        self._memory.discard(gfn)
        self._outside.changed()

    def populate(self, gfn: int) -> None:
        self._memory.populate(gfn)
        self._outside.changed()

    def shutdown(self, reason: int) -> None:
        name = SHUTDOWN_NAMES[reason]
        crashed = reason in (SHUTDOWN_crash, SHUTDOWN_watchdog)
        regs = self._xen.caller_registers() if crashed else None
        self._outside.end(name, f"SCHEDOP_shutdown({name})", regs)
