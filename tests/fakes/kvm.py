"""KVM without KVM: System, Vm and Vcpu by shape, with the kernel's rules that matter to their users.

A vCPU "runs" until a test makes it exit or somebody requests its exit, as the real one does.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable

from xenpvd.abi import linux_kvm as k
from xenpvd.errors import KvmError
from xenpvd.vmm import hypercall_insn

PLAIN_CAPS = {
    k.KVM_CAP_IMMEDIATE_EXIT: 1,
    k.KVM_CAP_TSC_DEADLINE_TIMER: 1,
    k.KVM_CAP_SPLIT_IRQCHIP: 1,
    k.KVM_CAP_SIGNAL_MSI: 1,
    k.KVM_CAP_SYNC_REGS: 7,
    k.KVM_CAP_X86_USER_SPACE_MSR: 1,
    k.KVM_CAP_X86_MSR_FILTER: 1,
}
CAPS = {**PLAIN_CAPS, k.KVM_CAP_XEN_HVM: 0x1FF}
#: where port I/O data lies in the fake kvm_run
DATA = 4096


def refuse(ioctl: str, code: int) -> KvmError:
    return KvmError(f"{ioctl} failed: {os.strerror(code)}.", ioctl, code)


class FakeVcpu:
    """``guest_exits(...)`` makes KVM_RUN return; ``answers`` has what was in the page at the next entry."""

    def __init__(self, vm: FakeVm | None = None) -> None:
        self._vm = vm
        self.run_page = memoryview(bytearray(2 * DATA))
        self._changed = threading.Condition()
        self._exits: deque[Callable[[FakeVcpu], int]] = deque()
        self._wanted = False
        self.entered = threading.Event()
        self.attrs: list[tuple[int, int | bytes]] = []
        self.msrs: list[tuple[int, int]] = []
        self.interrupts: list[int] = []
        self.attr_fault: KvmError | None = None
        self.threads: set[int] = set()
        self.regs: dict[str, int] = {"rip": 0x1234}
        self.sregs = bytearray(k.KVM_SREGS_SIZE)
        self.cpuid: list[tuple[int, ...]] = []
        self.closed = False

    # -- as kvm.Vcpu

    def run(self) -> int | None:
        assert not self.closed
        with self._changed:
            self.entered.set()
            assert self._changed.wait_for(lambda: self._wanted or self._exits, 10), "nobody wants anything"
            if self.run_page[k.KVM_RUN_dirty_regs]:
                regs = k.kvm_regs.unpack_from(self.run_page, k.KVM_RUN_regs)
                self.regs = dict(zip(k.KVM_REGS_NAMES, regs, strict=True))
                self.run_page[k.KVM_RUN_dirty_regs] = 0
            if self._wanted:
                return None
            act = self._exits.popleft()
            reason = act(self)
            self._sync_regs()
            return reason

    def _sync_regs(self) -> None:
        regs = k.kvm_regs.pack(*(self.regs.get(name, 0) for name in k.KVM_REGS_NAMES))
        self.run_page[k.KVM_RUN_regs : k.KVM_RUN_regs + len(regs)] = regs
        self.run_page[k.KVM_RUN_sregs : k.KVM_RUN_sregs + len(self.sregs)] = self.sregs

    def request_exit(self, wanted: bool) -> None:
        assert not self.closed
        with self._changed:
            self._wanted = wanted
            self._changed.notify_all()

    def set_msr(self, index: int, value: int) -> None:
        self.threads.add(threading.get_ident())
        if self.attr_fault is not None:
            raise self.attr_fault
        self.msrs.append((index, value))

    def interrupt(self, vector: int) -> None:
        self.interrupts.append(vector)

    def xen_set_attr(self, kind: int, value: int | bytes) -> None:
        self.threads.add(threading.get_ident())
        if self.attr_fault is not None:
            raise self.attr_fault
        if self._vm is not None:
            self._vm.note("KVM_XEN_VCPU_SET_ATTR")
        self.attrs.append((kind, value))

    def get_regs(self) -> dict[str, int]:
        return dict(self.regs)

    def set_regs(self, **regs: int) -> None:
        self.regs = regs

    def get_sregs(self) -> bytearray:
        return bytearray(self.sregs)

    def set_sregs(self, sregs: bytearray) -> None:
        self.sregs = bytearray(sregs)

    def set_cpuid(self, entries: Iterable[tuple[int, ...]]) -> None:
        if self._vm is not None:
            self._vm.note("KVM_SET_CPUID2")
        self.cpuid = list(entries)

    def close(self) -> None:
        self.closed = True

    # -- the guest

    def guest_exits(self, act: Callable[[FakeVcpu], int]) -> None:
        """KVM_RUN calls ``act`` in the vCPU's thread and returns what it returns."""
        with self._changed:
            self._exits.append(act)
            self._changed.notify_all()

    def guest_hypercall(self, number: int, *args: int, longmode: int = 1, cpl: int = 0) -> None:
        params = [*args, 0, 0, 0, 0, 0, 0][:6]

        def act(vcpu: FakeVcpu) -> int:
            raw = k.KVM_RUN_xen_hcall.pack(k.KVM_EXIT_XEN_HCALL, longmode, cpl, number, 0xDEAD, *params)
            vcpu.run_page[k.KVM_RUN_union : k.KVM_RUN_union + len(raw)] = raw
            return k.KVM_EXIT_XEN

        self.guest_exits(act)

    def guest_out(self, number: int, *args: int, longmode: bool = True, cpl: int = 0) -> None:
        """A hypercall by OUT, with the registers as the kernel leaves them in the page."""
        order = ("rdi", "rsi", "rdx", "r10", "r8", "r9") if longmode else (
            "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"
        )  # fmt: skip

        def act(vcpu: FakeVcpu) -> int:
            vcpu.regs = {"rip": 0x1234, "rax": number, **dict(zip(order, args, strict=False))}
            vcpu.guest_mode(longmode=longmode, cpl=cpl)
            raw = k.KVM_RUN_io.pack(1, 1, hypercall_insn.PORT, 1, DATA)
            vcpu.run_page[k.KVM_RUN_union : k.KVM_RUN_union + len(raw)] = raw
            return k.KVM_EXIT_IO

        self.guest_exits(act)

    def guest_mode(self, *, longmode: bool = True, cpl: int = 0) -> None:
        """Paging is on; 64-bit code runs, or 32-bit code of a PAE kernel."""
        cr0, cr4, efer = k.X86_CR0_PG, k.X86_CR4_PAE, k.EFER_LMA * longmode
        for at, value in ((k.KVM_SREGS_cr0, cr0), (k.KVM_SREGS_cr4, cr4), (k.KVM_SREGS_efer, efer)):
            self.sregs[at : at + 8] = value.to_bytes(8, "little")
        self.sregs[k.KVM_SREGS_SEGMENTS["cs"] + 19] = longmode
        self.sregs[k.KVM_SREGS_SEGMENTS["ss"] + 16] = cpl

    def guest_rax(self) -> int:
        """RAX after the last hypercall by OUT, as a signed number."""
        self.guest_sees()
        return int.from_bytes(self.regs["rax"].to_bytes(8, "little"), "little", signed=True)

    def guest_msr(self, index: int, value: int | None) -> bool:
        """Write an MSR that is not for the kernel (or read it, for None); False for a #GP."""

        def act(vcpu: FakeVcpu) -> int:
            raw = k.KVM_RUN_msr.pack(7, k.KVM_MSR_EXIT_REASON_FILTER, index, value or 0)
            vcpu.run_page[k.KVM_RUN_union : k.KVM_RUN_union + len(raw)] = raw
            return k.KVM_EXIT_X86_RDMSR if value is None else k.KVM_EXIT_X86_WRMSR

        self.guest_exits(act)
        return self.guest_sees()[k.KVM_RUN_msr_error] == 0

    def guest_io(self, port: int, data: bytes = b"\0", *, size: int = 1, out: bool = True) -> None:
        def act(vcpu: FakeVcpu) -> int:
            raw = k.KVM_RUN_io.pack(out, size, port, len(data) // size, DATA)
            vcpu.run_page[k.KVM_RUN_union : k.KVM_RUN_union + len(raw)] = raw
            vcpu.run_page[DATA : DATA + len(data)] = data
            return k.KVM_EXIT_IO

        self.guest_exits(act)

    def guest_mmio(self, length: int, *, write: bool) -> None:
        def act(vcpu: FakeVcpu) -> int:
            raw = k.KVM_RUN_mmio.pack(0xE000_0000, b"\x11" * 8, length, write)
            vcpu.run_page[k.KVM_RUN_union : k.KVM_RUN_union + len(raw)] = raw
            return k.KVM_EXIT_MMIO

        self.guest_exits(act)

    def guest_sees(self) -> bytes:
        """The page as it is when the vCPU enters the guest next."""
        seen: list[bytes] = []
        done = threading.Event()

        def act(vcpu: FakeVcpu) -> int:
            seen.append(bytes(vcpu.run_page))
            done.set()
            return k.KVM_EXIT_INTR

        self.guest_exits(act)
        assert done.wait(10)
        return seen[0]

    def guest_result(self) -> int:
        """RAX after the last hypercall, as a signed number."""
        (result,) = struct.unpack_from("<q", self.guest_sees(), k.KVM_RUN_xen_result)
        return int(result)


class FakeVm:
    """``fail_at`` = n lets the nth call fail. ``channels`` and ``irqfds`` hold what the kernel would hold."""

    def __init__(self, fail_at: int = 0) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at
        self.slots: dict[int, tuple[int, int, int]] = {}
        self.channels: dict[int, tuple[int, ...]] = {}  # port: (type, deliver.port, vcpu or fd, priority)
        self.routes: dict[int, tuple[int, int]] = {}  # gsi: (port, vcpu)
        self.irqfds: dict[int, int] = {}  # gsi: fd
        self.attrs: list[tuple[int, bytes]] = []
        self.shared_info: int | None = None
        self.sent: list[tuple[int, int]] = []
        self.send_fault: KvmError | None = None
        self.config: tuple[int, int] | None = None
        self.long_mode = False
        self.filtered_msr: int | None = None
        self.msis: list[tuple[int, int]] = []
        self.lapic_off: set[int] = set()
        self.now = 10**9
        self.realtime: int | None = 1_700_000_000 * 10**9
        self.vcpus: list[FakeVcpu] = []
        self.closed = False

    def note(self, ioctl: str) -> None:
        assert not self.closed
        self.calls.append(ioctl)
        if len(self.calls) == self._fail_at:
            raise refuse(ioctl, errno.ENOMEM)

    def close(self) -> None:
        self.closed = True

    def set_tss_addr(self, address: int) -> None:
        self.note("KVM_SET_TSS_ADDR")

    def set_identity_map_addr(self, address: int) -> None:
        self.note("KVM_SET_IDENTITY_MAP_ADDR")

    def enable_split_irqchip(self, reserved_routes: int) -> None:
        assert not self.vcpus, "the irqchip comes before vCPUs"
        self.note("KVM_ENABLE_CAP")

    def set_memory_region(self, slot: int, gpa: int, size: int, address: int) -> None:
        self.note("KVM_SET_USER_MEMORY_REGION")
        self.slots[slot] = gpa, size, address

    def set_xen_routes(self, routes: Iterable[tuple[int, int, int]]) -> None:
        self.note("KVM_SET_GSI_ROUTING")
        routes = list(routes)
        if any(port >= (4096 if self.long_mode else 1024) for _, port, _ in routes):
            raise refuse("KVM_SET_GSI_ROUTING", errno.EINVAL)
        self.routes = {gsi: (port, vcpu) for gsi, port, vcpu in routes}

    def irqfd(self, fd: int, gsi: int, *, deassign: bool = False) -> None:
        self.note("KVM_IRQFD")
        os.fstat(fd)
        if deassign:
            assert self.irqfds.pop(gsi) == fd
        else:
            assert gsi not in self.irqfds
            self.irqfds[gsi] = fd

    def signal_msi(self, vcpu_id: int, vector: int) -> bool:
        self.note("KVM_SIGNAL_MSI")
        self.msis.append((vcpu_id, vector))
        return vcpu_id not in self.lapic_off

    def clock(self) -> tuple[int, int | None]:
        return self.now, self.realtime

    def set_clock(self, now: int) -> None:
        self.note("KVM_SET_CLOCK")
        self.now = now

    def intercept_msr_writes(self, msr: int) -> None:
        self.note("KVM_X86_SET_MSR_FILTER")
        self.filtered_msr = msr

    def xen_long_mode(self) -> bool:
        return self.long_mode

    def xen_config(self, msr: int, flags: int) -> None:
        self.note("KVM_XEN_HVM_CONFIG")
        self.config = msr, flags

    def xen_set_attr(self, kind: int, value: bytes) -> None:
        self.note("KVM_XEN_HVM_SET_ATTR")
        self.attrs.append((kind, value))
        if kind == k.KVM_XEN_ATTR_TYPE_LONG_MODE:
            self.long_mode = bool(value[0])
        elif kind == k.KVM_XEN_ATTR_TYPE_SHARED_INFO:
            self.shared_info = int.from_bytes(value, "little")
        elif kind == k.KVM_XEN_ATTR_TYPE_EVTCHN:
            port, type_, flags, *deliver = k.kvm_xen_evtchn_attr.unpack(value)
            if not 0 < port < (4096 if self.long_mode else 1024):
                raise refuse("KVM_XEN_HVM_SET_ATTR", errno.EINVAL)
            if flags == k.KVM_XEN_EVTCHN_DEASSIGN:
                if self.channels.pop(port, None) is None:
                    raise refuse("KVM_XEN_HVM_SET_ATTR", errno.ENOENT)
            elif port in self.channels:
                raise refuse("KVM_XEN_HVM_SET_ATTR", errno.EEXIST)
            else:
                self.channels[port] = type_, *deliver

    def xen_evtchn_send(self, port: int, vcpu: int) -> None:
        self.note("KVM_XEN_HVM_EVTCHN_SEND")
        if self.send_fault is not None:
            raise self.send_fault
        if self.shared_info is None:
            raise refuse("KVM_XEN_HVM_EVTCHN_SEND", errno.EINVAL)
        self.sent.append((port, vcpu))

    def create_vcpu(self, vcpu_id: int) -> FakeVcpu:
        self.note("KVM_CREATE_VCPU")
        assert vcpu_id == len(self.vcpus)
        self.vcpus.append(FakeVcpu(self))
        return self.vcpus[-1]


class FakeSystem:
    """/dev/kvm. ``vm`` is the one it makes."""

    def __init__(self, caps: dict[int, int] | None = None, fail_at: int = 0) -> None:
        self.caps = CAPS if caps is None else caps
        self.vm = FakeVm(fail_at)
        self.closed = False

    def check_extension(self, cap: int) -> int:
        return self.caps.get(cap, 0)

    def supported_cpuid(self) -> list[tuple[int, ...]]:
        return [
            (0, 0, 0, 1, 0, 0, 0),
            (1, 0, 0, 0, 0, 0, 0),
            (0x4000_0000, 0, 0, 0, 1, 2, 3),
            (0x8000_0008, 0, 0, 40, 0, 0, 0),
        ]

    def create_vm(self) -> FakeVm:
        return self.vm

    def close(self) -> None:
        self.closed = True
