"""KVM's ioctls: the errors by rows, and the real /dev/kvm with a tiny program where there is one.

The program needs no Xen support of KVM, no hardware virtualization even, so these tests run nearly anywhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.fds import open_fds
from xenpvd.abi import linux_kvm as k
from xenpvd.errors import KvmError, Unsupported
from xenpvd.vmm import boot, kvm, registers
from xenpvd.vmm.accel import choose
from xenpvd.vmm.kvm import System, Vcpu, Vm
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.vcpu import VcpuThread

# -- errors


def test_no_kvm(tmp_path: Path) -> None:
    """P7."""
    path = str(tmp_path / "kvm")
    with pytest.raises(
        KvmError, match=r"cannot open .*/kvm: No such file or directory\. Load kvm_intel"
    ) as c:
        System(path)
    assert c.value.data == {"ioctl": "open", "errno": errno.ENOENT}


@pytest.mark.parametrize(
    "code, cure",
    [
        (errno.EACCES, "usermod -aG kvm"),
        (errno.ENODEV, "enable them in the firmware"),
        (errno.EMFILE, "xenpvctl doctor"),
    ],
)
def test_a_kvm_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, code: int, cure: str) -> None:
    """P7."""

    def refuse(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KvmError, match=rf"cannot open /dev/kvm: {os.strerror(code)}\. .*{cure}"):
        System()


def test_something_that_is_no_kvm() -> None:
    before = open_fds()
    with pytest.raises(KvmError, match=r"KVM_GET_API_VERSION failed: Inappropriate ioctl for device\."):
        System("/dev/null")
    assert open_fds() == before


def test_another_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "_ioctl", lambda *args: 13)
    with pytest.raises(Unsupported, match="its API version is 13, not 12"):
        System("/dev/null")


class Answers:
    """Stands for libc's ioctl: what each call returns, or the errno it fails with."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)

    def __call__(self, *args: object) -> int:
        answer = self.answers.pop(0)
        if answer < 0:
            ctypes.set_errno(-answer)
            return -1
        return answer


@pytest.mark.parametrize(
    "code, hint",
    [
        (errno.EBUSY, "VirtualBox"),
        (errno.ENOMEM, "The host is out of memory"),
        (errno.EPERM, "xenpvctl doctor"),
    ],
)
def test_a_hint_where_one_is_known(monkeypatch: pytest.MonkeyPatch, code: int, hint: str) -> None:
    """P7."""
    monkeypatch.setattr(kvm, "_ioctl", Answers(12, 4096, -code))
    system = System("/dev/null")
    with pytest.raises(KvmError, match=f"KVM_CREATE_VM failed: .*{hint}") as caught:
        system.create_vm()
    assert caught.value.data == {"ioctl": "KVM_CREATE_VM", "errno": code}
    system.close()


def test_a_signal_does_not_make_an_ioctl_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(-errno.EINTR, -errno.EINTR, 12)
    monkeypatch.setattr(kvm, "_ioctl", answers)
    System("/dev/null").close()
    assert answers.answers == []


def test_a_vcpu_whose_page_cannot_be_mapped_leaves_no_fd() -> None:
    before = open_fds()
    with pytest.raises(KvmError, match="cannot map a vCPU's kvm_run"):
        Vcpu(os.eventfd(0), 4096)
    assert open_fds() == before


def test_run_tells_an_interruption_from_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.memfd_create("vcpu")
    os.truncate(fd, 4096)
    vcpu = Vcpu(fd, 4096)
    vcpu.run_page[8] = 34
    monkeypatch.setattr(kvm, "_ioctl", Answers(0, -errno.EINTR, -errno.EAGAIN, -errno.EFAULT))
    assert [vcpu.run(), vcpu.run(), vcpu.run()] == [34, None, None]
    with pytest.raises(KvmError, match="KVM_RUN failed: Bad address"):
        vcpu.run()
    vcpu.close()
    vcpu.close()


# -- the real thing

#: at 0x1000: count to EBX with an OUT each, then what the last byte says
OUTS = bytes.fromhex(
    "31c0 40 e610 39d8 72f9".replace(" ", "")
)  # xor eax,eax; 1: inc eax; out 0x10,al; cmp; jb
HALT = OUTS + b"\xf4\xeb\xfd"  # hlt; jmp to it
SPIN = OUTS + b"\xeb\xfe"  # jmp to itself
IN_LOOP = bytes.fromhex("e511 e610 ebfa".replace(" ", ""))  # in eax,0x11; out 0x10,al; jmp
TRIPLE = bytes.fromhex("0f0b")  # ud2 without an IDT


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    try:
        system = System()
    except KvmError as fault:
        pytest.skip(str(fault))
    yield system
    system.close()


class Guest:
    """One vCPU in flat 32-bit mode at 0x1000."""

    def __init__(self, system: System, code: bytes, count: int = 0) -> None:
        self.memory = GuestMemory()
        region = self.memory.add("ram", 0, 2 * MIB, ram=True)
        self.memory.write(0x1000, code)
        self.vm = system.create_vm()
        self.vm.set_identity_map_addr(0xFFFB_C000)
        self.vm.set_tss_addr(0xFFFB_D000)
        self.vm.enable_split_irqchip(24)
        self.vm.set_memory_region(0, 0, region.size, region.address)
        self.vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid(system.supported_cpuid())
        self.vcpu.set_sregs(boot.entry_sregs(self.vcpu.get_sregs()))
        self.vcpu.set_regs(rip=0x1000, rbx=count, rflags=2)

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()
        self.memory.release()


class Handler:
    def __init__(self) -> None:
        self.crashes: list[tuple[str, dict[str, int]]] = []
        self.faults: list[BaseException] = []

    def on_hypercall(self, *args: object) -> int:
        raise AssertionError

    def on_msr_write(self, *args: object) -> bool:
        raise AssertionError

    def on_debug_port(self, data: bytes) -> None:
        raise AssertionError

    def on_power_off(self) -> None:
        raise AssertionError

    def on_crash(self, vcpu: VcpuThread, why: str) -> None:
        self.crashes.append((why, vcpu.vcpu.get_regs()))

    def on_fault(self, fault: BaseException) -> None:
        self.faults.append(fault)


def reached(vcpu: Vcpu, exits: int) -> list[bytes]:
    """What the guest writes to port 0x10 in its first ``exits`` exits."""
    written = []
    while len(written) < exits:
        reason = vcpu.run()
        if reason is None:
            continue
        assert reason == k.KVM_EXIT_IO
        direction, size, port, count, at = k.KVM_RUN_io.unpack_from(vcpu.run_page, k.KVM_RUN_union)
        if direction == k.KVM_EXIT_IO_OUT:
            assert (port, count) == (0x10, 1)
            written.append(bytes(vcpu.run_page[at : at + size]))
        else:
            vcpu.run_page[at : at + 4] = b"\x2a\0\0\0"
    return written


def test_a_guest_runs(system: System) -> None:
    guest = Guest(system, HALT, 5)
    assert reached(guest.vcpu, 5) == [b"\1", b"\2", b"\3", b"\4", b"\5"]
    regs = guest.vcpu.get_regs()
    assert regs["rbx"] == regs["rax"] == 5 and regs["rip"] in range(0x1000, 0x1010)
    guest.close()


def test_a_guest_reads_what_we_answer(system: System) -> None:
    guest = Guest(system, IN_LOOP)
    assert reached(guest.vcpu, 2) == [b"\x2a", b"\x2a"]
    guest.close()


def test_the_kernel_agrees_with_every_size(system: System) -> None:
    """Calls that need no Xen support and have not been made above: none is answered with ENOTTY."""
    guest = Guest(system, HALT)
    fd = os.eventfd(0)
    for act in (
        lambda: guest.vm.irqfd(fd, 24),
        lambda: guest.vm.irqfd(fd, 24, deassign=True),
        lambda: guest.vm.set_xen_routes([]),
    ):
        act()
    os.close(fd)
    with pytest.raises(KvmError) as caught:
        guest.vm.set_memory_region(1, 0x1000, 4096, 1)  # it overlaps, and is not aligned
    assert caught.value.data["errno"] != errno.ENOTTY
    guest.close()


def test_a_page_that_was_given_back_reads_as_zeros_in_the_guest(system: System) -> None:
    """mov eax,[0x5000]; out 0x10,al; hlt"""
    guest = Guest(system, bytes.fromhex("a100500000 e610 f4".replace(" ", "")))
    guest.memory.write(0x5000, b"\x77")
    guest.memory.discard(5)
    assert reached(guest.vcpu, 1) == [b"\0"]
    guest.close()


@pytest.mark.parametrize("code", [SPIN, HALT], ids=["spins", "halts"])
def test_kicks_reach_a_guest_that_never_exits(system: System, code: bytes) -> None:
    guest, handler = Guest(system, code, 3), Handler()
    thread = VcpuThread(0, guest.vcpu, handler)
    thread.start()
    rips = []
    for _ in range(20):
        done = threading.Event()

        def act(done: threading.Event = done) -> None:
            rips.append(guest.vcpu.get_regs()["rip"])
            done.set()

        thread.submit(0, act)
        assert done.wait(5)
    assert all(0x1000 <= rip <= 0x1010 for rip in rips)
    thread.stop()
    thread.join()
    assert (handler.crashes, handler.faults) == ([], [])
    guest.close()


def test_a_triple_fault_ends_as_a_crash_with_registers(system: System) -> None:
    guest, handler = Guest(system, TRIPLE, 9), Handler()
    thread = VcpuThread(0, guest.vcpu, handler)
    thread.start()
    thread.join()
    ((why, regs),) = handler.crashes
    assert "shutdown" in why or "internal error" in why  # the latter where KVM emulates everything
    assert regs["rbx"] == 9 or regs["rip"] == 0xFFF0  # AMD's CPUs forget the registers, and KVM resets them
    guest.close()


def test_many_guests_leave_nothing(system: System) -> None:
    def one() -> None:
        guest = Guest(system, SPIN, 1)
        thread = VcpuThread(0, guest.vcpu, Handler())
        thread.start()
        thread.stop()
        thread.join()
        guest.close()

    one()
    before = open_fds(), threading.active_count()
    for _ in range(5):
        one()
    assert (open_fds(), threading.active_count()) == before


def test_the_choice_on_this_host(system: System) -> None:
    name, why, caps = choose(system, "auto")
    assert name == ("kvm-xen" if caps & 0x36 == 0x36 else "kvm") and f"{caps:#x}" in why


def test_registers_come_and_go_by_the_page(system: System) -> None:
    """KVM_CAP_SYNC_REGS: what an OUT returns in RAX. out 0x10,al; out 0x10,al"""
    guest = Guest(system, bytes.fromhex("e610 e610".replace(" ", "")), 77)
    reached(guest.vcpu, 1)
    page = guest.vcpu.run_page
    assert registers.address_space(page)[0] == 0 and registers.cpl(page) == 0
    longmode, cpl, number, args = registers.hypercall(page)
    assert (longmode, cpl, number, args[0]) == (False, 0, 0, 77)
    registers.set_rax(page, -38)
    assert reached(guest.vcpu, 1) == [b"\xda"]
    assert page[k.KVM_RUN_dirty_regs] == 0
    assert guest.vcpu.get_regs()["rax"] == 2**64 - 38
    shown = registers.named(guest.vcpu.get_regs(), guest.vcpu.get_sregs())
    assert shown["cr0"] & 0x11 == 0x11 and shown["efer"] == 0
    guest.close()


def test_one_msr_comes_to_us(system: System) -> None:
    """mov ecx,0x40000000; mov eax,0x5000; xor edx,edx; wrmsr; out 0x10,al"""
    code = "b900000040 b800500000 31d2 0f30 e610"
    guest = Guest(system, bytes.fromhex(code.replace(" ", "")))
    try:
        guest.vm.intercept_msr_writes(0x4000_0000)
    except KvmError as fault:
        pytest.skip(str(fault))
    while (reason := guest.vcpu.run()) is None:
        pass
    assert reason == k.KVM_EXIT_X86_WRMSR
    _, why, index, value = k.KVM_RUN_msr.unpack_from(guest.vcpu.run_page, k.KVM_RUN_union)
    assert (why, index, value) == (k.KVM_MSR_EXIT_REASON_FILTER, 0x4000_0000, 0x5000)
    guest.vcpu.run_page[k.KVM_RUN_msr_error] = 0
    assert reached(guest.vcpu, 1) == [b"\0"]
    guest.close()


def test_the_guests_clock(system: System) -> None:
    guest = Guest(system, HALT, 3)
    first, realtime = guest.vm.clock()
    assert first <= guest.vm.clock()[0]
    assert realtime is None or abs(realtime - time.time_ns()) < 10**9
    guest.vcpu.set_msr(k.MSR_KVM_SYSTEM_TIME_NEW, 0x2000 | 1)
    reached(guest.vcpu, 1)
    version, multiplier = guest.memory.read(0x2000, 4), guest.memory.read(0x2018, 4)
    assert version != bytes(4) and multiplier != bytes(4), "as vcpu_time_info has them"
    with pytest.raises(KvmError, match="MSR 0x40000fff is refused"):
        guest.vcpu.set_msr(0x4000_0FFF, 1)
    guest.close()


def test_an_interrupt_that_nobody_takes(system: System) -> None:
    guest = Guest(system, HALT)
    assert guest.vm.signal_msi(0, 0xF1) in (True, False)
    assert not guest.vm.signal_msi(9, 0xF1), "there is no vCPU 9"
    guest.vcpu.interrupt(0xF1)
    guest.vcpu.interrupt(0xF1)
    guest.close()


def test_a_closed_vm_is_closed(system: System) -> None:
    vm = system.create_vm()
    vm.close()
    vm.close()
    with pytest.raises(KvmError, match="Bad file descriptor"):
        vm.create_vcpu(0)
    assert isinstance(vm, Vm)
