"""The guest's hypercalls at a whole machine, from KVM's exit to its page."""

from __future__ import annotations

import asyncio
import struct
import threading

import pytest

from tests.fakes.kvm import FakeSystem, refuse
from tests.vmm.bench import ARG, EVTCHN, HVM, MEMORY, RAM, SCHED, SHARED, VCPU, Bench
from xenpvd.abi import linux_kvm as k
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import GrantError
from xenpvd.vmm import layout
from xenpvd.vmm.layout import MIB

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
