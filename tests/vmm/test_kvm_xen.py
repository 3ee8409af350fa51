"""Events by KVM's own Xen support: what the kernel is told, and our own half of the event-channel page."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator

import pytest

from tests.fakes.fds import open_fds
from tests.fakes.kvm import FakeVcpu, FakeVm, refuse
from xenpvd.abi import linux_kvm as k
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.abi.xen import EINVAL, SHARED_INFO_evtchn_mask, SHARED_INFO_evtchn_pending
from xenpvd.errors import KvmError, XenError
from xenpvd.vmm.kvm_xen import KvmXen
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.vcpu import VcpuThread

SHARED = 20
VCPU_INFO, UPCALL = k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, k.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR


EPOCH = 1_700_000_000 * 10**9


class Bench:
    """vCPU threads are not started: what is submitted to them waits until ``run`` is called."""

    def __init__(self, vcpus: int = 2, caps: int = 0x1FF, shim: bool = False) -> None:
        self.vm = FakeVm()
        self.vm.long_mode = True
        self.memory = GuestMemory()
        self.memory.add("ram", 0, MIB, ram=True)
        self.accel = KvmXen(self.vm, self.memory, vcpus, lambda: EPOCH, caps, shim=shim)  # type: ignore[arg-type]
        self.vcpus = [FakeVcpu() for _ in range(vcpus)]
        self.threads = [VcpuThread(n, vcpu, None) for n, vcpu in enumerate(self.vcpus)]  # type: ignore[arg-type]
        for thread in self.threads:
            self.accel.add_vcpu(thread)

    def run(self) -> list[list[tuple[int, int | bytes]]]:
        """The attributes that reach each vCPU now; the first, its id, is left out."""
        for thread in self.threads:
            thread._prepare()
        return [vcpu.attrs[1:] for vcpu in self.vcpus]

    def set_bit(self, bitmap: int, port: int) -> None:
        at = SHARED * PAGE_SIZE + bitmap + port // 8
        self.memory.write(at, bytes([self.memory.read(at, 1)[0] | 1 << port % 8]))

    def bit(self, bitmap: int, port: int) -> bool:
        return bool(self.memory.read(SHARED * PAGE_SIZE + bitmap + port // 8, 1)[0] >> port % 8 & 1)

    def close_fds(self) -> None:
        for kick_fd, irq_fd in self.accel._fds.values():
            os.close(kick_fd)
            os.close(irq_fd)
        self.accel._fds.clear()


def fds(bench: Bench, port: int) -> tuple[int, int]:
    one = bench.accel.backend_port(port, lambda: None)
    assert one.irq_fd is not None
    return one.kick_fd, one.irq_fd


def is_readable(fd: int | None) -> bool:
    assert fd is not None
    return select.select([fd], [], [], 0)[0] == [fd]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close_fds()


# -- set-up


def test_the_hypercall_msr_and_the_64_bit_layout(bench: Bench) -> None:
    bench.accel.configure()
    assert bench.vm.config == (0x4000_0000, 1 << 1 | 1 << 5)
    assert bench.vm.attrs == [(k.KVM_XEN_ATTR_TYPE_LONG_MODE, b"\1")]


def test_vcpus_get_their_id(bench: Bench) -> None:
    assert [vcpu.attrs for vcpu in bench.vcpus] == [[(6, 0)], [(6, 1)]]


# -- shared_info, vcpu_info


def test_shared_info_places_every_vcpus_info(bench: Bench) -> None:
    bench.memory.write(SHARED * PAGE_SIZE, b"\xff" * PAGE_SIZE)
    bench.accel.set_shared_info(SHARED)
    wallclock = struct.pack("<IIII", 2, EPOCH // 10**9, 0, 0)
    expected = bytes(0xC00) + wallclock + bytes(PAGE_SIZE - 0xC00 - len(wallclock))
    assert bench.memory.read(SHARED * PAGE_SIZE, PAGE_SIZE) == expected
    assert bench.vm.shared_info == SHARED
    base = SHARED * PAGE_SIZE
    assert bench.run() == [[(VCPU_INFO, base)], [(VCPU_INFO, base + 64)]]


def test_only_32_vcpus_have_a_place_in_shared_info() -> None:
    bench = Bench(vcpus=34)
    bench.accel.set_shared_info(SHARED)
    assert [len(attrs) for attrs in bench.run()] == [1] * 32 + [0, 0]


def test_a_moved_shared_info_keeps_its_bits_and_registered_vcpu_infos(bench: Bench) -> None:
    """E9: the guest places it twice."""
    bench.accel.set_shared_info(SHARED + 1)
    bench.accel.set_vcpu_info(1, 0x5460)
    bench.run()
    bench.memory.write((SHARED + 1) * PAGE_SIZE + SHARED_INFO_evtchn_pending, b"\x04")
    bench.accel.set_shared_info(SHARED)
    assert bench.bit(SHARED_INFO_evtchn_pending, 2)
    assert bench.run() == [
        [(VCPU_INFO, (SHARED + 1) * PAGE_SIZE), (VCPU_INFO, SHARED * PAGE_SIZE)],
        [(VCPU_INFO, 0x5460)],
    ]


def test_a_page_kvm_does_not_take_is_not_shared_info(bench: Bench) -> None:
    bench.vm._fail_at = 1
    with pytest.raises(KvmError):
        bench.accel.set_shared_info(SHARED)
    bench.accel.unmask(3, 0)
    assert bench.memory.read(SHARED * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert bench.run() == [[], []]


def test_upcall_vectors_go_to_their_own_vcpu(bench: Bench) -> None:
    bench.accel.set_upcall_vector(1, 0xF1)
    assert bench.run() == [[], [(UPCALL, 0xF1)]]


@pytest.mark.parametrize("pending", [False, True])
def test_a_vector_that_comes_late_is_told_of_what_waits(bench: Bench, pending: bool) -> None:
    bench.accel.set_shared_info(SHARED)
    bench.memory.write(SHARED * PAGE_SIZE + 64, bytes([pending]))  # vCPU 1's evtchn_upcall_pending
    bench.accel.set_upcall_vector(1, 0xF1)
    bench.run()
    assert bench.vm.msis == ([(1, 0xF1)] if pending else [])


def test_a_vcpu_info_that_moves_keeps_what_it_says(bench: Bench) -> None:
    bench.accel.set_shared_info(SHARED)
    bench.accel.set_upcall_vector(1, 0xF1)
    bench.run()
    bench.memory.write(SHARED * PAGE_SIZE + 64 + 8, b"\5")  # pending_sel: words 0 and 2
    bench.accel.set_vcpu_info(1, 0x5440)
    assert bench.memory.read(0x5440, 16) == b"\1".ljust(8, b"\0") + b"\5".ljust(8, b"\0")
    assert bench.vm.msis == [(1, 0xF1)]


def test_a_vcpu_info_that_an_atomic_operation_could_split(bench: Bench) -> None:
    """32-bit guests may have theirs at any multiple of 4: the one at 60 lies across two cache lines."""
    bench.accel.set_shared_info(SHARED)
    before = bench.run()
    with pytest.raises(XenError) as caught:
        bench.accel.set_vcpu_info(0, 0x5000 + 60)
    assert caught.value.errno == EINVAL and bench.run() == before


def test_a_vector_for_all_is_the_vms(bench: Bench) -> None:
    bench.accel.set_callback_vector(0xF3)
    assert bench.vm.attrs == [(k.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, b"\xf3")]


@pytest.mark.parametrize(
    "area, kind",
    [
        ("set_time_info", k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO),
        ("set_runstate_area", k.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR),
    ],
)
def test_areas_are_placed_and_taken_back(bench: Bench, area: str, kind: int) -> None:
    for gpa, value in ((0x5008, 0x5008), (None, 2**64 - 1)):
        getattr(bench.accel, area)(1, gpa)
        assert bench.run()[1][-1] == (kind, value)


def test_no_runstate_area_where_the_kernel_does_not_account() -> None:
    bench = Bench(caps=0x36)
    with pytest.raises(XenError) as caught:
        bench.accel.set_runstate_area(0, 0x5000)
    assert caught.value.errno == 38 and bench.run() == [[], []]


def test_a_hypercall_page_is_kvms_affair(bench: Bench) -> None:
    with pytest.raises(XenError):
        bench.accel.hypercall_page(0x5000, True)
    assert bench.accel.edit(b"\x0f\x01\xd9") == b"\x0f\x01\xd9" and bench.accel.hypercall_port is None


# -- 32-bit guests


@pytest.mark.parametrize("latched", [True, False])
def test_the_mask_of_a_32_bit_guest_lies_elsewhere(bench: Bench, latched: bool) -> None:
    """Also if KVM has changed the layout itself, at a write of the hypercall MSR."""
    bench.accel.set_shared_info(SHARED)
    if latched:
        bench.accel.latch_long_mode(False)
        assert bench.vm.attrs[-1] == (k.KVM_XEN_ATTR_TYPE_LONG_MODE, b"\0")
    bench.vm.long_mode = False
    bench.memory.write(SHARED * PAGE_SIZE + 0x880, b"\xff" * 8)
    bench.accel.unmask(3, 0)
    assert bench.memory.read(SHARED * PAGE_SIZE + 0x880, 1) == b"\xf7"
    assert bench.accel.is_masked(4) and not bench.accel.is_masked(3)


def test_ports_that_a_32_bit_guest_cannot_have(bench: Bench) -> None:
    """E11: it had them as a 64-bit guest, and must be able to close them."""
    bench.accel.connect(5, 0)
    bench.accel.connect(1024, 0)
    bench.accel.connect_ipi(1025, 0)
    bench.accel.latch_long_mode(False)
    with pytest.raises(XenError):
        bench.accel.connect(1026, 0)
    bench.accel.connect(6, 0)
    assert {port for port, _ in bench.vm.routes.values()} == {5, 6}
    one = bench.accel.backend_port(1024, lambda: None)
    bench.accel.disconnect(1024)
    bench.accel.disconnect(1025)
    one.close()


# -- the guest's timer


def timer(port: int, expires: int) -> tuple[int, bytes]:
    return k.KVM_XEN_VCPU_ATTR_TYPE_TIMER, k.kvm_xen_timer_attr.pack(port, 2**32 - 1, expires)


def test_the_kernel_keeps_the_timer(bench: Bench) -> None:
    bench.accel.connect_timer(7, 1)
    assert bench.run() == [[], [timer(7, 0)]]
    for deadline, expires in ((5000, 5000), (0, 1), (-5, 1), (2**70, 2**63 - 1), (None, 0)):
        bench.accel.set_timer(1, deadline)
        assert bench.run()[1][-1] == timer(7, expires)
    bench.accel.disconnect(7)
    assert bench.run()[1][-1] == timer(0, 0)
    bench.accel.set_timer(1, 9)
    assert len(bench.run()[1]) == 7


def test_a_timer_set_before_it_has_a_port(bench: Bench) -> None:
    bench.accel.set_timer(0, 5000)
    bench.accel.set_timer(1, 5000)
    bench.accel.set_timer(1, None)
    bench.accel.connect_timer(7, 0)
    bench.accel.connect_timer(8, 1)
    assert bench.run() == [[timer(7, 5000)], [timer(8, 0)]]


# -- connections


def test_connect_wires_both_ways(bench: Bench) -> None:
    bench.accel.connect(5, 1)
    kick_fd, irq_fd = fds(bench, 5)
    assert bench.vm.channels == {5: (2, 0, kick_fd, 0)}
    ((gsi, route),) = bench.vm.routes.items()
    assert gsi >= 24 and route == (5, 1)
    assert bench.vm.irqfds == {gsi: irq_fd}
    bench.accel.kick(5)
    assert os.eventfd_read(kick_fd) == 1


def test_ipis_stay_in_the_kernel(bench: Bench) -> None:
    bench.accel.connect_ipi(6, 1)
    assert bench.vm.channels == {6: (5, 6, 1, 2**32 - 1)}
    bench.accel.disconnect(6)
    assert bench.vm.channels == {} and bench.vm.routes == {}


def test_disconnect_undoes_and_numbers_are_used_again(bench: Bench) -> None:
    for port in (5, 6, 7):
        bench.accel.connect(port, 0)
    theirs = fds(bench, 6)
    gsis = {port: gsi for gsi, (port, _) in bench.vm.routes.items()}
    bench.accel.disconnect(6)
    assert bench.vm.channels.keys() == {5, 7}
    assert {port for port, _ in bench.vm.routes.values()} == {5, 7}
    assert len(bench.vm.irqfds) == 2
    bench.accel.kick(6)
    bench.accel.disconnect(6)
    bench.accel.disconnect(99)
    bench.accel.connect(8, 0)
    assert bench.vm.routes[gsis[6]] == (8, 0)
    for fd in theirs:
        os.close(fd)  # they are the BackendPort's


def test_a_connection_that_fails_leaves_nothing() -> None:
    """Fail the nth call, n = 1, 2, 3 ... until none fails."""
    before, n = open_fds(), 0
    while True:
        n += 1
        bench = Bench()
        bench.vm._fail_at = n
        try:
            bench.accel.connect(5, 0)
        except KvmError:
            assert bench.vm.channels == {} and bench.vm.irqfds == {} and bench.accel._routes == {}
            assert open_fds() == before
        else:
            break
    assert n == 4, "attribute, routes, irqfd"
    bench.close_fds()


def test_retarget_rewrites_the_route_once(bench: Bench) -> None:
    bench.accel.connect(5, 0)
    calls = len(bench.vm.calls)
    bench.accel.retarget(5, 1)
    assert list(bench.vm.routes.values()) == [(5, 1)]
    for _ in range(100):
        bench.accel.retarget(5, 1)
    assert len(bench.vm.calls) == calls + 1


# -- bits


@pytest.mark.parametrize("port", [1, 63, 64, 4095])
def test_unmask_clears_the_bit_and_delivers_what_waits(bench: Bench, port: int) -> None:
    bench.accel.set_shared_info(SHARED)
    for other in (port - 1, port):
        bench.set_bit(SHARED_INFO_evtchn_mask, other)
    bench.accel.unmask(port, 1)
    assert not bench.bit(SHARED_INFO_evtchn_mask, port) and bench.bit(SHARED_INFO_evtchn_mask, port - 1)
    assert bench.vm.sent == []
    bench.set_bit(SHARED_INFO_evtchn_pending, port)
    bench.accel.unmask(port, 1)
    assert bench.vm.sent == [(port, 1)]
    assert not bench.bit(SHARED_INFO_evtchn_pending, port), "else KVM would not raise it"


@pytest.mark.parametrize(
    "pending, masked, raised", [(1, 0, True), (1, 1, False), (0, 0, False), (0, 1, False)]
)
def test_retarget_raises_what_is_pending_and_not_masked(
    bench: Bench, pending: int, masked: int, raised: bool
) -> None:
    bench.accel.set_shared_info(SHARED)
    if pending:
        bench.set_bit(SHARED_INFO_evtchn_pending, 9)
    if masked:
        bench.set_bit(SHARED_INFO_evtchn_mask, 9)
    bench.accel.retarget(9, 1)
    assert bench.vm.sent == ([(9, 1)] if raised else [])


def test_clear_pending(bench: Bench) -> None:
    bench.accel.set_shared_info(SHARED)
    bench.set_bit(SHARED_INFO_evtchn_pending, 70)
    bench.set_bit(SHARED_INFO_evtchn_pending, 71)
    bench.accel.clear_pending(70)
    assert not bench.bit(SHARED_INFO_evtchn_pending, 70) and bench.bit(SHARED_INFO_evtchn_pending, 71)


def test_before_shared_info_nothing_is_told_and_nothing_lost(bench: Bench) -> None:
    for port in (1, 2, 3):
        bench.accel.raise_port(port, 0)
    bench.accel.unmask(1, 0)
    bench.accel.clear_pending(2)
    bench.accel.retarget(3, 1)
    assert bench.accel.is_pending(1) and not bench.accel.is_pending(2) and not bench.accel.is_masked(1)
    assert bench.vm.sent == []
    bench.accel.set_shared_info(SHARED)
    assert bench.vm.sent == [(1, 0), (3, 1)]
    bench.accel.set_shared_info(SHARED + 1)
    assert len(bench.vm.sent) == 2


def test_a_backends_event_before_shared_info_is_not_lost(bench: Bench) -> None:
    """KVM drops it: what is written to the irqfd reaches nobody then."""
    bench.accel.connect(5, 1)
    bench.accel.backend_port(5, lambda: None).notify()
    bench.accel.set_shared_info(SHARED)
    assert bench.vm.sent == [(5, 1)]
    bench.accel.backend_port(5, lambda: None).notify()
    assert bench.vm.sent == [(5, 1)], "the kernel takes it from here"


def test_a_shim_hears_nothing_before_its_guest_is_up() -> None:
    """It would look for the guest, and die: whoever raises it, and whatever is unmasked."""
    bench = Bench(shim=True)
    bench.accel.connect(5, 0)
    bench.accel.connect(6, 1)
    console, other = (bench.accel.backend_port(port, lambda: None) for port in (5, 6))
    console.notify()
    bench.accel.set_shared_info(SHARED)
    other.notify()
    bench.accel.raise_port(7, 0)
    bench.accel.retarget(6, 0)
    bench.accel.unmask(5, 0)
    assert bench.vm.sent == [] and bench.accel.is_pending(5)
    assert not is_readable(console.irq_fd) and not is_readable(other.irq_fd)
    bench.accel.guest_up()
    assert bench.vm.sent == [(5, 0), (6, 0), (7, 0)]
    console.notify()
    assert is_readable(console.irq_fd) and not bench.accel.is_pending(5), "the kernel takes it from here"
    bench.close_fds()


def test_a_guest_that_comes_up_while_an_event_is_raised_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(shim=True)
    bench.accel.connect(5, 0)
    bench.accel.set_shared_info(SHARED)
    target = bench.accel._target

    def late(port: int) -> int:
        bench.accel.guest_up()
        return target(port)

    monkeypatch.setattr(bench.accel, "_target", late)
    port = bench.accel.backend_port(5, lambda: None)
    port.notify()
    assert is_readable(port.irq_fd) and not bench.accel.is_pending(5)
    bench.close_fds()


def test_an_old_backends_event_does_not_reach_a_new_port(bench: Bench) -> None:
    bench.accel.connect(5, 0)
    old = bench.accel.backend_port(5, lambda: None)
    bench.accel.disconnect(5)
    bench.accel.clear_pending(5)
    old.notify()
    assert not bench.accel.is_pending(5)
    old.close()


def test_what_becomes_pending_while_the_page_moves_is_raised_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.accel.set_shared_info(SHARED + 1)
    bench.accel.connect_ipi(9, 1)
    bench.memory.write((SHARED + 1) * PAGE_SIZE + SHARED_INFO_evtchn_pending, b"\x04")
    attr = bench.vm.xen_set_attr

    def slow(kind: int, value: bytes) -> None:
        bench.memory.write((SHARED + 1) * PAGE_SIZE + SHARED_INFO_evtchn_pending + 1, b"\x02")  # port 9
        attr(kind, value)

    monkeypatch.setattr(bench.vm, "xen_set_attr", slow)
    bench.accel.set_shared_info(SHARED)
    assert bench.vm.sent == [(9, 1)]


def test_other_refusals_are_not_hidden(bench: Bench) -> None:
    bench.accel.set_shared_info(SHARED)
    bench.vm.send_fault = refuse("KVM_XEN_HVM_EVTCHN_SEND", 14)
    with pytest.raises(KvmError):
        bench.accel.raise_port(1, 0)
