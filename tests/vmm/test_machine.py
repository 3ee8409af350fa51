"""The machine put together, with a KVM that a test drives: built, run, ended and taken apart."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.conftest import tiny_shim
from tests.fakes.fds import open_fds
from tests.fakes.guest_memory import PRESENT, WRITE
from tests.fakes.kvm import CAPS, FakeSystem, FakeVcpu, refuse
from xenpvd.abi import linux_kvm as k
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import GrantError, HostError, KvmError, Unsupported, XenError
from xenpvd.vmm import layout, machine
from xenpvd.vmm.boot import BootImage, parse_shim
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.machine import Machine, MachineConfig, probe
from xenpvd.vmm.vcpu import VcpuThread

RAM = 32 * MIB
IMAGE = BootImage(parse_shim("shim", tiny_shim()), "pv-shim console=xen", b"kernel", None, "console=hvc0")
#: page tables at 24 MiB that map the first 2 MiB to themselves; arguments at 1 MiB
CR3 = 24 * MIB
ARG = MIB
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
    def __init__(self, vcpus: int = 2) -> None:
        self.owner = FakeOwner()
        self.machine = Machine(MachineConfig(RAM, vcpus, 1, (4, 17)), IMAGE, self.owner)
        self.vm: Any = self.machine._vm
        self.vcpus: list[FakeVcpu] = self.vm.vcpus
        memory = self.machine.memory
        for level, entry in ((0, CR3 + 0x1000), (1, CR3 + 0x2000)):
            memory.write(CR3 + level * PAGE_SIZE, (entry | PRESENT | WRITE).to_bytes(8, "little"))
        memory.write(CR3 + 2 * PAGE_SIZE, (PRESENT | WRITE | 1 << 7).to_bytes(8, "little"))
        for vcpu in self.vcpus:
            vcpu.sregs[k.KVM_SREGS_cr3 : k.KVM_SREGS_cr3 + 8] = CR3.to_bytes(8, "little")

    def ask(self, number: int, op: int, layout: str, *fields: int, vcpu: int = 0) -> int:
        """A hypercall with a struct by pointer."""
        self.machine.memory.write(ARG, struct.pack(layout, *fields))
        self.vcpus[vcpu].guest_hypercall(number, op, ARG)
        return self.vcpus[vcpu].guest_result()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    system = FakeSystem()
    monkeypatch.setattr(machine, "System", lambda: system)
    return system


@pytest.fixture
async def bench(system: FakeSystem) -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.machine.stop()
    bench.machine.close()


# -- probe


@pytest.mark.parametrize("missing", [1 << 1, 1 << 2, 1 << 4, 1 << 5])
def test_a_kvm_that_cannot_play_xen(missing: int) -> None:
    system = FakeSystem({**CAPS, k.KVM_CAP_XEN_HVM: 0x1FF & ~missing})
    with pytest.raises(
        Unsupported, match=f"{0x1FF & ~missing:#x} and 0x36 are needed. Use hardware"
    ) as caught:
        probe(system)  # type: ignore[arg-type]
    assert caught.value.data["caps"] == 0x1FF & ~missing


@pytest.mark.parametrize(
    "caps, text", [({}, "Xen capabilities 0x0"), ({k.KVM_CAP_XEN_HVM: 0x1FF}, "no immediate exit")]
)
def test_older_kvms(caps: dict[int, int], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        probe(FakeSystem(caps))  # type: ignore[arg-type]


def test_probe_returns_what_there_is() -> None:
    assert probe(FakeSystem({**CAPS, k.KVM_CAP_XEN_HVM: 0x36})) == 0x36  # type: ignore[arg-type]


# -- building


async def test_what_is_built(bench: Bench, system: FakeSystem) -> None:
    slots = {gpa: size for gpa, size, _ in bench.vm.slots.values()}
    assert slots == {
        0: RAM,
        layout.ACPI: layout.ACPI_SIZE,
        layout.SPECIAL: layout.SPECIAL_SIZE,
        layout.hole(RAM): layout.HOLE_SIZE,
    }
    memory = bench.machine.memory
    assert all(memory.address(gpa, size) == at for gpa, size, at in bench.vm.slots.values())
    first = bench.vcpus[0].regs
    assert first == {"rip": IMAGE.shim.entry, "rbx": layout.START_INFO, "rflags": 2}
    assert memory.read(layout.START_INFO, 4) == struct.pack("<I", 0x336EC578)
    assert memory.read(layout.ACPI, 8) == b"RSD PTR "
    assert [dict.fromkeys(entry[0] for entry in vcpu.cpuid).keys() >= {0x4000_0004} for vcpu in bench.vcpus]
    assert [vcpu.attrs for vcpu in bench.vcpus] == [[(6, 0)], [(6, 1)]]
    assert system.closed and bench.machine.xen_caps == 0x1FF


async def test_ram_above_4_gib_is_a_slot_of_its_own(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "LOW_RAM_MAX", 24 * MIB)
    machine = Machine(MachineConfig(RAM, 1, 1, (4, 17)), IMAGE, FakeOwner())
    slots = {gpa: size for gpa, size, _ in system.vm.slots.values()}
    assert slots[0] == 24 * MIB and slots[4 << 30] == 8 * MIB and (4 << 30) + 8 * MIB in slots
    assert machine.memory.is_ram((4 << 30) >> 12)
    machine.close()


async def test_a_build_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the nth call to KVM, n = 1, 2, 3 ... until none fails."""
    before, n = open_fds(), 0
    while True:
        n += 1
        system = FakeSystem(fail_at=n)
        monkeypatch.setattr(machine, "System", lambda system=system: system)
        try:
            built = Machine(MachineConfig(RAM, 2, 1, (4, 17)), IMAGE, FakeOwner())
        except KvmError:
            assert system.closed and system.vm.closed and open_fds() == before
            assert all(vcpu.closed for vcpu in system.vm.vcpus)
        else:
            break
    assert n > 12
    built.close()
    built.close()
    assert system.vm.closed and all(vcpu.closed for vcpu in system.vm.vcpus)


async def test_a_host_without_xen_support_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    system = FakeSystem({})
    monkeypatch.setattr(machine, "System", lambda: system)
    with pytest.raises(Unsupported):
        Machine(MachineConfig(RAM, 1, 1, (4, 17)), IMAGE, FakeOwner())
    assert system.closed


# -- hypercalls, from KVM's exit to KVM's page


async def test_the_shims_first_questions(bench: Bench) -> None:
    bench.machine.start()
    assert bench.ask(HVM, 1, "<H2xIQ", x.DOMID_SELF, 18, 0) == 0
    assert struct.unpack("<Q", bench.machine.memory.read(ARG + 8, 8)) == (bench.machine.console_port,)
    hole = layout.hole(RAM) >> 12
    assert bench.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 0, 0, hole) == 0
    assert bench.vm.shared_info == hole
    assert bench.ask(HVM, 23, "<IB3x", 0, 0xF1) == 0
    assert bench.ask(EVTCHN, 9, "<I", bench.machine.console_port) == 0
    assert bench.machine.hypercall_count == 4 and bench.machine.log_writes == 0
    assert bench.machine.exit_count >= 4


async def test_each_vcpu_sets_its_own_attributes_on_its_own_thread(bench: Bench) -> None:
    bench.machine.start()
    assert bench.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 0, 0, 20) == 0
    for vcpu in bench.vcpus:
        vcpu.guest_sees()
        assert vcpu.attrs[1:] == [(0, 20 * PAGE_SIZE + 64 * bench.vcpus.index(vcpu))]
    threads = [vcpu.threads - {threading.get_ident()} for vcpu in bench.vcpus]
    assert [len(ids) for ids in threads] == [1, 1] and threads[0] != threads[1]


@pytest.mark.parametrize("cpl, longmode, result", [(3, 1, -x.EPERM), (1, 1, -x.EPERM), (0, 0, -x.ENOSYS)])
async def test_only_the_64_bit_kernel_may_call(bench: Bench, cpl: int, longmode: int, result: int) -> None:
    bench.machine.start()
    bench.vcpus[0].guest_hypercall(SCHED, 0, cpl=cpl, longmode=longmode)
    assert bench.vcpus[0].guest_result() == result
    assert bench.machine.hypercall_count == 0


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


async def test_only_ram_and_the_hole_are_for_the_guests_pages(bench: Bench) -> None:
    bench.machine.start()
    hole = layout.hole(RAM) >> 12
    for gfn, result in (
        (20, 0),
        (hole, 0),
        (hole + layout.HOLE_SIZE // PAGE_SIZE - 1, 0),
        (hole + layout.HOLE_SIZE // PAGE_SIZE, -x.EINVAL),
        (RAM >> 12, -x.EINVAL),
        (layout.CONSOLE_PFN, -x.EINVAL),
        (layout.ACPI >> 12, -x.EINVAL),
        (0xFEE00, -x.EINVAL),
    ):
        assert bench.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 1, 0, gfn) == result


async def test_grants_are_pages_of_ram_only(bench: Bench) -> None:
    """D5: the hole, the special pages and the ACPI tables cannot be granted, nor what is not there."""
    bench.machine.start()
    assert bench.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 1, 0, 30) == 0
    frames = [20, layout.hole(RAM) >> 12, layout.CONSOLE_PFN, layout.ACPI >> 12, RAM >> 12, 2**32 - 1]
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
    bench: Bench, act: Callable[[Bench], object], reason: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeVcpu, "guest_result", lambda self: 0)  # there is no next entry
    bench.machine.start()
    act(bench)
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    (end,) = bench.owner.ends
    assert end[:2] == (reason, detail)
    assert (end[2] is not None) == ("exit" in detail), "registers come with a vCPU's crash"
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

    monkeypatch.setattr(bench.machine.hypercalls, "call", wrong)
    bench.machine.start()
    bench.vcpus[0].guest_hypercall(SCHED, 0)
    await asyncio.wait_for(bench.owner.ended.wait(), 10)
    assert bench.owner.ends == [("fault", "ZeroDivisionError: ours", None)]
    assert "a vCPU thread failed" in caplog.text


async def test_stop_is_not_an_end(bench: Bench) -> None:
    bench.machine.start()
    await asyncio.to_thread(bench.machine.stop)
    bench.machine.end("crash", "late", None)
    await asyncio.sleep(0)
    assert bench.owner.ends == []
    bench.machine.close()
    assert bench.vm.closed


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


async def test_a_backend_binds_and_lets_go(bench: Bench) -> None:
    before = open_fds()
    port = bench.machine.bind_interdomain(bench.machine.store_port)
    assert port.port == bench.machine.store_port and port.port in bench.vm.channels
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


async def test_a_backend_outlives_its_machine(bench: Bench) -> None:
    before = open_fds()
    port = bench.machine.bind_interdomain(bench.machine.console_port)
    page = bench.machine.page(layout.CONSOLE_PFN)
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
