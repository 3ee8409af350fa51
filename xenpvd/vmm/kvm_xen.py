"""Events by KVM's own Xen support: the kernel sets the bits and injects the upcalls, Python only sets it up.

guest → backend: KVM_XEN_ATTR_TYPE_EVTCHN turns the guest's EVTCHNOP_send into a write to an eventfd.
backend → guest: an irqfd routed (KVM_IRQ_ROUTING_XEN_EVTCHN) to the port. Neither leaves the kernel, nor do
IPIs and the guest's own timer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial

from xenpvd.abi import linux_kvm as k
from xenpvd.abi.event_channel import EVTCHNSTAT_interdomain, EVTCHNSTAT_ipi
from xenpvd.abi.xen import EINVAL, ENOSYS, EVTCHN_2L_NR_CHANNELS
from xenpvd.errors import KvmError, XenError
from xenpvd.vmm.cpuid import HYPERCALL_MSR
from xenpvd.vmm.kvm import Vm
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.port import BackendPort, eventfd, signal
from xenpvd.vmm.shared_info import CHANNELS, SharedInfo
from xenpvd.vmm.vcpu import VcpuThread

#: GSIs below are an IOAPIC's in KVM's eyes
FIRST_GSI = 24
_TIME_MAX = (1 << 63) - 1
_PRIO = k.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL


class KvmXen:
    """:class:`xenpvd.vmm.accel.Accelerator`."""

    hypercall_port = None

    def __init__(
        self, vm: Vm, memory: GuestMemory, vcpus: int, epoch: Callable[[], int], caps: int, *, shim: bool
    ) -> None:
        self._vm = vm
        self._epoch = epoch
        self._caps = caps
        self._vcpus: list[VcpuThread] = []
        self._info = SharedInfo(memory, vcpus)
        self._fds: dict[int, tuple[int, int]] = {}  # port: (kick_fd, irq_fd)
        self._routes: dict[int, tuple[int, int]] = {}  # port: (gsi, vcpu)
        self._ipis: dict[int, int] = {}  # port: vcpu
        self._timers: dict[int, int] = {}  # vcpu: port
        self._deadlines: dict[int, int] = {}  # vcpu: what it asked for before it had a port
        self._vectors: dict[int, int] = {}  # of the vCPUs that take upcalls by a vector of their own
        self._guest_up = not shim
        self._early: dict[int, int] = {}  # port: vcpu; raised before the guest could hear it

    def configure(self) -> None:
        # the MSR must not be 0, or KVM intercepts nothing at all; today's shims call VMMCALL without it
        flags = k.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | k.KVM_XEN_HVM_CONFIG_EVTCHN_SEND
        self._vm.xen_config(HYPERCALL_MSR, flags)
        # KVM latches this at the write of that MSR, which then never comes
        self._vm.xen_set_attr(k.KVM_XEN_ATTR_TYPE_LONG_MODE, b"\1")

    def add_vcpu(self, vcpu: VcpuThread) -> None:
        vcpu.vcpu.xen_set_attr(k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, vcpu.id)
        self._vcpus.append(vcpu)

    def edit(self, segment: bytes) -> bytes:
        return segment

    def close(self) -> None: ...

    def hypercall_page(self, gpa: int, longmode: bool) -> None:
        raise XenError(ENOSYS, "KVM fills the hypercall page itself")

    # -- what the guest places and chooses

    def latch_long_mode(self, longmode: bool) -> None:
        self._vm.xen_set_attr(k.KVM_XEN_ATTR_TYPE_LONG_MODE, bytes([longmode]))
        self._info.longmode = longmode
        self._info.write_wallclock(self._epoch())

    def set_shared_info(self, gfn: int) -> None:
        """A moved page keeps what it says; vCPUs that have registered their own vcpu_info keep it."""
        raw = gfn.to_bytes(8, "little")
        moved, late = self._now().place(
            gfn, partial(self._vm.xen_set_attr, k.KVM_XEN_ATTR_TYPE_SHARED_INFO, raw)
        )
        self._info.write_wallclock(self._epoch())  # KVM has written its own, which is not what a shim needs
        for vcpu, gpa in moved:
            self._set_vcpu_attr(vcpu, k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa)
        for port in late:
            self.raise_port(port, self._target(port))
        self._raise_early()

    def set_vcpu_info(self, vcpu: int, gpa: int) -> None:
        if gpa % 8:  # else an atomic operation of ours could cross a cache line, which hosts punish
            raise XenError(EINVAL, f"vcpu_info at {gpa:#x} is not aligned")
        self._set_vcpu_attr(vcpu, k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa)
        if self._now().place_vcpu_info(vcpu, gpa) and vcpu in self._vectors:
            self._vm.signal_msi(vcpu, self._vectors[vcpu])

    def set_time_info(self, vcpu: int, gpa: int | None) -> None:
        self._set_vcpu_area(vcpu, k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, gpa)

    def set_runstate_area(self, vcpu: int, gpa: int | None) -> None:
        if not self._caps & k.KVM_XEN_HVM_CONFIG_RUNSTATE:
            raise XenError(ENOSYS, "this host's kernel does not account for runstates")
        self._set_vcpu_area(vcpu, k.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa)

    def set_upcall_vector(self, vcpu: int, vector: int) -> None:
        thread = self._vcpus[vcpu]

        def act() -> None:
            thread.vcpu.xen_set_attr(k.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector)
            # KVM tells of new events only; Xen does of those that wait, too
            self._vectors[vcpu] = vector
            if self._info.upcall_pending(vcpu):
                self._vm.signal_msi(vcpu, vector)

        thread.submit(k.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, act)

    def set_callback_vector(self, vector: int) -> None:
        self._vm.xen_set_attr(k.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, bytes([vector]))

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        """The guest's own set_timer_op does not come here once the port is connected."""
        if vcpu in self._timers:
            self._set_timer(vcpu, self._timers[vcpu], deadline)
        elif deadline is not None:
            self._deadlines[vcpu] = deadline
        else:
            self._deadlines.pop(vcpu, None)

    def _set_timer(self, vcpu: int, port: int, deadline: int | None) -> None:
        # 0 is no deadline to KVM, 1 ns is as long past
        expires = 0 if deadline is None else min(max(deadline, 1), _TIME_MAX)
        raw = k.kvm_xen_timer_attr.pack(port, _PRIO, expires)
        self._set_vcpu_attr(vcpu, k.KVM_XEN_VCPU_ATTR_TYPE_TIMER, raw)

    def _set_vcpu_area(self, vcpu: int, kind: int, gpa: int | None) -> None:
        self._set_vcpu_attr(vcpu, kind, k.KVM_XEN_INVALID_GPA if gpa is None else gpa)

    def _set_vcpu_attr(self, vcpu: int, kind: int, value: int | bytes) -> None:
        thread = self._vcpus[vcpu]
        thread.submit(kind, partial(thread.vcpu.xen_set_attr, kind, value))

    # -- Delivery

    def guest_up(self) -> None:
        self._guest_up = True
        self._raise_early()

    def connect(self, port: int, vcpu: int) -> None:
        self._now().check(port)
        used = {gsi for gsi, _ in self._routes.values()}
        gsi = next(n for n in range(FIRST_GSI, FIRST_GSI + EVTCHN_2L_NR_CHANNELS) if n not in used)
        with contextlib.ExitStack() as undo:
            fds = []
            for _ in range(2):
                fds.append(eventfd())
                undo.callback(os.close, fds[-1])
            kick_fd, irq_fd = fds
            self._set_evtchn(port, EVTCHNSTAT_interdomain, 0, 0, kick_fd)
            undo.callback(self._deassign, port, EVTCHNSTAT_interdomain)
            self._routes[port] = (gsi, vcpu)
            undo.callback(self._routes.pop, port)
            self._set_routes()
            self._vm.irqfd(irq_fd, gsi)
            undo.pop_all()
        self._fds[port] = (kick_fd, irq_fd)

    def connect_ipi(self, port: int, vcpu: int) -> None:
        self._set_evtchn(port, EVTCHNSTAT_ipi, 0, port, vcpu, _PRIO)
        self._ipis[port] = vcpu

    def connect_timer(self, port: int, vcpu: int) -> None:
        self._set_timer(vcpu, port, self._deadlines.pop(vcpu, None))
        self._timers[vcpu] = port

    def retarget(self, port: int, vcpu: int) -> None:
        if port in self._routes and self._routes[port][1] != vcpu:
            self._routes[port] = (self._routes[port][0], vcpu)
            self._set_routes()
        if port in self._early:
            self._early[port] = vcpu
        info = self._now()
        if info.pending(port) and not info.masked(port):
            self._deliver_again(port, vcpu)

    def disconnect(self, port: int) -> None:
        if port in self._ipis:
            del self._ipis[port]
            self._deassign(port, EVTCHNSTAT_ipi)
        elif port in self._routes:
            gsi, _ = self._routes.pop(port)
            _, irq_fd = self._fds.pop(port)
            self._deassign(port, EVTCHNSTAT_interdomain)
            self._vm.irqfd(irq_fd, gsi, deassign=True)
            self._set_routes()
        else:
            for vcpu in [vcpu for vcpu, its in self._timers.items() if its == port]:
                del self._timers[vcpu]
                self._set_timer(vcpu, 0, None)

    def kick(self, port: int) -> None:
        if port in self._fds:
            signal(self._fds[port][0])

    def raise_port(self, port: int, vcpu: int) -> None:
        if not self._hears:
            self._early[port] = vcpu
        else:
            self._vm.xen_evtchn_send(port, vcpu)

    def unmask(self, port: int, vcpu: int) -> None:
        info = self._now()
        info.unmask(port)
        if info.pending(port):
            self._deliver_again(port, vcpu)

    def clear_pending(self, port: int) -> None:
        self._early.pop(port, None)
        self._info.clear_pending(port)

    def is_pending(self, port: int) -> bool:
        return port in self._early or self._info.pending(port)

    def is_masked(self, port: int) -> bool:
        return self._info.masked(port)

    # -- the backends' ends

    def backend_port(self, port: int, on_close: Callable[[], None]) -> BackendPort:
        kick_fd, irq_fd = self._fds[port]

        def raise_event() -> None:
            # noted first: if the guest can hear by the next look, whoever made it so may have missed the note
            if not self._hears and self._fds.get(port) == (kick_fd, irq_fd):
                self._early[port] = self._target(port)
            if self._hears:
                self._early.pop(port, None)
                signal(irq_fd)

        return BackendPort(port, kick_fd, irq_fd, raise_event, on_close)

    # -- helpers

    @property
    def _hears(self) -> bool:
        return self._guest_up and self._info.placed

    def _raise_early(self) -> None:
        if self._hears:
            early, self._early = self._early, {}
            for port, vcpu in early.items():
                self.raise_port(port, vcpu)

    def _now(self) -> SharedInfo:
        """With the layout that KVM uses now: a write of the hypercall MSR changes it without our knowing."""
        self._info.longmode = self._vm.xen_long_mode()
        return self._info

    def _target(self, port: int) -> int:
        """The vCPU that a connected port's events go to."""
        if port in self._routes:
            return self._routes[port][1]
        timers = (vcpu for vcpu, its in self._timers.items() if its == port)
        return self._ipis[port] if port in self._ipis else next(timers, 0)

    def _deliver_again(self, port: int, vcpu: int) -> None:
        # raising a pending port does nothing, so the bit goes first; a spurious event is allowed
        self.clear_pending(port)
        self.raise_port(port, vcpu)

    def _set_routes(self) -> None:
        room = CHANNELS[self._now().longmode]  # a port beyond it would have KVM refuse the whole table
        routes = ((gsi, port, vcpu) for port, (gsi, vcpu) in self._routes.items() if port < room)
        self._vm.set_xen_routes(routes)

    def _deassign(self, port: int, kind: int) -> None:
        with contextlib.suppress(KvmError):  # KVM does not find a port beyond 1023 once the guest is 32-bit
            self._set_evtchn(port, kind, k.KVM_XEN_EVTCHN_DEASSIGN)

    def _set_evtchn(self, port: int, kind: int, flags: int, *deliver: int) -> None:
        deliver = (*deliver, 0, 0, 0)[:3]
        attr = k.kvm_xen_evtchn_attr.pack(port, kind, flags, *deliver)
        self._vm.xen_set_attr(k.KVM_XEN_ATTR_TYPE_EVTCHN, attr)
