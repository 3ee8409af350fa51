"""Events by KVM: what the kernel is told, and what our own half of the event-channel page does."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.fakes.fds import open_fds
from tests.fakes.kvm import FakeVcpu, FakeVm, refuse
from xenpvd.abi import linux_kvm as k
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.abi.xen import SHARED_INFO_evtchn_mask, SHARED_INFO_evtchn_pending
from xenpvd.errors import KvmError
from xenpvd.vmm.delivery import BackendPort, KvmXenDelivery
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.vcpu import VcpuThread

SHARED = 20
VCPU_INFO, UPCALL = k.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, k.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR


class Bench:
    """vCPU threads are not started: what is submitted to them waits until ``run`` is called."""

    def __init__(self, vcpus: int = 2) -> None:
        self.vm = FakeVm()
        self.memory = GuestMemory()
        self.memory.add("ram", 0, MIB, ram=True)
        self.delivery = KvmXenDelivery(self.vm, self.memory)  # type: ignore[arg-type]
        self.vcpus = [FakeVcpu() for _ in range(vcpus)]
        self.threads = [VcpuThread(n, vcpu, None) for n, vcpu in enumerate(self.vcpus)]  # type: ignore[arg-type]
        for thread in self.threads:
            self.delivery.add_vcpu(thread)

    def run(self) -> list[list[tuple[int, int]]]:
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
        for kick_fd, irq_fd in self.delivery._fds.values():
            os.close(kick_fd)
            os.close(irq_fd)
        self.delivery._fds.clear()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close_fds()


# -- set-up


def test_the_hypercall_msr_and_the_64_bit_layout(bench: Bench) -> None:
    bench.delivery.configure()
    assert bench.vm.config == (0x4000_0000, 1 << 1 | 1 << 5)
    assert bench.vm.attrs == [(k.KVM_XEN_ATTR_TYPE_LONG_MODE, b"\1")]


def test_vcpus_get_their_id(bench: Bench) -> None:
    assert [vcpu.attrs for vcpu in bench.vcpus] == [[(6, 0)], [(6, 1)]]


# -- shared_info, vcpu_info


def test_shared_info_places_every_vcpus_info(bench: Bench) -> None:
    bench.memory.write(SHARED * PAGE_SIZE, b"\xff" * PAGE_SIZE)
    bench.delivery.set_shared_info(SHARED)
    assert bench.memory.read(SHARED * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert bench.vm.shared_info == SHARED
    base = SHARED * PAGE_SIZE
    assert bench.run() == [[(VCPU_INFO, base)], [(VCPU_INFO, base + 64)]]


def test_only_32_vcpus_have_a_place_in_shared_info() -> None:
    bench = Bench(vcpus=34)
    bench.delivery.set_shared_info(SHARED)
    assert [len(attrs) for attrs in bench.run()] == [1] * 32 + [0, 0]


def test_a_moved_shared_info_keeps_its_bits_and_registered_vcpu_infos(bench: Bench) -> None:
    """E9: the guest places it twice."""
    bench.delivery.set_shared_info(SHARED + 1)
    bench.delivery.set_vcpu_info(1, 0x5460)
    bench.run()
    bench.memory.write((SHARED + 1) * PAGE_SIZE + SHARED_INFO_evtchn_pending, b"\x04")
    bench.delivery.set_shared_info(SHARED)
    assert bench.bit(SHARED_INFO_evtchn_pending, 2)
    assert bench.run() == [
        [(VCPU_INFO, (SHARED + 1) * PAGE_SIZE), (VCPU_INFO, SHARED * PAGE_SIZE)],
        [(VCPU_INFO, 0x5460)],
    ]


def test_a_page_kvm_does_not_take_is_not_shared_info(bench: Bench) -> None:
    bench.vm._fail_at = 1
    with pytest.raises(KvmError):
        bench.delivery.set_shared_info(SHARED)
    bench.delivery.unmask(3, 0)
    assert bench.memory.read(SHARED * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert bench.run() == [[], []]


def test_upcall_vectors_go_to_their_own_vcpu(bench: Bench) -> None:
    bench.delivery.set_upcall_vector(1, 0xF1)
    assert bench.run() == [[], [(UPCALL, 0xF1)]]


# -- connections


def test_connect_wires_both_ways(bench: Bench) -> None:
    bench.delivery.connect(5, 1)
    kick_fd, irq_fd = bench.delivery.fds(5)
    assert bench.vm.channels == {5: (2, 0, kick_fd, 0)}
    ((gsi, route),) = bench.vm.routes.items()
    assert gsi >= 24 and route == (5, 1)
    assert bench.vm.irqfds == {gsi: irq_fd}
    bench.delivery.kick(5)
    assert os.eventfd_read(kick_fd) == 1


def test_ipis_stay_in_the_kernel(bench: Bench) -> None:
    bench.delivery.connect_ipi(6, 1)
    assert bench.vm.channels == {6: (5, 6, 1, 2**32 - 1)}
    bench.delivery.disconnect(6)
    assert bench.vm.channels == {} and bench.vm.routes == {}


def test_disconnect_undoes_and_numbers_are_used_again(bench: Bench) -> None:
    for port in (5, 6, 7):
        bench.delivery.connect(port, 0)
    fds = bench.delivery.fds(6)
    gsis = {port: gsi for gsi, (port, _) in bench.vm.routes.items()}
    bench.delivery.disconnect(6)
    assert bench.vm.channels.keys() == {5, 7}
    assert {port for port, _ in bench.vm.routes.values()} == {5, 7}
    assert len(bench.vm.irqfds) == 2
    bench.delivery.kick(6)
    bench.delivery.disconnect(6)
    bench.delivery.disconnect(99)
    bench.delivery.connect(8, 0)
    assert bench.vm.routes[gsis[6]] == (8, 0)
    for fd in fds:
        os.close(fd)  # they are the BackendPort's


def test_a_connection_that_fails_leaves_nothing() -> None:
    """Fail the nth call, n = 1, 2, 3 ... until none fails."""
    before, n = open_fds(), 0
    while True:
        n += 1
        bench = Bench()
        bench.vm._fail_at = n
        try:
            bench.delivery.connect(5, 0)
        except KvmError:
            assert bench.vm.channels == {} and bench.vm.irqfds == {} and bench.delivery._routes == {}
            assert open_fds() == before
        else:
            break
    assert n == 4, "attribute, routes, irqfd"
    bench.close_fds()


def test_retarget_rewrites_the_route_once(bench: Bench) -> None:
    bench.delivery.connect(5, 0)
    calls = len(bench.vm.calls)
    bench.delivery.retarget(5, 1)
    assert list(bench.vm.routes.values()) == [(5, 1)]
    for _ in range(100):
        bench.delivery.retarget(5, 1)
    assert len(bench.vm.calls) == calls + 1


# -- bits


@pytest.mark.parametrize("port", [1, 63, 64, 4095])
def test_unmask_clears_the_bit_and_delivers_what_waits(bench: Bench, port: int) -> None:
    bench.delivery.set_shared_info(SHARED)
    for other in (port - 1, port):
        bench.set_bit(SHARED_INFO_evtchn_mask, other)
    bench.delivery.unmask(port, 1)
    assert not bench.bit(SHARED_INFO_evtchn_mask, port) and bench.bit(SHARED_INFO_evtchn_mask, port - 1)
    assert bench.vm.sent == []
    bench.set_bit(SHARED_INFO_evtchn_pending, port)
    bench.delivery.unmask(port, 1)
    assert bench.vm.sent == [(port, 1)]
    assert not bench.bit(SHARED_INFO_evtchn_pending, port), "else KVM would not raise it"


@pytest.mark.parametrize(
    "pending, masked, raised", [(1, 0, True), (1, 1, False), (0, 0, False), (0, 1, False)]
)
def test_retarget_raises_what_is_pending_and_not_masked(
    bench: Bench, pending: int, masked: int, raised: bool
) -> None:
    bench.delivery.set_shared_info(SHARED)
    if pending:
        bench.set_bit(SHARED_INFO_evtchn_pending, 9)
    if masked:
        bench.set_bit(SHARED_INFO_evtchn_mask, 9)
    bench.delivery.retarget(9, 1)
    assert bench.vm.sent == ([(9, 1)] if raised else [])


def test_clear_pending(bench: Bench) -> None:
    bench.delivery.set_shared_info(SHARED)
    bench.set_bit(SHARED_INFO_evtchn_pending, 70)
    bench.set_bit(SHARED_INFO_evtchn_pending, 71)
    bench.delivery.clear_pending(70)
    assert not bench.bit(SHARED_INFO_evtchn_pending, 70) and bench.bit(SHARED_INFO_evtchn_pending, 71)


def test_before_shared_info_there_is_nobody_to_tell(bench: Bench) -> None:
    bench.delivery.raise_port(1, 0)
    bench.delivery.unmask(1, 0)
    bench.delivery.clear_pending(1)
    bench.delivery.retarget(1, 1)
    assert bench.vm.sent == []


def test_other_refusals_are_not_hidden(bench: Bench) -> None:
    bench.vm.send_fault = refuse("KVM_XEN_HVM_EVTCHN_SEND", 14)
    with pytest.raises(KvmError):
        bench.delivery.raise_port(1, 0)


# -- the backend's end


def port() -> tuple[BackendPort, list[int]]:
    closed: list[int] = []
    kick_fd, irq_fd = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
    return BackendPort(5, kick_fd, irq_fd, lambda: closed.append(5)), closed


def test_a_backend_port() -> None:
    one, closed = port()
    for _ in range(3):
        one.notify()
    assert os.eventfd_read(one.irq_fd) == 3
    before = open_fds()
    one.close()
    one.close()
    assert closed == [5] and len(open_fds()) == len(before) - 2
    one.notify()


def test_notify_does_not_block_when_nobody_reads() -> None:
    one, _ = port()
    os.eventfd_write(one.irq_fd, 2**64 - 2)
    one.notify()
    one.close()


def test_a_port_is_not_closed_while_it_is_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk's thread notifies while the loop closes the port: the write must not meet a number that has
    been given to another file since."""
    one, _ = port()
    closer = threading.Thread(target=one.close)
    write, met = os.eventfd_write, list[bool]()

    def slow_write(fd: int, value: int) -> None:
        closer.start()
        closer.join(0.05)
        met.append(closer.is_alive())
        write(fd, value)

    monkeypatch.setattr(os, "eventfd_write", slow_write)
    one.notify()
    closer.join()
    one.notify()
    assert met == [True]
