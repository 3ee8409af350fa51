"""The machine put together, with a KVM that a test drives: built, joined by backends, paused, looked at."""

from __future__ import annotations

import asyncio
import struct
import threading

import pytest

from tests.fakes.fds import open_fds
from tests.fakes.kvm import PLAIN_CAPS, FakeSystem
from tests.vmm.bench import ARG, CONSOLE, EVTCHN, HVM, IMAGE, MEMORY, RAM, SCHED, SHARED, Bench, FakeOwner
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import KvmError, NotFound, Unsupported, XenError
from xenpvd.views import PortInfo, VcpuInfo
from xenpvd.vmm import hypercall_insn, layout
from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.elf import Segment
from xenpvd.vmm.kernel import PvhImage
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.machine import Machine, MachineConfig

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
