"""KVM's ioctls as three small classes: System (/dev/kvm), Vm, Vcpu. The only file that calls ioctl.

Threads: System and Vm calls may come from any thread. A vCPU's ioctls wait as long as that vCPU sits in
KVM_RUN, so they belong to its own thread; only :meth:`Vcpu.request_exit` may come from elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable

from xenpvd.abi import linux_kvm as k
from xenpvd.errors import KvmError, Unsupported

_libc = ctypes.CDLL(None, use_errno=True)  # CDLL gives the GIL up, which KVM_RUN needs
_ioctl = _libc.ioctl
_ioctl.restype = ctypes.c_int

#: Why an ioctl may fail on a host that is otherwise fine, and what to do.
_HINTS = {
    ("KVM_CREATE_VM", errno.ENOMEM): "The host is out of memory.",
    ("KVM_CREATE_VM", errno.EBUSY): "Another hypervisor (VirtualBox, VMware) may hold the CPU's extensions.",
    ("KVM_SET_USER_MEMORY_REGION", errno.ENOMEM): "The host is out of memory; give the guest less.",
}


def _call(fd: int, name: str, arg: int | bytes | bytearray = 0) -> int:
    """ioctl ``name`` (a constant of abi.linux_kvm). Bytes are passed by address; a bytearray is written back.

    Raises :class:`KvmError`.
    """
    request = ctypes.c_ulong(getattr(k, name))
    value: ctypes.c_ulong | ctypes.Array[ctypes.c_char]
    if isinstance(arg, int):
        value = ctypes.c_ulong(arg)
    else:
        value = (ctypes.c_char * len(arg)).from_buffer(arg if isinstance(arg, bytearray) else bytearray(arg))
    while (result := _ioctl(fd, request, value)) < 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:  # a signal, meant for KVM_RUN, met KVM_CREATE_VM or the like
            hint = _HINTS.get((name, code), "Run xenpvctl doctor for what this host can do.")
            raise KvmError(f"{name} failed: {os.strerror(code)}. {hint}", name, code)
    return int(result)


class System:
    """/dev/kvm. Raises :class:`KvmError` if it can't be opened, with the cure."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as fault:
            cure = {
                errno.ENOENT: "Load kvm_intel or kvm_amd; enable virtualization in the firmware.",
                errno.EACCES: "Add yourself to its group: sudo usermod -aG kvm $USER, then log in again.",
                errno.ENODEV: "The CPU's virtualization extensions are off; enable them in the firmware.",
            }.get(fault.errno or 0, "Run xenpvctl doctor.")
            raise KvmError(
                f"cannot open {path}: {fault.strerror}. {cure}", "open", fault.errno or errno.EIO
            ) from None
        try:
            version = _call(self._fd, "KVM_GET_API_VERSION")
            if version != k.KVM_API_VERSION:
                raise Unsupported(
                    f"cannot use {path}: its API version is {version}, not {k.KVM_API_VERSION}.",
                    feature="kvm",
                )
        except BaseException:
            os.close(self._fd)
            raise

    def check_extension(self, cap: int) -> int:
        return _call(self._fd, "KVM_CHECK_EXTENSION", cap)

    def supported_cpuid(self) -> list[tuple[int, ...]]:
        """KVM_GET_SUPPORTED_CPUID: (function, index, flags, eax, ebx, ecx, edx) each."""
        room = 256
        entry = k.kvm_cpuid_entry2
        buffer = bytearray(k.kvm_cpuid2.size + room * entry.size)
        k.kvm_cpuid2.pack_into(buffer, 0, room, 0)
        _call(self._fd, "KVM_GET_SUPPORTED_CPUID", buffer)
        count, _ = k.kvm_cpuid2.unpack_from(buffer)
        return [entry.unpack_from(buffer, k.kvm_cpuid2.size + n * entry.size) for n in range(count)]

    def create_vm(self) -> Vm:
        run_size = _call(self._fd, "KVM_GET_VCPU_MMAP_SIZE")
        return Vm(_call(self._fd, "KVM_CREATE_VM", 0), run_size)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Vm:
    def __init__(self, fd: int, run_size: int) -> None:
        self._fd = fd
        self._run_size = run_size

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def set_tss_addr(self, address: int) -> None:
        _call(self._fd, "KVM_SET_TSS_ADDR", address)

    def set_identity_map_addr(self, address: int) -> None:
        _call(self._fd, "KVM_SET_IDENTITY_MAP_ADDR", address.to_bytes(8, "little"))

    def enable_split_irqchip(self, reserved_routes: int) -> None:
        """LAPICs in the kernel, nothing else: no PIC, PIT or IOAPIC."""
        cap = k.kvm_enable_cap.pack(k.KVM_CAP_SPLIT_IRQCHIP, 0, reserved_routes, 0, 0, 0)
        _call(self._fd, "KVM_ENABLE_CAP", cap)

    def set_memory_region(self, slot: int, gpa: int, size: int, address: int) -> None:
        region = k.kvm_userspace_memory_region.pack(slot, 0, gpa, size, address)
        _call(self._fd, "KVM_SET_USER_MEMORY_REGION", region)

    def set_xen_routes(self, routes: Iterable[tuple[int, int, int]]) -> None:
        """Replace the whole GSI routing table by (gsi, port, vcpu) event-channel routes."""
        entries = [
            k.kvm_irq_routing_entry_xen_evtchn.pack(
                gsi, k.KVM_IRQ_ROUTING_XEN_EVTCHN, 0, 0, port, vcpu, k.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
            )
            for gsi, port, vcpu in routes
        ]
        _call(self._fd, "KVM_SET_GSI_ROUTING", k.kvm_irq_routing.pack(len(entries), 0) + b"".join(entries))

    def signal_msi(self, vcpu_id: int, vector: int) -> bool:
        """Send an interrupt to a vCPU's LAPIC; False if it did not take it (it is off, or has no such id)."""
        msi = k.kvm_msi.pack(k.MSI_ADDRESS | vcpu_id << 12, 0, vector, 0)
        try:
            return _call(self._fd, "KVM_SIGNAL_MSI", msi) > 0
        except KvmError as fault:
            if fault.data["errno"] == errno.EPERM:  # what KVM says if no LAPIC feels meant
                return False
            raise

    def clock(self) -> tuple[int, int | None]:
        """(ns since the VM was made, by the guest's clock; ns of the Unix epoch just then, None if this
        kernel does not say)."""
        buffer = bytearray(k.kvm_clock_data.size)
        _call(self._fd, "KVM_GET_CLOCK", buffer)
        clock, flags, realtime, _ = k.kvm_clock_data.unpack(buffer)
        return clock, realtime if flags & k.KVM_CLOCK_REALTIME else None

    def set_clock(self, now: int) -> None:
        """Let the guest's clock go on from ``now`` ns."""
        _call(self._fd, "KVM_SET_CLOCK", k.kvm_clock_data.pack(now, 0, 0, 0))

    def intercept_msr_writes(self, msr: int) -> None:
        """Let the guest's writes of one MSR, and no others, come to us as KVM_EXIT_X86_WRMSR."""
        cap = k.kvm_enable_cap.pack(k.KVM_CAP_X86_USER_SPACE_MSR, 0, k.KVM_MSR_EXIT_REASON_FILTER, 0, 0, 0)
        _call(self._fd, "KVM_ENABLE_CAP", cap)
        bitmap = ctypes.create_string_buffer(8)  # one bit is used; the kernel copies whole words
        one = k.kvm_msr_filter_range.pack(k.KVM_MSR_FILTER_WRITE, 1, msr, ctypes.addressof(bitmap))
        others = bytes((k.KVM_MSR_FILTER_MAX_RANGES - 1) * k.kvm_msr_filter_range.size)
        _call(self._fd, "KVM_X86_SET_MSR_FILTER", k.kvm_msr_filter.pack(0) + one + others)

    def irqfd(self, fd: int, gsi: int, *, deassign: bool = False) -> None:
        flags = k.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        _call(self._fd, "KVM_IRQFD", k.kvm_irqfd.pack(fd, gsi, flags, 0))

    def xen_config(self, msr: int, flags: int) -> None:
        _call(self._fd, "KVM_XEN_HVM_CONFIG", k.kvm_xen_hvm_config.pack(flags, msr, 0, 0, 0, 0))

    def xen_set_attr(self, kind: int, value: bytes) -> None:
        """KVM_XEN_HVM_SET_ATTR; ``value`` is the union's bytes."""
        attr = kind.to_bytes(8, "little") + value
        _call(self._fd, "KVM_XEN_HVM_SET_ATTR", attr.ljust(k.KVM_XEN_ATTR_SIZE, b"\0"))

    def xen_long_mode(self) -> bool:
        """KVM_XEN_ATTR_TYPE_LONG_MODE as it is now: a guest that writes the hypercall MSR changes it."""
        attr = bytearray(
            k.KVM_XEN_ATTR_TYPE_LONG_MODE.to_bytes(8, "little").ljust(k.KVM_XEN_ATTR_SIZE, b"\0")
        )
        _call(self._fd, "KVM_XEN_HVM_GET_ATTR", attr)
        return bool(attr[8])

    def xen_evtchn_send(self, port: int, vcpu: int) -> None:
        """Raise a port. Raises :class:`KvmError` EINVAL before shared_info is set."""
        prio = k.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
        event = b"".join(n.to_bytes(4, "little") for n in (port, vcpu, prio))
        _call(self._fd, "KVM_XEN_HVM_EVTCHN_SEND", event)

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        return Vcpu(_call(self._fd, "KVM_CREATE_VCPU", vcpu_id), self._run_size)


class Vcpu:
    """``run_page`` is struct kvm_run, shared with the kernel; the guest cannot write it. The kernel leaves
    the registers in it at every exit (KVM_CAP_SYNC_REGS): ``registers.py`` reads them there."""

    def __init__(self, fd: int, run_size: int) -> None:
        self._fd = fd
        try:
            self._run = mmap.mmap(fd, run_size)
        except OSError as fault:
            os.close(fd)
            raise KvmError(
                f"cannot map a vCPU's kvm_run: {fault.strerror}. The host is out of memory.",
                "mmap",
                fault.errno or errno.ENOMEM,
            ) from None
        self.run_page = memoryview(self._run)
        self._reason = self.run_page[k.KVM_RUN_exit_reason : k.KVM_RUN_exit_reason + 4].cast("I")
        self._request = ctypes.c_ulong(k.KVM_RUN)
        self.run_page[k.KVM_RUN_valid_regs] = k.KVM_SYNC_X86_REGS | k.KVM_SYNC_X86_SREGS

    def close(self) -> None:
        if self._fd >= 0:
            self._reason.release()
            self.run_page.release()
            self._run.close()
            os.close(self._fd)
            self._fd = -1

    def run(self) -> int | None:
        """Enter the guest until it exits; the exit reason, or None if interrupted (look at your queue)."""
        if _ioctl(self._fd, self._request, 0) == 0:
            return self._reason[0]
        code = ctypes.get_errno()
        # EAGAIN: an AP that got its INIT/SIPI while it waited for them returns once and is run again
        if code in (errno.EINTR, errno.EAGAIN):
            return None
        raise KvmError(f"KVM_RUN failed: {os.strerror(code)}.", "KVM_RUN", code)

    def request_exit(self, wanted: bool) -> None:
        """kvm_run.immediate_exit: while set, KVM_RUN returns at once. Any thread."""
        self.run_page[k.KVM_RUN_immediate_exit] = wanted

    def get_regs(self) -> dict[str, int]:
        buffer = bytearray(k.kvm_regs.size)
        _call(self._fd, "KVM_GET_REGS", buffer)
        return dict(zip(k.KVM_REGS_NAMES, k.kvm_regs.unpack(buffer), strict=True))

    def set_regs(self, **regs: int) -> None:
        """Set all general registers; those not named become 0."""
        _call(self._fd, "KVM_SET_REGS", k.kvm_regs.pack(*(regs.get(name, 0) for name in k.KVM_REGS_NAMES)))

    def get_sregs(self) -> bytearray:
        buffer = bytearray(k.KVM_SREGS_SIZE)
        _call(self._fd, "KVM_GET_SREGS", buffer)
        return buffer

    def set_sregs(self, sregs: bytearray) -> None:
        _call(self._fd, "KVM_SET_SREGS", sregs)

    def set_msr(self, index: int, value: int) -> None:
        """Raises :class:`KvmError` if KVM does not take it."""
        entry = k.kvm_msr_entry.pack(index, value)
        if _call(self._fd, "KVM_SET_MSRS", k.kvm_msrs.pack(1, 0) + entry) != 1:
            raise KvmError(f"KVM_SET_MSRS failed: MSR {index:#x} is refused.", "KVM_SET_MSRS", errno.EINVAL)

    def interrupt(self, vector: int) -> None:
        """Inject an interrupt past the LAPIC, as a PIC would: it needs no EOI. One that waits is enough."""
        lapic = bytearray(k.KVM_LAPIC_STATE_SIZE)
        _call(self._fd, "KVM_GET_LAPIC", lapic)
        wanted = k.APIC_DM_EXTINT.to_bytes(4, "little")
        if lapic[k.APIC_LVT0 : k.APIC_LVT0 + 4] != wanted:  # LINT0 is where a PIC would be
            lapic[k.APIC_LVT0 : k.APIC_LVT0 + 4] = wanted
            _call(self._fd, "KVM_SET_LAPIC", lapic)
        try:
            _call(self._fd, "KVM_INTERRUPT", vector.to_bytes(4, "little"))
        except KvmError as fault:
            if fault.data["errno"] != errno.EEXIST:
                raise

    def set_cpuid(self, entries: Iterable[tuple[int, ...]]) -> None:
        packed = [k.kvm_cpuid_entry2.pack(*entry) for entry in entries]
        _call(self._fd, "KVM_SET_CPUID2", k.kvm_cpuid2.pack(len(packed), 0) + b"".join(packed))

    def xen_set_attr(self, kind: int, value: int | bytes) -> None:
        """KVM_XEN_VCPU_SET_ATTR; ``value`` is a little-endian number, or the union's bytes."""
        raw = value if isinstance(value, bytes) else value.to_bytes(8, "little")
        attr = kind.to_bytes(8, "little") + raw
        _call(self._fd, "KVM_XEN_VCPU_SET_ATTR", attr.ljust(k.KVM_XEN_ATTR_SIZE, b"\0"))
