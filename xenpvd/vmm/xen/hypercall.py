"""The hypercalls that reach the outer Xen: a closed list, decoded, checked and answered.

The shim keeps nearly everything of the guest to itself (mmu, timers, VIRQs, versions); what it asks of us is
below. Anything else is -ENOSYS and counted. A pointer that leads nowhere is -EFAULT. Nothing raises out.
ABI: number in RAX, arguments in RDI RSI RDX R10 R8 R9; a pointer is of the caller's address space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from xenpvd.abi import event_channel as e
from xenpvd.abi import grant_table as g
from xenpvd.abi import hvm_op as h
from xenpvd.abi import memory as m
from xenpvd.abi import sched as s
from xenpvd.abi import vcpu as v
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.errors import XenError
from xenpvd.vmm.xen.evtchn import EventChannels
from xenpvd.vmm.xen.gnttab import MAX_FRAMES
from xenpvd.vmm.xen.gva import VirtualMemory

#: One CONSOLEIO_write; the shim's lines come in pieces far smaller
CONSOLE_WRITE_MAX = 1 << 16
#: Extents handled per reservation call (the shim asks for at most 64); the answer says how many were done
EXTENTS_MAX = 1024
#: The longest extent: 2^9 pages = 2 MiB
EXTENT_ORDER_MAX = 9


class Platform(Protocol):
    """What the rules need done outside. Never blocks; a vCPU's own attributes are set on its thread."""

    def set_shared_info(self, gfn: int) -> None: ...

    def set_vcpu_info(self, vcpu: int, gpa: int) -> None: ...

    def set_upcall_vector(self, vcpu: int, vector: int) -> None: ...

    def is_backed(self, gfn: int) -> bool:
        """Whether the guest has memory there (RAM or the hole above it)."""

    def is_ram(self, gfn: int) -> bool: ...

    def discard(self, gfn: int) -> None:
        """Give the page's memory back to the host."""

    def console_write(self, data: bytes) -> None:
        """The shim's own log."""

    def shutdown(self, reason: int) -> None:
        """No vCPU runs another instruction after this."""


class GrantFrames(Protocol):
    """The guest's grant table, as far as hypercalls go."""

    @property
    def nr_frames(self) -> int: ...

    def set_frame(self, idx: int, gfn: int) -> None:
        """Frame ``idx`` now lies at ``gfn``. Raises ``XenError``."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: its vCPU and its address space."""

    vcpu: int
    memory: VirtualMemory


Args = Sequence[int]


class Hypercalls:
    """Answers hypercalls; its owner holds the machine's lock around :meth:`call`."""

    def __init__(
        self,
        *,
        domid: int,
        vcpus: int,
        e820: list[tuple[int, int, int]],
        params: dict[int, int],
        evtchn: EventChannels,
        gnttab: GrantFrames,
        platform: Platform,
    ) -> None:
        self._domid = domid
        self._vcpus = vcpus
        self._e820 = e820
        self._params = params
        self._evtchn = evtchn
        self._gnttab = gnttab
        self._platform = platform
        self._registered: set[int] = set()
        #: handler's name: count. The keys are never more, so another thread may look at it
        self.counts = {"unknown": 0} | {handler.__name__: 0 for handler in _TABLE.values()}

    def call(self, caller: Caller, number: int, args: Args) -> int:
        """The value for RAX: 0 or more, or a negative errno."""
        op = args[0] & 0xFFFF_FFFF
        handler = _TABLE.get((number, op))
        if handler is None:
            self.counts["unknown"] += 1
            return -x.ENOSYS
        self.counts[handler.__name__] += 1
        try:
            return handler(self, caller, args)
        except XenError as fault:
            return -fault.errno

    # -- memory_op

    def do_memory_map(self, caller: Caller, args: Args) -> int:
        room, buffer = m.xen_memory_map.unpack(caller.memory.read(args[1], m.xen_memory_map.size))
        entries = self._e820[:room]
        caller.memory.write(buffer, b"".join(m.e820entry.pack(*entry) for entry in entries))
        caller.memory.write(args[1], m.xen_memory_map.pack(len(entries), buffer))
        return 0

    def do_add_to_physmap(self, caller: Caller, args: Args) -> int:
        raw = caller.memory.read(args[1], m.xen_add_to_physmap.size)
        domid, _, space, idx, gfn = m.xen_add_to_physmap.unpack(raw)
        self._check_self(domid)
        if not self._platform.is_backed(gfn):
            raise XenError(x.EINVAL, f"the guest has no memory at frame {gfn:#x}")
        if space == m.XENMAPSPACE_shared_info and idx == 0:
            self._platform.set_shared_info(gfn)
        elif space == m.XENMAPSPACE_grant_table:
            self._gnttab.set_frame(idx, gfn)
        else:
            raise XenError(x.EINVAL, f"no page {idx} in map space {space}")
        return 0

    def do_decrease_reservation(self, caller: Caller, args: Args) -> int:
        """The guest's balloon gives pages back; the answer is the number of extents done."""
        return self._each_extent(caller, args, self._platform.discard)

    def do_populate_physmap(self, caller: Caller, args: Args) -> int:
        """The guest's balloon takes the same frames again: the host gives memory at the first touch."""
        return self._each_extent(caller, args, lambda gfn: None)

    def _each_extent(self, caller: Caller, args: Args, act: Callable[[int], None]) -> int:
        raw = caller.memory.read(args[1], m.xen_memory_reservation.size)
        extents, count, order, _, domid = m.xen_memory_reservation.unpack(raw)
        self._check_self(domid)
        if order > EXTENT_ORDER_MAX:
            raise XenError(x.EPERM, f"extent order {order}, at most {EXTENT_ORDER_MAX}")
        done = 0
        for n in range(min(count, EXTENTS_MAX >> order)):
            try:
                first = int.from_bytes(caller.memory.read(extents + 8 * n, 8), "little")
            except XenError:
                break
            gfns = range(first, first + (1 << order))
            if not all(self._platform.is_ram(gfn) for gfn in gfns):
                break
            for gfn in gfns:
                act(gfn)
            done += 1
        return done

    # -- vcpu_op

    def do_register_vcpu_info(self, caller: Caller, args: Args) -> int:
        vcpu = args[1] & 0xFFFF_FFFF
        raw = caller.memory.read(args[2], v.vcpu_register_vcpu_info.size)
        gfn, offset, _ = v.vcpu_register_vcpu_info.unpack(raw)
        if vcpu >= self._vcpus:
            raise XenError(x.ENOENT, f"there is no vCPU {vcpu}")
        if (
            vcpu in self._registered
            or offset > PAGE_SIZE - x.VCPU_INFO_SIZE
            or not self._platform.is_backed(gfn)
        ):
            raise XenError(x.EINVAL, f"vcpu_info of vCPU {vcpu} cannot lie at {gfn:#x}+{offset:#x}")
        self._platform.set_vcpu_info(vcpu, (gfn << PAGE_SHIFT) + offset)
        self._registered.add(vcpu)
        return 0

    # -- hvm_op

    def do_get_param(self, caller: Caller, args: Args) -> int:
        domid, index, _ = h.xen_hvm_param.unpack(caller.memory.read(args[1], h.xen_hvm_param.size))
        self._check_self(domid)
        if index not in self._params:
            raise XenError(x.EINVAL, f"HVM parameter {index} is not kept")
        caller.memory.write(args[1], h.xen_hvm_param.pack(domid, index, self._params[index]))
        return 0

    def do_set_param(self, caller: Caller, args: Args) -> int:
        """Only CALLBACK_IRQ, which tells a toolstack that PV drivers are there. It must not be passed on to
        KVM's VM-wide vector: the shim takes its upcalls per vCPU."""
        domid, index, value = h.xen_hvm_param.unpack(caller.memory.read(args[1], h.xen_hvm_param.size))
        self._check_self(domid)
        if index != h.HVM_PARAM_CALLBACK_IRQ:
            raise XenError(
                x.EPERM if index in self._params else x.EINVAL, f"HVM parameter {index} is not to be set"
            )
        self._params[index] = value
        return 0

    def do_set_evtchn_upcall_vector(self, caller: Caller, args: Args) -> int:
        raw = caller.memory.read(args[1], h.xen_hvm_evtchn_upcall_vector.size)
        vcpu, vector = h.xen_hvm_evtchn_upcall_vector.unpack(raw)
        if vcpu >= self._vcpus:
            raise XenError(x.ENOENT, f"there is no vCPU {vcpu}")
        if vector < 0x10:
            raise XenError(x.EINVAL, f"vector {vector:#x} is the CPU's own")
        self._platform.set_upcall_vector(vcpu, vector)
        return 0

    def do_flush_tlbs(self, caller: Caller, args: Args) -> int:
        """KVM has no cheap way to do this; success without it would corrupt memory. The shim sends IPIs."""
        return -x.ENOSYS

    # -- event_channel_op

    def do_alloc_unbound(self, caller: Caller, args: Args) -> int:
        raw = caller.memory.read(args[1], e.evtchn_alloc_unbound.size)
        dom, remote, _ = e.evtchn_alloc_unbound.unpack(raw)
        port = self._evtchn.alloc_unbound(dom, remote)
        return self._tell_port(caller, args, port, e.evtchn_alloc_unbound.pack(dom, remote, port))

    def do_bind_interdomain(self, caller: Caller, args: Args) -> int:
        raw = caller.memory.read(args[1], e.evtchn_bind_interdomain.size)
        dom, remote, _ = e.evtchn_bind_interdomain.unpack(raw)
        port = self._evtchn.bind_interdomain(dom, remote)
        return self._tell_port(caller, args, port, e.evtchn_bind_interdomain.pack(dom, remote, port))

    def do_bind_ipi(self, caller: Caller, args: Args) -> int:
        vcpu, _ = e.evtchn_bind_ipi.unpack(caller.memory.read(args[1], e.evtchn_bind_ipi.size))
        port = self._evtchn.bind_ipi(vcpu)
        return self._tell_port(caller, args, port, e.evtchn_bind_ipi.pack(vcpu, port))

    def _tell_port(self, caller: Caller, args: Args, port: int, answer: bytes) -> int:
        try:
            caller.memory.write(args[1], answer)
        except XenError:
            self._evtchn.close(port)  # nobody would know of it
            raise
        return 0

    def do_bind_vcpu(self, caller: Caller, args: Args) -> int:
        port, vcpu = e.evtchn_bind_vcpu.unpack(caller.memory.read(args[1], e.evtchn_bind_vcpu.size))
        self._evtchn.bind_vcpu(port, vcpu)
        return 0

    def do_evtchn_close(self, caller: Caller, args: Args) -> int:
        self._evtchn.close(self._port(caller, args))
        return 0

    def do_evtchn_send(self, caller: Caller, args: Args) -> int:
        self._evtchn.send(self._port(caller, args))
        return 0

    def do_evtchn_unmask(self, caller: Caller, args: Args) -> int:
        self._evtchn.unmask(self._port(caller, args))
        return 0

    def do_evtchn_status(self, caller: Caller, args: Args) -> int:
        dom, port, *_ = e.evtchn_status.unpack(caller.memory.read(args[1], e.evtchn_status.size))
        state, vcpu, remote_dom, remote_port = self._evtchn.status(dom, port)
        answer = e.evtchn_status.pack(dom, port, state, vcpu, remote_dom, remote_port)
        caller.memory.write(args[1], answer)
        return 0

    def do_evtchn_reset(self, caller: Caller, args: Args) -> int:
        (dom,) = e.evtchn_reset.unpack(caller.memory.read(args[1], e.evtchn_reset.size))
        self._evtchn.reset(dom)
        return 0

    def _port(self, caller: Caller, args: Args) -> int:
        return int(e.evtchn_port.unpack(caller.memory.read(args[1], e.evtchn_port.size))[0])

    # -- grant_table_op, sched_op, console_io

    def do_query_size(self, caller: Caller, args: Args) -> int:
        if args[2] != 1:
            raise XenError(x.EINVAL, f"{args[2]} queries at once")
        dom, *_ = g.gnttab_query_size.unpack(caller.memory.read(args[1], g.gnttab_query_size.size))
        status = g.GNTST_okay if dom in (x.DOMID_SELF, self._domid) else g.GNTST_bad_domain
        answer = g.gnttab_query_size.pack(dom, self._gnttab.nr_frames, MAX_FRAMES, status)
        caller.memory.write(args[1], answer)
        return 0

    def do_yield(self, caller: Caller, args: Args) -> int:
        return 0

    def do_shutdown(self, caller: Caller, args: Args) -> int:
        (reason,) = s.sched_shutdown.unpack(caller.memory.read(args[1], s.sched_shutdown.size))
        if reason not in (s.SHUTDOWN_poweroff, s.SHUTDOWN_reboot, s.SHUTDOWN_crash, s.SHUTDOWN_watchdog):
            # a refused suspend is cancelled by the guest, which goes on
            raise XenError(x.EINVAL, f"shutdown reason {reason} is not offered")
        self._platform.shutdown(reason)
        return 0

    def do_console_write(self, caller: Caller, args: Args) -> int:
        count = args[1]
        if count > CONSOLE_WRITE_MAX:
            raise XenError(x.EINVAL, f"{count} bytes of console output at once")
        self._platform.console_write(caller.memory.read(args[2], count))
        return 0

    def _check_self(self, domid: int) -> None:
        if domid not in (x.DOMID_SELF, self._domid):
            raise XenError(x.EPERM, f"domain {domid} is not the caller")


_TABLE: dict[tuple[int, int], Callable[[Hypercalls, Caller, Args], int]] = {
    (x.HYPERVISOR_memory_op, m.XENMEM_memory_map): Hypercalls.do_memory_map,
    (x.HYPERVISOR_memory_op, m.XENMEM_add_to_physmap): Hypercalls.do_add_to_physmap,
    (x.HYPERVISOR_memory_op, m.XENMEM_decrease_reservation): Hypercalls.do_decrease_reservation,
    (x.HYPERVISOR_memory_op, m.XENMEM_populate_physmap): Hypercalls.do_populate_physmap,
    (x.HYPERVISOR_vcpu_op, v.VCPUOP_register_vcpu_info): Hypercalls.do_register_vcpu_info,
    (x.HYPERVISOR_hvm_op, h.HVMOP_get_param): Hypercalls.do_get_param,
    (x.HYPERVISOR_hvm_op, h.HVMOP_set_param): Hypercalls.do_set_param,
    (x.HYPERVISOR_hvm_op, h.HVMOP_set_evtchn_upcall_vector): Hypercalls.do_set_evtchn_upcall_vector,
    (x.HYPERVISOR_hvm_op, h.HVMOP_flush_tlbs): Hypercalls.do_flush_tlbs,
    (x.HYPERVISOR_event_channel_op, e.EVTCHNOP_alloc_unbound): Hypercalls.do_alloc_unbound,
    (x.HYPERVISOR_event_channel_op, e.EVTCHNOP_bind_interdomain): Hypercalls.do_bind_interdomain,
    (x.HYPERVISOR_event_channel_op, e.EVTCHNOP_bind_ipi): Hypercalls.do_bind_ipi,
    (x.HYPERVISOR_event_channel_op, e.EVTCHNOP_bind_vcpu): Hypercalls.do_bind_vcpu,
    (x.HYPERVISOR_event_channel_op, e.EVTCHNOP_close): Hypercalls.do_evtchn_close,
    (x.HYPERVISOR_event_channel_op, e.EVTCHNOP_send): Hypercalls.do_evtchn_send,
    (x.HYPERVISOR_event_channel_op, e.EVTCHNOP_unmask): Hypercalls.do_evtchn_unmask,
    (x.HYPERVISOR_event_channel_op, e.EVTCHNOP_status): Hypercalls.do_evtchn_status,
    (x.HYPERVISOR_event_channel_op, e.EVTCHNOP_reset): Hypercalls.do_evtchn_reset,
    (x.HYPERVISOR_grant_table_op, g.GNTTABOP_query_size): Hypercalls.do_query_size,
    (x.HYPERVISOR_sched_op, s.SCHEDOP_yield): Hypercalls.do_yield,
    (x.HYPERVISOR_sched_op, s.SCHEDOP_shutdown): Hypercalls.do_shutdown,
    (x.HYPERVISOR_console_io, x.CONSOLEIO_write): Hypercalls.do_console_write,
}
