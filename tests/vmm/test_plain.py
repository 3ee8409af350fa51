"""Xen on a KVM that knows nothing of it: bits, upcalls and clock by our own hand."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.fakes.fds import open_fds
from tests.fakes.kvm import FakeVcpu, FakeVm
from xenpvd.abi import linux_kvm as k
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import XenError
from xenpvd.vmm import atomic, hypercall_insn
from xenpvd.vmm.clock import Clock
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.plain import Plain
from xenpvd.vmm.timers import Timers
from xenpvd.vmm.vcpu import VcpuThread

SHARED = 20
AT = SHARED * PAGE_SIZE
PENDING, MASK = AT + 0x800, AT + 0xA00


class Bench:
    """vCPU threads are not started: what is submitted to them waits until ``run`` is called."""

    def __init__(self, vcpus: int = 2, msr_exits: bool = True, shim: bool = False) -> None:
        self.vm = FakeVm()
        self.memory = GuestMemory()
        self.memory.add("ram", 0, MIB, ram=True)
        self.lock = threading.RLock()
        self.faults: list[BaseException] = []
        self.timers = Timers(lambda: self.vm.now, self.lock, self.faults.append)
        epoch = Clock(self.vm, whole_seconds=False).epoch  # type: ignore[arg-type]
        self.accel = Plain(  # type: ignore[arg-type]
            self.vm, self.memory, vcpus, self.timers, epoch, msr_exits=msr_exits, shim=shim
        )
        self.vcpus = [FakeVcpu() for _ in range(vcpus)]
        self.threads = [VcpuThread(n, vcpu, None) for n, vcpu in enumerate(self.vcpus)]  # type: ignore[arg-type]
        for thread in self.threads:
            self.accel.add_vcpu(thread)

    def run(self) -> None:
        for thread in self.threads:
            thread._prepare()

    def ready(self) -> None:
        """As the shim: shared_info, a vcpu_info and a vector for each vCPU."""
        self.accel.set_shared_info(SHARED)
        for n in range(len(self.vcpus)):
            self.accel.set_vcpu_info(n, 0x3460 + 64 * n)
            self.accel.set_upcall_vector(n, 0xF0 + n)
        self.run()

    def set_bit(self, bitmap: int, port: int, value: bool = True) -> None:
        at, bit = bitmap + port // 8, 1 << port % 8
        byte = self.memory.read(at, 1)[0]
        self.memory.write(at, bytes([byte | bit if value else byte & ~bit]))

    def bit(self, bitmap: int, port: int) -> bool:
        return bool(self.memory.read(bitmap + port // 8, 1)[0] >> port % 8 & 1)

    def sel(self, vcpu: int) -> tuple[int, int]:
        """(evtchn_upcall_pending, evtchn_pending_sel), and both are cleared, as a handler does."""
        found = struct.unpack("<B7xQ", self.memory.read(0x3460 + 64 * vcpu, 16))
        self.memory.write(0x3460 + 64 * vcpu, bytes(16))
        return found


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.timers.stop()
    bench.timers.join()
    assert bench.faults == []


# -- set-up


def test_the_hypercall_msr_is_caught_where_that_can_be(bench: Bench) -> None:
    bench.accel.configure()
    assert bench.vm.filtered_msr == 0x4000_0000
    old = Bench(msr_exits=False)
    old.accel.configure()
    assert old.vm.filtered_msr is None


def test_the_hypercall_page(bench: Bench) -> None:
    bench.accel.hypercall_page(0x5000, True)
    assert bench.memory.read(0x5000, PAGE_SIZE) == hypercall_insn.page()
    for gpa in (0x5001, MIB, 2**60):
        with pytest.raises(XenError):
            bench.accel.hypercall_page(gpa, True)


def test_a_shims_code_is_edited(bench: Bench) -> None:
    assert bench.accel.edit(b"\x0f\x01\xd9\xc3\x0f\x01\xc1") == b"\xe6\xe4\x90\xc3\xe6\xe4\x90"
    assert bench.accel.hypercall_port == 0xE4


# -- time


def test_each_vcpu_has_its_clock_where_its_info_is(bench: Bench) -> None:
    """KVM's pvclock is set by the vCPU's own MSR, on its thread."""
    bench.accel.set_shared_info(SHARED)
    assert [vcpu.msrs for vcpu in bench.vcpus] == [[], []]
    bench.run()
    time = k.MSR_KVM_SYSTEM_TIME_NEW
    assert [vcpu.msrs for vcpu in bench.vcpus] == [[(time, AT + 32 | 1)], [(time, AT + 96 | 1)]]
    bench.accel.set_vcpu_info(1, 0x3460)
    bench.run()
    assert bench.vcpus[1].msrs[-1] == (time, 0x3480 | 1)


@pytest.mark.parametrize("longmode", [True, False])
def test_the_guest_knows_what_time_it_is(bench: Bench, longmode: bool) -> None:
    bench.accel.latch_long_mode(longmode)
    bench.accel.set_shared_info(SHARED)
    at = AT + (0xC00 if longmode else 0x900)
    assert struct.unpack("<III", bench.memory.read(at, 12)) == (2, 1_699_999_999, 0)
    bench.accel.latch_long_mode(not longmode)
    at = AT + (0x900 if longmode else 0xC00)
    assert struct.unpack("<III", bench.memory.read(at, 12)) == (2, 1_699_999_999, 0)


def test_a_kernel_that_does_not_tell_the_real_time(bench: Bench) -> None:
    bench.vm.realtime = None
    bench.accel.set_shared_info(SHARED)
    assert struct.unpack("<I", bench.memory.read(AT + 0xC04, 4))[0] > 1_700_000_000


def test_areas_are_not_offered(bench: Bench) -> None:
    for area in (bench.accel.set_time_info, bench.accel.set_runstate_area):
        with pytest.raises(XenError) as caught:
            area(0, 0x5000)
        assert caught.value.errno == 38


# -- raising


@pytest.mark.parametrize("port", [1, 63, 64, 4095])
def test_raising_sets_the_three_bits_and_interrupts(bench: Bench, port: int) -> None:
    bench.ready()
    bench.accel.raise_port(port, 1)
    assert bench.bit(PENDING, port) and bench.accel.is_pending(port)
    assert bench.sel(1) == (1, 1 << port // 64) and bench.sel(0) == (0, 0)
    assert bench.vm.msis == [(1, 0xF1)]
    bench.accel.raise_port(port, 1)
    assert bench.sel(1) == (0, 0) and len(bench.vm.msis) == 1, "it is pending already"


def test_a_masked_port_waits(bench: Bench) -> None:
    bench.ready()
    bench.set_bit(MASK, 9)
    bench.accel.raise_port(9, 0)
    assert bench.bit(PENDING, 9) and bench.accel.is_masked(9)
    assert bench.sel(0) == (0, 0) and bench.vm.msis == []
    bench.accel.unmask(9, 0)
    assert not bench.bit(MASK, 9) and bench.sel(0) == (1, 1) and bench.vm.msis == [(0, 0xF0)]
    bench.accel.unmask(10, 0)
    assert bench.sel(0) == (0, 0)


def test_an_upcall_that_the_lapic_missed_is_made_good_by_the_next(bench: Bench) -> None:
    """The word is marked already, and still the vCPU is interrupted: its LAPIC was off the first time."""
    bench.ready()
    bench.vm.lapic_off.add(0)
    bench.accel.raise_port(1, 0)
    bench.vm.lapic_off.clear()
    bench.accel.raise_port(2, 0)
    assert bench.vm.msis == [(0, 0xF0), (0, 0xF0)]


@pytest.mark.parametrize(
    "pending, masked, moved", [(1, 0, True), (1, 1, False), (0, 0, False), (0, 1, False)]
)
def test_retarget(bench: Bench, pending: int, masked: int, moved: bool) -> None:
    bench.ready()
    bench.accel.connect_ipi(9, 0)
    bench.set_bit(PENDING, 9, bool(pending))
    bench.set_bit(MASK, 9, bool(masked))
    bench.accel.retarget(9, 1)
    assert bench.sel(1) == ((1, 1) if moved else (0, 0))


def test_before_shared_info_nothing_is_lost(bench: Bench) -> None:
    for port in (1, 2, 3):
        bench.accel.raise_port(port, 0)
    bench.accel.unmask(1, 0)
    bench.accel.clear_pending(2)
    bench.accel.retarget(3, 1)
    assert bench.accel.is_pending(1) and not bench.accel.is_pending(2) and bench.vm.msis == []
    bench.ready()
    assert [bench.bit(PENDING, port) for port in (1, 2, 3)] == [True, False, True]
    assert bench.sel(0) == (1, 1) and bench.sel(1) == (1, 1)
    assert set(bench.vm.msis) == {(0, 0xF0), (1, 0xF1)}


def test_a_shim_hears_nothing_before_its_guest_is_up() -> None:
    """It would look for the guest, and die: whoever raises it, and whatever is unmasked."""
    bench = Bench(shim=True)
    bench.accel.connect(5, 1)
    console = bench.accel.backend_port(5, lambda: None)
    console.notify()
    bench.ready()
    console.notify()
    bench.accel.raise_port(7, 0)
    bench.accel.unmask(5, 1)
    assert bench.vm.msis == [] and bench.accel.is_pending(5) and not bench.bit(PENDING, 5)
    bench.accel.guest_up()
    assert bench.bit(PENDING, 5) and bench.bit(PENDING, 7)
    assert bench.sel(0) == bench.sel(1) == (1, 1)
    assert bench.vm.msis == [(1, 0xF1), (0, 0xF0)]
    bench.accel.disconnect(5)
    console.close()


def test_before_a_vcpu_has_its_info_nothing_is_lost() -> None:
    bench = Bench(vcpus=34)
    bench.accel.set_shared_info(SHARED)
    bench.accel.raise_port(70, 33)
    bench.accel.raise_port(71, 33)
    bench.accel.clear_pending(71)
    bench.accel.set_upcall_vector(33, 0xF1)
    assert bench.vm.msis == []
    bench.accel.set_vcpu_info(33, 0x3460)
    assert bench.sel(0) == (1, 2) and bench.vm.msis == [(33, 0xF1)]


def test_a_vcpu_info_that_would_have_atomics_cross_a_line_is_refused(bench: Bench) -> None:
    for gpa in (0x3461, 0x3464):
        with pytest.raises(XenError) as caught:
            bench.accel.set_vcpu_info(0, gpa)
        assert caught.value.errno == 22
    bench.accel.set_vcpu_info(0, 0x3468)


def test_a_vector_for_all_goes_past_the_lapic(bench: Bench) -> None:
    bench.accel.set_shared_info(SHARED)
    bench.accel.raise_port(1, 1)
    bench.run()
    bench.accel.set_callback_vector(0xF3)
    bench.run()
    assert [vcpu.interrupts for vcpu in bench.vcpus] == [[], [0xF3]] and bench.vm.msis == []
    bench.accel.raise_port(2, 1)
    bench.memory.write(AT + 64, bytes(16))  # the vCPU has seen it in the meantime
    bench.run()
    assert bench.vcpus[1].interrupts == [0xF3]
    bench.accel.set_callback_vector(0)
    bench.accel.raise_port(3, 1)
    bench.run()
    assert bench.vcpus[1].interrupts == [0xF3]


def test_32_bit_guests(bench: Bench) -> None:
    bench.accel.hypercall_page(0x5000, False)
    bench.accel.set_shared_info(SHARED)
    bench.accel.connect_ipi(40, 0)
    bench.accel.raise_port(40, 0)
    assert bench.memory.read(AT, 12) == struct.pack("<BB2xII", 1, 0, 1 << 1, 0)
    with pytest.raises(XenError):
        bench.accel.connect_ipi(1024, 0)
    before = open_fds()
    with pytest.raises(XenError):
        bench.accel.connect(1024, 0)
    assert open_fds() == before
    bench.accel.raise_port(1024, 0)
    assert bench.memory.read(AT + 0x880, 128) == bytes(128), "that is where the mask is"


# -- backends, IPIs, timers


def test_a_backend_hears_and_raises(bench: Bench) -> None:
    bench.ready()
    before = open_fds()
    bench.accel.connect(5, 1)
    closed: list[int] = []
    one = bench.accel.backend_port(5, lambda: closed.append(5))
    bench.accel.kick(5)
    bench.accel.kick(6)
    assert os.eventfd_read(one.kick_fd) == 1 and one.irq_fd is None
    one.notify()
    assert bench.sel(1) == (1, 1) and bench.vm.msis == [(1, 0xF1)]
    bench.accel.retarget(5, 0)
    bench.accel.clear_pending(5)
    bench.vm.msis.clear()
    one.notify()
    assert bench.vm.msis == [(0, 0xF0)]
    bench.accel.disconnect(5)
    bench.accel.kick(5)
    one.close()
    assert closed == [5] and open_fds() == before


def test_an_old_backend_does_not_raise_a_new_port(bench: Bench) -> None:
    bench.ready()
    bench.accel.connect(5, 0)
    old = bench.accel.backend_port(5, lambda: None)
    bench.accel.disconnect(5)
    bench.accel.connect(5, 0)
    new = bench.accel.backend_port(5, lambda: None)
    old.notify()
    assert not bench.accel.is_pending(5)
    new.notify()
    assert bench.accel.is_pending(5)
    old.close()
    new.close()


def test_a_backend_raises_while_somebody_holds_the_machine(bench: Bench) -> None:
    """Deadlock freedom: a hypercall may wait for a port's lock, so a port must not wait for hypercalls."""
    bench.ready()
    bench.accel.connect(5, 0)
    one = bench.accel.backend_port(5, lambda: None)
    with bench.lock:
        thread = threading.Thread(target=one.notify)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert bench.accel.is_pending(5)
    one.close()


def test_no_event_is_lost_between_two_raisers(bench: Bench) -> None:
    """Two threads raise ports of one word while a guest takes them as Linux does: sel, then the word."""
    bench.ready()
    go = threading.Barrier(3)
    taken = 0

    def raiser(ports: range) -> None:
        go.wait()
        for _ in range(100):
            for port in ports:
                bench.accel.raise_port(port, 0)

    def take() -> int:
        count = 0
        bench.memory.write(0x3460, b"\0")
        if atomic.clear_bit64(bench.memory.address(0x3468, 8), 0):
            for port in range(1, 33):
                count += atomic.clear_bit64(bench.memory.address(PENDING, 8), port)
        return count

    threads = [threading.Thread(target=raiser, args=(ports,)) for ports in (range(1, 17), range(17, 33))]
    for thread in threads:
        thread.start()
    go.wait()
    while any(thread.is_alive() for thread in threads):
        taken += take()
    taken += take()
    assert taken >= 32 and bench.memory.read(PENDING, 8) == bytes(8), "nothing is left behind"


def test_the_vcpus_timer(bench: Bench) -> None:
    bench.ready()
    bench.accel.connect_timer(7, 1)
    raised = threading.Event()
    bench.vm.signal_msi = lambda *args: raised.set() or True  # type: ignore[method-assign,func-returns-value]
    with bench.lock:
        bench.accel.set_timer(1, 0)
    assert raised.wait(10) and bench.accel.is_pending(7)
    with bench.lock:
        bench.accel.set_timer(1, bench.vm.now + 10**15)
        bench.accel.set_timer(1, None)
    assert bench.timers._timers == {}


def test_a_timer_without_its_port_raises_nothing(bench: Bench) -> None:
    bench.ready()
    bench.accel.connect_timer(7, 1)
    bench.accel.disconnect(7)
    bench.accel._timer_virq(1)
    assert not bench.accel.is_pending(7) and bench.vm.msis == []
