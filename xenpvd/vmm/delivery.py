"""Events by KVM's own Xen support: the kernel sets the bits and injects the upcalls, Python only sets it up.

guest → backend: KVM_XEN_ATTR_TYPE_EVTCHN turns the guest's EVTCHNOP_send into a write to an eventfd.
backend → guest: an irqfd routed (KVM_IRQ_ROUTING_XEN_EVTCHN) to the port. Neither leaves the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable

from xenpvd.abi import linux_kvm as k
from xenpvd.abi.event_channel import EVTCHNSTAT_interdomain, EVTCHNSTAT_ipi
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.abi.xen import (
    EVTCHN_2L_NR_CHANNELS,
    VCPU_INFO_SIZE,
    XEN_LEGACY_MAX_VCPUS,
    SHARED_INFO_evtchn_mask,
    SHARED_INFO_evtchn_pending,
)
from xenpvd.errors import KvmError
from xenpvd.vmm import atomic
from xenpvd.vmm.cpuid import HYPERCALL_MSR
from xenpvd.vmm.kvm import Vm
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.vcpu import VcpuThread

#: GSIs below are an IOAPIC's in KVM's eyes
FIRST_GSI = 24


class BackendPort:
    """:class:`xenpvd.backends.ops.EvtchnPort`: two eventfds. ``on_close`` tells the port table."""

    def __init__(self, port: int, kick_fd: int, irq_fd: int, on_close: Callable[[], None]) -> None:
        self.port = port
        self.kick_fd = kick_fd
        self.irq_fd = irq_fd
        self._on_close = on_close
        self._closed = False
        self._lock = threading.Lock()  # else notify() could write into whatever has got the number since

    def notify(self) -> None:
        with self._lock:
            if not self._closed:
                _signal(self.irq_fd)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._on_close()
        os.close(self.kick_fd)
        os.close(self.irq_fd)


def _signal(fd: int) -> None:
    # full only after 2^64 - 2 unseen notifications; then one more says nothing new
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(fd, 1)


class KvmXenDelivery:
    """:class:`xenpvd.vmm.xen.evtchn.Delivery` and the half of ``Platform`` that sets KVM's attributes.

    Called with the machine's lock held.
    """

    def __init__(self, vm: Vm, memory: GuestMemory) -> None:
        self._vm = vm
        self._memory = memory
        self._vcpus: list[VcpuThread] = []
        self._shared_info: int | None = None  # its address in this process
        self._fds: dict[int, tuple[int, int]] = {}  # port: (kick_fd, irq_fd)
        self._routes: dict[int, tuple[int, int]] = {}  # port: (gsi, vcpu)
        self._ipis: set[int] = set()
        self._registered: set[int] = set()  # vCPUs whose vcpu_info the guest has placed itself

    def configure(self) -> None:
        """Right after the VM is made, before its vCPUs."""
        # the MSR must not be 0, or KVM intercepts nothing at all; the shim calls VMMCALL without it
        flags = k.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | k.KVM_XEN_HVM_CONFIG_EVTCHN_SEND
        self._vm.xen_config(HYPERCALL_MSR, flags)
        # KVM latches this at the write of that MSR, which never comes
        self._vm.xen_set_attr(k.KVM_XEN_ATTR_TYPE_LONG_MODE, b"\1")

    def add_vcpu(self, vcpu: VcpuThread) -> None:
        """Before its thread starts."""
        vcpu.vcpu.xen_set_attr(k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, vcpu.id)
        self._vcpus.append(vcpu)

    # -- Platform

    def set_shared_info(self, gfn: int) -> None:
        """A moved page keeps what it says; vCPUs that have registered their own vcpu_info keep it."""
        if self._shared_info is None:
            self._memory.zero(gfn)
        else:
            self._memory.write(gfn << PAGE_SHIFT, ctypes.string_at(self._shared_info, PAGE_SIZE))
        self._vm.xen_set_attr(k.KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn.to_bytes(8, "little"))
        self._shared_info = self._memory.address(gfn << PAGE_SHIFT, PAGE_SIZE)
        for vcpu in self._vcpus[:XEN_LEGACY_MAX_VCPUS]:
            if vcpu.id not in self._registered:
                gpa = (gfn << PAGE_SHIFT) + vcpu.id * VCPU_INFO_SIZE
                self._set_vcpu_attr(vcpu.id, k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa)

    def set_vcpu_info(self, vcpu: int, gpa: int) -> None:
        self._set_vcpu_attr(vcpu, k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa)
        self._registered.add(vcpu)

    def set_upcall_vector(self, vcpu: int, vector: int) -> None:
        self._set_vcpu_attr(vcpu, k.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector)

    def _set_vcpu_attr(self, vcpu: int, kind: int, value: int) -> None:
        thread = self._vcpus[vcpu]
        thread.submit(kind, lambda: thread.vcpu.xen_set_attr(kind, value))

    # -- Delivery

    def connect(self, port: int, vcpu: int) -> None:
        used = {gsi for gsi, _ in self._routes.values()}
        gsi = next(n for n in range(FIRST_GSI, FIRST_GSI + EVTCHN_2L_NR_CHANNELS) if n not in used)
        with contextlib.ExitStack() as undo:
            fds = []
            for _ in range(2):
                fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
                undo.callback(os.close, fds[-1])
            kick_fd, irq_fd = fds
            self._set_evtchn(port, EVTCHNSTAT_interdomain, 0, 0, kick_fd)
            undo.callback(self._set_evtchn, port, EVTCHNSTAT_interdomain, k.KVM_XEN_EVTCHN_DEASSIGN)
            self._routes[port] = (gsi, vcpu)
            undo.callback(self._routes.pop, port)
            self._set_routes()
            self._vm.irqfd(irq_fd, gsi)
            undo.pop_all()
        self._fds[port] = (kick_fd, irq_fd)

    def connect_ipi(self, port: int, vcpu: int) -> None:
        prio = k.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
        self._set_evtchn(port, EVTCHNSTAT_ipi, 0, port, vcpu, prio)
        self._ipis.add(port)

    def retarget(self, port: int, vcpu: int) -> None:
        if port in self._routes and self._routes[port][1] != vcpu:
            self._routes[port] = (self._routes[port][0], vcpu)
            self._set_routes()
        if self._is_set(SHARED_INFO_evtchn_pending, port) and not self._is_set(SHARED_INFO_evtchn_mask, port):
            self._deliver_again(port, vcpu)

    def disconnect(self, port: int) -> None:
        if port in self._ipis:
            self._ipis.remove(port)
            self._set_evtchn(port, EVTCHNSTAT_ipi, k.KVM_XEN_EVTCHN_DEASSIGN)
        elif port in self._routes:
            gsi, _ = self._routes.pop(port)
            _, irq_fd = self._fds.pop(port)
            self._set_evtchn(port, EVTCHNSTAT_interdomain, k.KVM_XEN_EVTCHN_DEASSIGN)
            self._vm.irqfd(irq_fd, gsi, deassign=True)
            self._set_routes()

    def kick(self, port: int) -> None:
        if port in self._fds:
            _signal(self._fds[port][0])

    def raise_port(self, port: int, vcpu: int) -> None:
        try:
            self._vm.xen_evtchn_send(port, vcpu)
        except KvmError as fault:
            # before the guest has given its shared_info there is nobody to tell
            if fault.data["errno"] != errno.EINVAL:
                raise

    def unmask(self, port: int, vcpu: int) -> None:
        if self._shared_info is None:
            return
        atomic.clear_bit64(*self._bit(SHARED_INFO_evtchn_mask, port))
        if self._is_set(SHARED_INFO_evtchn_pending, port):
            self._deliver_again(port, vcpu)

    def clear_pending(self, port: int) -> None:
        if self._shared_info is not None:
            atomic.clear_bit64(*self._bit(SHARED_INFO_evtchn_pending, port))

    def fds(self, port: int) -> tuple[int, int]:
        """(kick_fd, irq_fd) of a connected port."""
        return self._fds[port]

    # -- helpers

    def _deliver_again(self, port: int, vcpu: int) -> None:
        # raising a pending port does nothing, so the bit goes first; a spurious event is allowed
        self.clear_pending(port)
        self.raise_port(port, vcpu)

    def _bit(self, bitmap: int, port: int) -> tuple[int, int]:
        assert self._shared_info is not None
        return self._shared_info + bitmap + port // 64 * 8, port % 64

    def _is_set(self, bitmap: int, port: int) -> bool:
        if self._shared_info is None:
            return False
        address, bit = self._bit(bitmap, port)
        return atomic.test_bit64(address, bit)

    def _set_routes(self) -> None:
        self._vm.set_xen_routes((gsi, port, vcpu) for port, (gsi, vcpu) in self._routes.items())

    def _set_evtchn(self, port: int, kind: int, flags: int, *deliver: int) -> None:
        deliver = (*deliver, 0, 0, 0)[:3]
        attr = k.kvm_xen_evtchn_attr.pack(port, kind, flags, *deliver)
        self._vm.xen_set_attr(k.KVM_XEN_ATTR_TYPE_EVTCHN, attr)
