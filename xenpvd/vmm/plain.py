"""Xen on a KVM that knows nothing of it: events, clock and hypercall instruction by our own means.

A hypercall is an OUT (``hypercall_insn.py``). Raising an event means setting the bits in guest memory, as
Xen does, and an MSI to the vCPU's LAPIC: no vCPU is interrupted for it. The clock is KVM's own pvclock, which
has the very layout of vcpu_info.time.

One lock guards all of it, below the machine's: a backend raises its port from any thread without the machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from xenpvd.abi import linux_kvm as k
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.abi.xen import EINVAL, ENOSYS
from xenpvd.errors import XenError
from xenpvd.vmm import hypercall_insn
from xenpvd.vmm.cpuid import HYPERCALL_MSR
from xenpvd.vmm.kvm import Vm
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.port import BackendPort, eventfd, signal
from xenpvd.vmm.shared_info import CHANNELS, VCPU_INFO_TIME, SharedInfo
from xenpvd.vmm.timers import Timers
from xenpvd.vmm.vcpu import VcpuThread


@dataclass(slots=True)
class _Link:
    """A connected port: the vCPU that it raises, and where its backend listens (None: an IPI, a timer)."""

    vcpu: int
    kick_fd: int | None = None


class Plain:
    """:class:`xenpvd.vmm.accel.Accelerator`."""

    hypercall_port = hypercall_insn.PORT

    def __init__(
        self,
        vm: Vm,
        memory: GuestMemory,
        vcpus: int,
        timers: Timers,
        epoch: Callable[[], int],
        *,
        msr_exits: bool,
        shim: bool,
    ) -> None:
        self._vm = vm
        self._memory = memory
        self._timers = timers
        self._epoch = epoch
        self._msr_exits = msr_exits
        self._vcpus: list[VcpuThread] = []
        self._lock = threading.Lock()
        self._closed = False
        self._info = SharedInfo(memory, vcpus)
        self._links: dict[int, _Link] = {}  # by port
        self._timer_ports: dict[int, int] = {}  # by vCPU
        self._vectors: dict[int, int] = {}
        self._callback = 0
        self._guest_up = not shim
        self._early: dict[int, int] = {}  # port: vcpu; raised before the guest could hear it
        self._unselected: dict[int, set[int]] = {}  # vcpu: ports; likewise, for want of its vcpu_info

    def configure(self) -> None:
        if self._msr_exits:
            self._vm.intercept_msr_writes(HYPERCALL_MSR)

    def add_vcpu(self, vcpu: VcpuThread) -> None:
        self._vcpus.append(vcpu)

    def edit(self, segment: bytes) -> bytes:
        return hypercall_insn.patch(segment)

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def hypercall_page(self, gpa: int, longmode: bool) -> None:
        if gpa % PAGE_SIZE:
            raise XenError(EINVAL, "there is one hypercall page only")
        self._memory.write(gpa, hypercall_insn.page())
        self.latch_long_mode(longmode)

    # -- what the guest places and chooses

    def latch_long_mode(self, longmode: bool) -> None:
        with self._lock:
            if longmode != self._info.longmode:
                self._info.longmode = longmode
                self._info.write_wallclock(self._epoch())

    def set_shared_info(self, gfn: int) -> None:
        """A moved page keeps what it says; vCPUs that have registered their own vcpu_info keep it."""
        with self._lock:
            moved, _ = self._info.place(gfn)
            self._info.write_wallclock(self._epoch())
            for vcpu, gpa in moved:
                self._vcpu_info_placed(vcpu, gpa)
            self._raise_early()

    def set_vcpu_info(self, vcpu: int, gpa: int) -> None:
        if gpa % 8:  # else an atomic operation of ours could cross a cache line, which hosts punish
            raise XenError(EINVAL, f"vcpu_info at {gpa:#x} is not aligned")
        with self._lock:
            waiting = self._info.place_vcpu_info(vcpu, gpa)
            self._vcpu_info_placed(vcpu, gpa)
            if waiting:
                self._upcall(vcpu)

    def _vcpu_info_placed(self, vcpu: int, gpa: int) -> None:
        thread = self._vcpus[vcpu]
        msr = partial(thread.vcpu.set_msr, k.MSR_KVM_SYSTEM_TIME_NEW, gpa + VCPU_INFO_TIME | 1)
        thread.submit("clock", msr)
        for port in self._unselected.pop(vcpu, ()):
            self._select(port, vcpu)

    def set_time_info(self, vcpu: int, gpa: int | None) -> None:
        raise XenError(ENOSYS, "a KVM without Xen support keeps one clock a vCPU")

    def set_runstate_area(self, vcpu: int, gpa: int | None) -> None:
        raise XenError(ENOSYS, "a KVM without Xen support does not account for runstates")

    def set_upcall_vector(self, vcpu: int, vector: int) -> None:
        with self._lock:
            self._vectors[vcpu] = vector
            if self._info.upcall_pending(vcpu):
                self._upcall(vcpu)

    def set_callback_vector(self, vector: int) -> None:
        with self._lock:
            self._callback = vector
            for vcpu in range(len(self._vcpus)):
                if self._info.upcall_pending(vcpu):
                    self._upcall(vcpu)

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        if deadline is None:
            self._timers.disarm(("virq", vcpu))
        else:
            self._timers.arm(("virq", vcpu), deadline, partial(self._timer_virq, vcpu), by_clock=True)

    def _timer_virq(self, vcpu: int) -> None:
        port = self._timer_ports.get(vcpu)
        if port is not None:
            self.raise_port(port, vcpu)

    # -- Delivery

    def guest_up(self) -> None:
        with self._lock:
            self._guest_up = True
            self._raise_early()

    def connect(self, port: int, vcpu: int) -> None:
        self._connect(port, _Link(vcpu, eventfd()))

    def connect_ipi(self, port: int, vcpu: int) -> None:
        self._connect(port, _Link(vcpu))

    def connect_timer(self, port: int, vcpu: int) -> None:
        self._connect(port, _Link(vcpu))
        self._timer_ports[vcpu] = port

    def _connect(self, port: int, link: _Link) -> None:
        try:
            self._info.check(port)
        except XenError:
            if link.kick_fd is not None:
                os.close(link.kick_fd)
            raise
        with self._lock:
            self._links[port] = link

    def retarget(self, port: int, vcpu: int) -> None:
        with self._lock:
            if port in self._links:
                self._links[port].vcpu = vcpu
            if port in self._early:
                self._early[port] = vcpu
            if self._info.pending(port) and not self._info.masked(port):
                self._select(port, vcpu)

    def disconnect(self, port: int) -> None:
        with self._lock:
            link = self._links.pop(port, None)
            if link is not None and self._timer_ports.get(link.vcpu) == port:
                del self._timer_ports[link.vcpu]

    def kick(self, port: int) -> None:
        link = self._links.get(port)
        if link is not None and link.kick_fd is not None:
            signal(link.kick_fd)

    def raise_port(self, port: int, vcpu: int) -> None:
        with self._lock:
            self._raise(port, vcpu)

    def unmask(self, port: int, vcpu: int) -> None:
        with self._lock:
            self._info.unmask(port)
            if self._info.pending(port):
                self._select(port, vcpu)

    def clear_pending(self, port: int) -> None:
        with self._lock:
            self._early.pop(port, None)
            for ports in self._unselected.values():
                ports.discard(port)
            self._info.clear_pending(port)

    def is_pending(self, port: int) -> bool:
        return port in self._early or self._info.pending(port)

    def is_masked(self, port: int) -> bool:
        return self._info.masked(port)

    def backend_port(self, port: int, on_close: Callable[[], None]) -> BackendPort:
        link = self._links[port]
        assert link.kick_fd is not None

        def raise_event() -> None:
            with self._lock:
                if self._links.get(port) is link:  # else the guest has closed it, and perhaps opened it anew
                    self._raise(port, link.vcpu)

        return BackendPort(port, link.kick_fd, None, raise_event, on_close)

    # -- with our lock held

    def _raise_early(self) -> None:
        early, self._early = self._early, {}
        for port, vcpu in early.items():
            self._raise(port, vcpu)

    def _raise(self, port: int, vcpu: int) -> None:
        """As evtchn_2l_set_pending of Xen does it."""
        info = self._info
        if self._closed:
            return
        if not (self._guest_up and info.placed):
            self._early[port] = vcpu
        elif port < CHANNELS[info.longmode] and not info.set_pending(port) and not info.masked(port):
            self._select(port, vcpu)

    def _select(self, port: int, vcpu: int) -> None:
        if self._info.select(vcpu, port):
            # also if it was asked before: a LAPIC that was off has forgotten that, and once more does no harm
            self._upcall(vcpu)
        else:
            self._unselected.setdefault(vcpu, set()).add(port)

    def _upcall(self, vcpu: int) -> None:
        vector = self._vectors.get(vcpu)
        if vector:
            self._vm.signal_msi(vcpu, vector)
        elif self._callback:
            # a vector for all vCPUs comes without an EOI, so it must go past the LAPIC, on the vCPU's thread
            self._vcpus[vcpu].submit("callback", partial(self._interrupt, vcpu))

    def _interrupt(self, vcpu: int) -> None:
        if self._callback and self._info.upcall_pending(vcpu):
            self._vcpus[vcpu].vcpu.interrupt(self._callback)
