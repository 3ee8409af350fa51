"""The machine put together, with a KVM that a test drives: built, run, ended and taken apart."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.conftest import tiny_shim
from tests.fakes.fds import open_fds
from tests.fakes.guest_memory import PRESENT, WRITE
from tests.fakes.kvm import PLAIN_CAPS, FakeSystem, FakeVcpu, refuse
from xenpvd.abi import linux_kvm as k
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import GrantError, HostError, KvmError, NotFound, Unsupported, XenError
from xenpvd.views import PortInfo, VcpuInfo
from xenpvd.vmm import hypercall_insn, layout
from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.elf import Segment
from xenpvd.vmm.kernel import PvhImage, parse_pvh
from xenpvd.vmm.layout import GIB, MIB
from xenpvd.vmm.machine import Machine, MachineConfig
from xenpvd.vmm.vcpu import VcpuThread

RAM = 32 * MIB
IMAGE = BootImage(parse_pvh(tiny_shim()), "pv-shim console=xen", ((b"kernel", "console=hvc0"),), True)
#: page tables at 24 MiB that map the first 2 MiB to themselves; arguments at 1 MiB
CR3 = 24 * MIB
ARG = MIB
SHARED = (4 * GIB) >> 12
EVTCHN, MEMORY, VCPU, HVM, SCHED, CONSOLE = 32, 12, 24, 34, 29, 18


class FakeOwner:
    """Notes what it is told and in which thread."""

    def __init__(self) -> None:
        self.log = b""
        self.logs = 0
        self.ends: list[tuple[str, str, dict[str, int] | None]] = []
        self.ended = asyncio.Event()
        self.spoken = asyncio.Event()
        self.threads: set[int] = set()
        self.changes = 0

    def machine_changed(self) -> None:
        self.threads.add(threading.get_ident())
        self.changes += 1

    def machine_log(self, data: bytes) -> None:
        self.threads.add(threading.get_ident())
        self.log += data
        self.logs += 1
        self.spoken.set()

    def machine_ended(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        self.threads.add(threading.get_ident())
        self.ends.append((reason, detail, regs))
        self.ended.set()


class Bench:
    """``accel``: "kvm-xen" or "kvm"; the guest's hypercalls are made accordingly."""

    def __init__(self, accel: str = "kvm-xen", vcpus: int = 2) -> None:
        self.accel = accel
        self.owner = FakeOwner()
        self.machine = Machine(MachineConfig(RAM, vcpus, 1, (4, 17), accel), IMAGE, self.owner)
        self.vm: Any = self.machine._vm
        self.vcpus: list[FakeVcpu] = self.vm.vcpus
        memory = self.machine.memory
        for level, entry in ((0, CR3 + 0x1000), (1, CR3 + 0x2000)):
            memory.write(CR3 + level * PAGE_SIZE, (entry | PRESENT | WRITE).to_bytes(8, "little"))
        memory.write(CR3 + 2 * PAGE_SIZE, (PRESENT | WRITE | 1 << 7).to_bytes(8, "little"))
        for vcpu in self.vcpus:
            vcpu.guest_mode()
            vcpu.sregs[k.KVM_SREGS_cr3 : k.KVM_SREGS_cr3 + 8] = CR3.to_bytes(8, "little")

    def call(self, number: int, *args: int, vcpu: int = 0, longmode: bool = True, cpl: int = 0) -> None:
        """A hypercall; nobody waits for its answer."""
        one = self.vcpus[vcpu]
        if self.accel == "kvm":
            one.guest_out(number, *args, longmode=longmode, cpl=cpl)
        else:
            one.guest_hypercall(number, *args, longmode=longmode, cpl=cpl)

    def answer(self, vcpu: int = 0) -> int:
        one = self.vcpus[vcpu]
        return one.guest_rax() if self.accel == "kvm" else one.guest_result()

    def ask(self, number: int, op: int, layout: str, *fields: int, vcpu: int = 0) -> int:
        """A hypercall with a struct by pointer."""
        self.machine.memory.write(ARG, struct.pack(layout, *fields))
        self.call(number, op, ARG, vcpu=vcpu)
        return self.answer(vcpu)

    def place_shared_info(self) -> None:
        assert self.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 0, 0, SHARED) == 0


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    system = FakeSystem()
    monkeypatch.setattr("xenpvd.vmm.build.System", lambda: system)
    return system


@pytest.fixture(params=["kvm-xen", "kvm"])
async def either(system: FakeSystem, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    bench = Bench(request.param)
    yield bench
    bench.machine.stop()
    bench.machine.close()


@pytest.fixture
async def bench(system: FakeSystem) -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.machine.stop()
    bench.machine.close()


# -- building


async def test_what_is_built(bench: Bench, system: FakeSystem) -> None:
    slots = {gpa: size for gpa, size, _ in bench.vm.slots.values()}
    assert slots == {
        0: RAM,
        layout.ACPI: layout.ACPI_SIZE,
        layout.SPECIAL: layout.SPECIAL_SIZE,
    }
    memory = bench.machine.memory
    assert all(memory.address(gpa, size) == at for gpa, size, at in bench.vm.slots.values())
    first = bench.vcpus[0].regs
    assert first == {"rip": IMAGE.kernel.entry, "rbx": layout.START_INFO, "rflags": 2}
    assert memory.read(layout.START_INFO, 4) == struct.pack("<I", 0x336EC578)
    assert memory.read(layout.ACPI, 8) == b"RSD PTR "
    assert [dict.fromkeys(entry[0] for entry in vcpu.cpuid).keys() >= {0x4000_0004} for vcpu in bench.vcpus]
    assert [vcpu.attrs for vcpu in bench.vcpus] == [[(6, 0)], [(6, 1)]]
    assert system.closed
    assert bench.machine.host.accel == "kvm-xen" and bench.machine.host.xen_caps == 0x1FF


async def test_ram_above_4_gib_is_a_slot_of_its_own(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "LOW_RAM_MAX", 24 * MIB)
    machine = Machine(MachineConfig(RAM, 1, 1, (4, 17)), IMAGE, FakeOwner())
    slots = {gpa: size for gpa, size, _ in system.vm.slots.values()}
    assert slots[0] == 24 * MIB and slots[4 << 30] == 8 * MIB
    assert machine.memory.is_ram((4 << 30) >> 12)
    machine.close()


@pytest.mark.parametrize("accel, calls", [("kvm-xen", 12), ("kvm", 11)])
async def test_a_build_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, accel: str, calls: int
) -> None:
    """Fail the nth call to KVM, n = 1, 2, 3 ... until none fails."""
    before, n = open_fds(), 0
    while True:
        n += 1
        system = FakeSystem(fail_at=n)
        monkeypatch.setattr("xenpvd.vmm.build.System", lambda system=system: system)
        try:
            built = Machine(MachineConfig(RAM, 2, 1, (4, 17), accel), IMAGE, FakeOwner())
        except KvmError:
            assert system.closed and system.vm.closed and open_fds() == before
            assert all(vcpu.closed for vcpu in system.vm.vcpus)
        else:
            break
    assert n > calls
    built.close()
    built.close()
    assert system.vm.closed and all(vcpu.closed for vcpu in system.vm.vcpus)


async def test_a_host_that_cannot_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    system = FakeSystem({})
    monkeypatch.setattr("xenpvd.vmm.build.System", lambda: system)
    with pytest.raises(Unsupported):
        Machine(MachineConfig(RAM, 1, 1, (4, 17)), IMAGE, FakeOwner())
    assert system.closed


async def test_a_kvm_without_xen_takes_a_changed_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    system = FakeSystem(PLAIN_CAPS)
    monkeypatch.setattr("xenpvd.vmm.build.System", lambda: system)
    code = b"\x0f\x01\xd9\xc3\x0f\x01\xc1\xc3"
    shim = PvhImage(0x200000, (Segment(0x200000, 4096, code),), {})
    machine = Machine(MachineConfig(RAM, 1, 1, (4, 17)), BootImage(shim, "", (), True), FakeOwner())
    assert machine.memory.read(0x200000, 8) == hypercall_insn.patch(code) != code
    assert machine.host.accel == "kvm" and "0x0 and 0x36 are needed" in machine.host.accel_why
    assert system.vm.filtered_msr == 0x4000_0000 and system.vm.attrs == [] and system.vm.config is None
    machine.close()


@pytest.mark.parametrize("notes, accel", [({6: b"linux\0"}, "kvm"), ({6: b"linux\0"}, "auto"), ({}, "auto")])
async def test_a_kernel_of_its_own_is_not_changed_and_may_be_refused(
    monkeypatch: pytest.MonkeyPatch, notes: dict[int, bytes], accel: str
) -> None:
    system = FakeSystem(PLAIN_CAPS)
    monkeypatch.setattr("xenpvd.vmm.build.System", lambda: system)
    kernel = PvhImage(0x200000, (Segment(0x200000, 4096, b"\x0f\x01\xd9"),), notes)
    image = BootImage(kernel, "", (), False)
    if notes:
        with pytest.raises(Unsupported, match="kernel by itself"):
            Machine(MachineConfig(RAM, 1, 1, (4, 17), accel), image, FakeOwner())
        assert system.closed and system.vm.calls == []
    else:
        machine = Machine(MachineConfig(RAM, 1, 1, (4, 17), accel), image, FakeOwner())
        assert machine.memory.read(0x200000, 3) == b"\x0f\x01\xd9"
        machine.close()


# -- hypercalls, from KVM's exit to KVM's page


async def test_the_shims_first_questions(either: Bench) -> None:
    bench = either
    bench.machine.start()
    assert bench.ask(HVM, 1, "<H2xIQ", x.DOMID_SELF, 18, 0) == 0
    assert struct.unpack("<Q", bench.machine.memory.read(ARG + 8, 8)) == (bench.machine.console_port,)
    bench.place_shared_info()
    if bench.accel == "kvm-xen":
        assert bench.vm.shared_info == SHARED
    assert bench.machine.memory.read(SHARED * PAGE_SIZE + 0xC00, 4) == b"\2\0\0\0", "the wallclock"
    assert {SHARED << 12} < {gpa for gpa, _, _ in bench.vm.slots.values()}
    assert bench.ask(HVM, 23, "<IB3x", 0, 0xF1) == 0
    assert bench.ask(EVTCHN, 9, "<I", bench.machine.console_port) == 0
    assert bench.machine.hypercall_count == 4 and bench.machine.log_writes == 0
    assert bench.machine.exit_count >= 4
    stats = bench.machine.hypercall_stats(2)
    assert stats.total == 4 == stats.exits["hypercall"]
    assert [(call.seq, call.vcpu, call.result) for call in stats.recent] == [(3, 0, 0), (4, 0, 0)]
    assert sum(one.count for one in stats.counts) == 4 and stats.counts[0].results == {"ok": 1}
    one, other = bench.machine.vcpu_stats()
    assert one.exits["hypercall"] == 4 and other.exits["hypercall"] == 0
    assert (one.id, one.state) == (0, "running") and one.cpu_seconds > 0
    bench.machine.stop()
    assert [(each.state, each.cpu_seconds) for each in bench.machine.vcpu_stats()] == [("stopped", 0)] * 2


async def test_each_vcpu_sets_its_own_attributes_on_its_own_thread(bench: Bench) -> None:
    bench.machine.start()
    assert bench.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 0, 0, 20) == 0
    for vcpu in bench.vcpus:
        vcpu.guest_sees()
        assert vcpu.attrs[1:] == [(0, 20 * PAGE_SIZE + 64 * bench.vcpus.index(vcpu))]
    threads = [vcpu.threads - {threading.get_ident()} for vcpu in bench.vcpus]
    assert [len(ids) for ids in threads] == [1, 1] and threads[0] != threads[1]


@pytest.mark.parametrize("cpl", [1, 3])
async def test_only_the_kernel_may_call(either: Bench, cpl: int) -> None:
    either.machine.start()
    either.call(SCHED, 0, cpl=cpl)
    assert either.answer() == -x.EPERM
    assert either.machine.hypercall_count == 0


async def test_a_32_bit_caller_without_paging(either: Bench) -> None:
    """GRUB's PVH image: its structs are smaller, and its addresses physical."""
    bench = either
    bench.machine.start()
    one = bench.vcpus[0]
    one.guest_mode = lambda **mode: None  # type: ignore[method-assign]
    one.sregs[:] = bytes(k.KVM_SREGS_SIZE)
    bench.machine.memory.write(8 * MIB, struct.pack("<HHIII", x.DOMID_SELF, 0, 0, 0, SHARED))
    bench.call(MEMORY, 7, 8 * MIB, longmode=False)
    assert bench.answer() == 0
    assert {SHARED << 12} < {gpa for gpa, _, _ in bench.vm.slots.values()}


async def test_a_hypercall_page_without_xen_in_kvm(system: FakeSystem) -> None:
    bench = Bench("kvm")
    bench.machine.start()
    one = bench.vcpus[0]
    assert one.guest_msr(0x4000_0000, 0x5000)
    assert bench.machine.memory.read(0x5000, 5) == b"\xb8\0\0\0\0"
    for index, value in ((0x4000_0000, 0x5001), (0x4000_0000, 2**60), (0x4000_0001, 0x6000), (0x10, None)):
        assert not one.guest_msr(index, value)
    bench.machine.stop()
    bench.machine.close()


async def test_what_kvm_refuses_is_the_guests_error(bench: Bench) -> None:
    """A vcpu_info, vector, shared_info or port that KVM does not take must not be our crash."""
    bench.machine.start()
    bench.vcpus[0].attr_fault = refuse("KVM_XEN_VCPU_SET_ATTR", 22)
    bench.machine.memory.write(ARG, struct.pack("<QII", 20, 0, 0))
    bench.vcpus[0].guest_hypercall(VCPU, 10, 0, ARG)
    assert bench.vcpus[0].guest_result() == -x.EINVAL
    assert bench.ask(HVM, 23, "<IB3x", 0, 0xF1) == -x.EINVAL
    bench.vm._fail_at = len(bench.vm.calls) + 1
    assert bench.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 0, 0, 20) == -x.EINVAL
    bench.vm._fail_at = len(bench.vm.calls) + 1
    assert bench.ask(EVTCHN, 7, "<II", 0, 0) == -x.EINVAL
    assert bench.owner.ends == []


async def test_what_kvm_refuses_to_another_vcpu_is_not_our_crash(bench: Bench) -> None:
    bench.machine.start()
    bench.vcpus[1].attr_fault = refuse("KVM_XEN_VCPU_SET_ATTR", 22)
    assert bench.ask(HVM, 23, "<IB3x", 1, 0xF1) == 0
    bench.vcpus[1].guest_hypercall(SCHED, 0)
    assert bench.vcpus[1].guest_result() == 0
    assert bench.owner.ends == []


async def test_pages_of_the_guests_are_where_there_can_be_some(bench: Bench) -> None:
    bench.machine.start()
    for gfn, result in (
        (20, 0),
        (SHARED, 0),
        (SHARED + 1000, 0),
        (RAM >> 12, 0),
        (layout.CONSOLE_PFN, -x.EINVAL),
        (layout.ACPI >> 12, -x.EINVAL),
        (0xFEE00, -x.EINVAL),
        (1 << 28, -x.EINVAL),
        (2**64 - 1, -x.EINVAL),
    ):
        assert bench.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 1, 0, gfn) == result, hex(gfn)


async def test_grants_are_pages_of_ram_only(bench: Bench) -> None:
    """D5: the hole, the special pages and the ACPI tables cannot be granted, nor what is not there."""
    bench.machine.start()
    assert bench.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 1, 0, 30) == 0
    frames = [20, SHARED, layout.CONSOLE_PFN, layout.ACPI >> 12, RAM >> 12, 2**32 - 1]
    table = b"".join(struct.pack("<HHI", 1, 0, frame) for frame in frames)
    bench.machine.memory.write(30 * PAGE_SIZE, table)
    bench.machine.grants.map(0).unmap()
    for gref in range(1, len(frames)):
        with pytest.raises(GrantError):
            bench.machine.grants.map(gref)


# -- the log


async def test_a_flood_of_the_log_is_bounded_and_told_in_few_pieces(bench: Bench) -> None:
    """CONSOLEIO_write and port 0xE9 a thousand times while the loop is busy: one call of the loop."""
    bench.machine.start()
    bench.machine.memory.write(ARG, b"(XEN) x\n")
    for _ in range(500):
        bench.vcpus[0].guest_hypercall(CONSOLE, 0, 8, ARG)
        bench.vcpus[0].guest_io(0xE9, b"early\n")
    bench.vcpus[0].guest_sees()
    await bench.owner.spoken.wait()
    assert bench.owner.log == b"(XEN) x\nearly\n" * 500
    assert bench.owner.logs == 1
    assert bench.machine.log_writes == 500 and bench.machine.hypercall_count == 0
    assert bench.owner.threads == {threading.get_ident()}


# -- the end


@pytest.mark.parametrize(
    "act, reason, detail",
    [
        (lambda b: b.ask(SCHED, 2, "<I", 0), "poweroff", "SCHEDOP_shutdown(poweroff)"),
        (lambda b: b.vcpus[1].guest_io(0x600, b"\x34"), "poweroff", "ACPI S5"),
        (lambda b: b.ask(SCHED, 2, "<I", 1), "reboot", "SCHEDOP_shutdown(reboot)"),
        (lambda b: b.ask(SCHED, 2, "<I", 3), "crash", "SCHEDOP_shutdown(crash)"),
        (lambda b: b.ask(SCHED, 2, "<I", 4), "watchdog", "SCHEDOP_shutdown(watchdog)"),
        (
            lambda b: b.vcpus[1].guest_exits(lambda v: k.KVM_EXIT_SHUTDOWN),
            "crash",
            "vCPU 1: KVM exit shutdown (triple fault)",
        ),
    ],
)
async def test_a_guest_ends(
    either: Bench, act: Callable[[Bench], object], reason: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = either
    for what in ("guest_result", "guest_rax"):
        monkeypatch.setattr(FakeVcpu, what, lambda self: 0)  # there is no next entry
    bench.machine.start()
    act(bench)
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    (end,) = bench.owner.ends
    assert end[:2] == (reason, detail)
    assert (end[2] is not None) == (reason in ("crash", "watchdog")), "registers come with a crash"
    assert end[2] is None or end[2].keys() >= {"rip", "cr0", "cr2", "cr3", "cr4", "efer"}
    for vcpu in bench.machine._vcpus:
        vcpu._thread.join(5)
    assert not any(vcpu._thread.is_alive() for vcpu in bench.machine._vcpus)
    bench.machine.end("crash", "late", None)
    await asyncio.sleep(0)
    assert len(bench.owner.ends) == 1
    assert bench.owner.threads == {threading.get_ident()}


async def test_the_last_words_come_before_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVcpu, "guest_result", lambda self: 0)
    order: list[str] = []
    monkeypatch.setattr(bench.owner, "machine_log", lambda data: order.append(data.decode()))
    monkeypatch.setattr(
        bench.owner, "machine_ended", lambda *args: (order.append(args[0]), bench.owner.ended.set())
    )
    bench.machine.start()
    bench.vcpus[0].guest_io(0xE9, b"Panic on CPU 0")
    bench.ask(SCHED, 2, "<I", 3)
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    assert order == ["Panic on CPU 0", "crash"]


async def test_a_mistake_of_ours_ends_the_guest_as_a_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*args: object) -> int:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(bench.machine._xen.hypercalls, "call", wrong)
    bench.machine.start()
    bench.vcpus[0].guest_hypercall(SCHED, 0)
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    assert bench.owner.ends == [("fault", "ZeroDivisionError: ours", None)]
    assert "vcpu0 failed" in caplog.text


async def test_stop_is_not_an_end(bench: Bench) -> None:
    bench.machine.start()
    await asyncio.to_thread(bench.machine.stop)
    bench.machine.end("crash", "late", None)
    await asyncio.sleep(0)
    assert bench.owner.ends == []
    bench.machine.close()
    assert bench.vm.closed


@pytest.fixture
def taken(either: Bench) -> Iterator[None]:
    """Somebody has the machine's lock and does not let it go."""
    has, done = threading.Event(), threading.Event()

    def hold() -> None:
        with either.machine._lock:
            has.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has.wait(10)
    yield
    done.set()
    thread.join(10)


async def test_a_stop_waits_for_no_lock(either: Bench, taken: None) -> None:
    either.machine.start()
    await asyncio.wait_for(asyncio.to_thread(either.machine.stop), 5)


async def test_an_end_waits_for_no_lock_and_the_first_counts(either: Bench, taken: None) -> None:
    either.machine.start()
    for reason in "poweroff", "crash":
        await asyncio.wait_for(asyncio.to_thread(either.machine.end, reason, "", None), 5)
    await asyncio.wait_for(either.owner.ended.wait(), 5)
    assert either.owner.ends == [("poweroff", "", None)]


async def test_an_end_before_the_start_is_told_at_once(bench: Bench) -> None:
    bench.machine.end("fault", "task x", None)
    assert bench.owner.ends == [("fault", "task x", None)]


def test_an_end_after_the_loop_is_gone_is_nobodys(system: FakeSystem) -> None:
    async def start() -> Bench:
        bench = Bench()
        bench.machine.start()
        return bench

    bench = asyncio.run(start())
    bench.machine.end("crash", "late", None)
    bench.machine.stop()
    bench.machine.close()
    assert bench.owner.ends == []


async def test_a_host_out_of_threads_starts_no_vcpu(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """P8."""
    start = VcpuThread.start

    def second_fails(self: VcpuThread) -> None:
        if self.id == 1:
            raise HostError("cannot start vCPU 1", 11, "vcpu1")
        start(self)

    monkeypatch.setattr(VcpuThread, "start", second_fails)
    with pytest.raises(HostError):
        bench.machine.start()
    assert not any(vcpu._thread.is_alive() for vcpu in bench.machine._vcpus)


# -- backends


async def test_a_backend_binds_and_lets_go(either: Bench) -> None:
    bench = either
    before = open_fds()
    port = bench.machine.bind_interdomain(bench.machine.store_port)
    assert port.port == bench.machine.store_port
    assert (port.port in bench.vm.channels) == (bench.accel == "kvm-xen")
    with pytest.raises(XenError):
        bench.machine.bind_interdomain(bench.machine.store_port)
    port.notify()
    port.close()
    assert open_fds() == before and bench.vm.channels == {}
    bench.machine.bind_interdomain(bench.machine.store_port).close()


@pytest.mark.parametrize("port", [0, 3, 4096, 2**32, 2**70])
async def test_ports_that_are_not_there_cannot_be_bound(bench: Bench, port: int) -> None:
    before = open_fds()
    with pytest.raises(XenError):
        bench.machine.bind_interdomain(port)
    assert open_fds() == before


async def test_a_backend_outlives_its_machine(either: Bench) -> None:
    bench = either
    before = open_fds()
    port = bench.machine.bind_interdomain(bench.machine.console_port)
    page = bench.machine.page(layout.CONSOLE_PFN)
    bench.machine.start()
    bench.place_shared_info()
    assert bench.ask(HVM, 23, "<IB3x", 0, 0xF1) == 0
    bench.machine.stop()
    bench.machine.close()
    port.notify()
    page.write(0, b"x")
    port.close()
    assert open_fds() == before


async def test_an_old_backend_does_not_cut_off_a_new_one(bench: Bench) -> None:
    bench.machine.start()
    old = bench.machine.bind_interdomain(bench.machine.store_port)
    assert bench.ask(EVTCHN, 3, "<I", old.port) == 0
    assert bench.ask(EVTCHN, 6, "<HHI", x.DOMID_SELF, 0, 0) == 0
    new = bench.machine.bind_interdomain(old.port)
    old.close()
    assert bench.vm.channels.keys() == {new.port}
    new.close()
    assert bench.vm.channels == {}


async def test_pages_are_where_the_guest_has_memory(bench: Bench) -> None:
    bench.machine.page(layout.STORE_PFN).store32(0, 7)
    assert bench.machine.memory.read(layout.STORE_PFN << 12, 4) == b"\7\0\0\0"
    for gfn in (RAM >> 12, 0xFEE00, 2**52):
        with pytest.raises(XenError):
            bench.machine.page(gfn)


# -- pause, resume


async def test_nothing_of_the_guest_runs_while_it_is_paused(either: Bench) -> None:
    bench = either
    bench.machine.start()
    bench.vcpus[0].guest_sees()
    bench.machine.pause()
    bench.machine.pause()
    assert bench.machine.paused
    for vcpu in bench.vcpus:
        vcpu.entered.clear()
    bench.call(SCHED, 0)
    assert [one.state for one in bench.machine.vcpus()] == ["paused"] * 2
    assert [one.regs is not None for one in bench.machine.vcpus(regs=True)] == [True] * 2
    assert not any(vcpu.entered.is_set() for vcpu in bench.vcpus) and bench.machine.hypercall_count == 0
    bench.machine.resume()
    assert bench.answer() == 0 and bench.machine.hypercall_count == 1 and not bench.machine.paused


async def test_a_start_in_pause(bench: Bench) -> None:
    bench.machine.start(paused=True)
    assert bench.machine.vcpus(regs=True)[1].state == "paused"
    assert not any(vcpu.entered.is_set() for vcpu in bench.vcpus)
    bench.machine.resume()
    assert all(vcpu.entered.wait(10) for vcpu in bench.vcpus)


async def test_a_paused_guest_ends(bench: Bench) -> None:
    bench.machine.start()
    bench.machine.pause()
    bench.machine.end("fault", "task x", None)
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    bench.machine.pause()
    bench.machine.resume()
    assert [one.state for one in bench.machine.vcpus()] == ["stopped"] * 2


# -- introspection


async def test_vcpus_are_online_as_they_have_ipis(bench: Bench) -> None:
    bench.machine.start()
    assert bench.machine.online == frozenset()
    assert bench.ask(EVTCHN, 7, "<II", 1, 0) == 0
    assert bench.machine.online == {1}
    one, other = bench.machine.vcpus()
    assert (one.online, other.online) == (False, True) and one.regs is None
    assert other == VcpuInfo(1, True, "running", sum(bench.machine._vcpus[1].exits.values()), None)


async def test_many_changes_are_told_once(bench: Bench) -> None:
    bench.machine.start()
    for n in range(50):
        assert bench.ask(EVTCHN, 7, "<II", n % 2, 0) == 0
    assert bench.owner.changes == 0
    await asyncio.sleep(0)
    assert bench.owner.changes == 1
    assert bench.ask(EVTCHN, 7, "<II", 0, 0) == 0
    await asyncio.sleep(0)
    assert bench.owner.changes == 2 and bench.owner.threads == {threading.get_ident()}


async def test_the_balloon(bench: Bench) -> None:
    memory = bench.machine.memory
    bench.machine.start()
    memory.write(2 * MIB, b"x")
    memory.write(ARG + 64, struct.pack("<QQ", 2 * MIB >> 12, 2 * MIB >> 12))
    for op, ballooned in ((1, 1), (6, 0)):
        assert bench.ask(MEMORY, op, "<QQIIH6x", ARG + 64, 2, 0, 0, x.DOMID_SELF) >= 0
        assert bench.machine.ballooned == ballooned
        assert memory.read(2 * MIB, 1) == b"\0"
    await asyncio.sleep(0)
    assert bench.owner.changes == 1


async def test_ports_as_qemu_names_them(either: Bench) -> None:
    bench = either
    bench.machine.start()
    port = bench.machine.bind_interdomain(bench.machine.store_port)
    bench.place_shared_info()
    assert bench.ask(EVTCHN, 7, "<II", 1, 0) == 0
    assert bench.ask(EVTCHN, 1, "<III", 0, 1, 0) == 0
    base = SHARED * PAGE_SIZE
    bench.machine.memory.write(base + 0x800, b"\x08")
    bench.machine.memory.write(base + 0xA00, b"\x10")
    assert bench.machine.ports() == [
        PortInfo(1, 0, "unbound", "0", 0, False, False),
        PortInfo(2, 0, "interdomain", "0", 1, False, False),
        PortInfo(3, 1, "ipi", "", 0, True, False),
        PortInfo(4, 1, "virq", "", 0, False, True),
    ]
    port.close()


async def test_an_event_is_injected(either: Bench) -> None:
    bench = either
    bench.machine.start()
    assert bench.machine.inject(1).pending, "kept until there is a page to say so"
    bench.place_shared_info()
    assert bench.machine.inject(1).pending and not bench.vm.sent, "and a guest below the shim to hear it"
    assert bench.ask(EVTCHN, 7, "<II", 0, 0) == 0
    if bench.accel == "kvm-xen":
        assert bench.vm.sent == [(1, 0)]
    else:
        assert bench.machine.memory.read(SHARED * PAGE_SIZE + 0x800, 1) == b"\2"
    for closed in (0, 4, 4096, 2**40, -1):
        with pytest.raises(NotFound, match=f"cannot raise port {closed}: it is closed"):
            bench.machine.inject(closed)


async def test_the_primary_ports_survive_a_reset(bench: Bench) -> None:
    """E6, M9: the console and the store go on."""
    bench.machine.start()
    port = bench.machine.bind_interdomain(bench.machine.console_port)
    assert bench.ask(EVTCHN, 7, "<II", 0, 0) == 0
    assert bench.ask(EVTCHN, 10, "<H", x.DOMID_SELF) == 0
    assert [info.type for info in bench.machine.ports()] == ["interdomain", "unbound"]
    assert bench.vm.channels.keys() == {port.port}
    port.close()


async def test_memory_regions(bench: Bench) -> None:
    bench.machine.start()
    bench.place_shared_info()
    names = [(one.name, one.size) for one in bench.machine.memory_regions()]
    assert names == [
        ("ram", RAM),
        ("acpi", layout.ACPI_SIZE),
        ("special", layout.SPECIAL_SIZE),
        ("claimed", PAGE_SIZE),
    ]


# -- time


async def test_a_watchdog_that_is_not_fed_ends_the_guest(either: Bench) -> None:
    bench = either
    bench.machine.start()
    assert bench.ask(SCHED, 6, "<II", 0, 1000) == 1
    bench.vm.now += 2000 * 10**9
    assert bench.ask(SCHED, 6, "<II", 0, 0) == 2, "the other one, due at once"
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    assert bench.owner.ends == [("watchdog", "SCHEDOP_shutdown(watchdog)", None)]


async def test_a_vcpus_runstate(either: Bench) -> None:
    either.machine.start()
    either.machine.memory.write(ARG, bytes(48))
    either.call(VCPU, 4, 1, ARG)
    assert either.answer() == 0
    state, since, *times = struct.unpack("<I4xQ4Q", either.machine.memory.read(ARG, 48))
    assert state == 0 and since == sum(times) == either.vm.now


# -- the lock


async def test_a_multicall_lets_the_loop_in_and_no_other_vcpu(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, inside, go = bench.machine._lock, threading.Event(), threading.Event()

    def let_others() -> None:
        lock.__exit__()
        inside.set()
        assert go.wait(10)
        lock.__enter__()

    monkeypatch.setattr(lock, "let_others", let_others)
    bench.machine.start()
    entry = x.multicall_entry.native.pack(SCHED, 0, 0, 0, 0, 0, 0, 0)
    bench.machine.memory.write(ARG, 2 * entry)
    bench.call(13, ARG, 2)
    try:
        assert inside.wait(10)
        bench.call(SCHED, 0, vcpu=1)
        await asyncio.sleep(0.05)  # enough for the other one, if it were let in
        assert bench.machine.hypercall_count == 1 and bench.machine.ports()
        assert bench.machine._xen.caller_registers() is None, "what timers do now is not this vCPU's"
    finally:
        go.set()
    assert (bench.answer(0), bench.answer(1)) == (0, 0)
    recent = [(call.vcpu, call.name) for call in bench.machine.hypercall_stats(4).recent]
    assert recent == [(0, "yield"), (0, "yield"), (0, "multicall"), (1, "yield")]


# -- deadlock freedom


async def test_nobody_waits_for_each_other(either: Bench, busy_switching: None) -> None:
    """vCPUs set one another's attributes while backends notify, the loop looks, and the guest is paused again
    and again; at the end every hypercall has its answer."""
    bench, calls = either, 150
    memory = bench.machine.memory
    bench.machine.start()
    bench.place_shared_info()
    port = bench.machine.bind_interdomain(bench.machine.console_port)
    done = threading.Event()
    for n in range(2):
        other = 1 - n
        memory.write(ARG + 64 + 64 * n, struct.pack("<IB3x", other, 0xF1))
        memory.write(ARG + 256 + 64 * n, struct.pack("<II", bench.machine.console_port, other))
        for call in range(calls):
            op, arg = ((HVM, 23), ARG + 64 + 64 * n) if call % 2 else ((EVTCHN, 8), ARG + 256 + 64 * n)
            bench.call(*op, arg, vcpu=n)

    def notify() -> None:
        while not done.is_set():
            port.notify()

    notifier = threading.Thread(target=notify)
    notifier.start()
    try:
        while bench.machine.hypercall_count < 1 + 2 * calls:
            await asyncio.to_thread(bench.machine.pause)
            bench.machine.vcpus(regs=True)
            bench.machine.resume()
            bench.machine.ports()
            bench.machine.inject(bench.machine.store_port)
    finally:
        done.set()
        notifier.join(10)
    assert not notifier.is_alive()
    assert {name for one in bench.machine.hypercall_stats(0).counts for name in one.results} == {"ok"}
    port.close()


async def test_a_vcpu_that_does_not_come_back_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, let_go = threading.Event(), threading.Event()

    def call(*args: object) -> int:
        inside.set()
        assert let_go.wait(10)
        return 0

    monkeypatch.setattr(bench.machine._xen, "call", call)
    assert bench.machine.stuck(0) is None
    bench.machine.start()
    assert all(vcpu.entered.wait(10) for vcpu in bench.vcpus)
    assert bench.machine.stuck(0) is None
    bench.call(EVTCHN, 4, ARG, vcpu=1)
    assert inside.wait(10)
    assert bench.machine.stuck(0) == "vCPU 1 has not come back to the guest for 0 s"
    assert bench.machine.stuck(60) is None
    bench.machine.end("poweroff", "", None)
    assert bench.machine.stuck(0) == "vCPU 1 has not come back to the guest for 0 s", (
        "it keeps the end waiting"
    )
    let_go.set()


async def test_a_thread_that_is_gone_is_told_unless_the_guest_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.machine, "fault", lambda fault: None)  # as if that failed, too
    monkeypatch.setattr(bench.machine._xen, "call", lambda *args: 1 // 0)
    bench.machine.start()
    bench.call(EVTCHN, 4, ARG, vcpu=1)
    bench.machine._vcpus[1].join()
    assert bench.machine.stuck(60) == "the thread of vCPU 1 is gone"
    bench.machine.end("poweroff", "", None)
    assert bench.machine.stuck(60) is None
