"""Event channels: rows of what Xen answers (test_evtchn_model.py: random operations)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fakes.delivery import FakeDelivery
from xenpvd.abi.event_channel import (
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenpvd.abi.xen import DOMID_SELF, EEXIST, EINVAL, ENOENT, ENOSPC, EPERM, ESRCH, VIRQ_TIMER
from xenpvd.errors import KvmError, XenError
from xenpvd.vmm.xen.evtchn import IPIS_MAX, EventChannels

DOMID, VCPUS = 1, 2
PORTS = 4095
ABSURD_PORTS = (0, 4096, 4097, 2**31, 2**32 - 1)


class Bench:
    def __init__(self) -> None:
        self.delivery = FakeDelivery()
        self.changes = 0
        self.evtchn = EventChannels(DOMID, VCPUS, self.delivery, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def told(self, act: Callable[[], object]) -> list[tuple[object, ...]]:
        """What the delivery hears of ``act``."""
        self.delivery.calls.clear()
        act()
        return self.delivery.calls


@pytest.fixture
def bench() -> Bench:
    return Bench()


def errno_of(act: Callable[[], object]) -> int:
    with pytest.raises(XenError) as caught:
        act()
    return caught.value.errno


# -- allocation


def test_the_lowest_free_port_is_taken(bench: Bench) -> None:
    table = bench.evtchn
    assert [table.alloc_unbound(DOMID_SELF, 0) for _ in range(3)] == [1, 2, 3]
    table.close(2)
    table.close(1)
    assert table.bind_ipi(0) == 1
    assert table.alloc_unbound(DOMID, DOMID_SELF) == 2


def test_the_table_fills_and_empties(bench: Bench) -> None:
    """E4: until the end, then close all, again and again: ENOSPC at the limit, and no leak."""
    table = bench.evtchn
    for _ in range(3):
        assert [table.alloc_unbound(DOMID_SELF, 0) for _ in range(PORTS)] == list(range(1, PORTS + 1))
        for port in range(1, PORTS + 1):
            table.bind_backend(port)
        for act in (lambda: table.bind_ipi(0), lambda: table.alloc_unbound(DOMID_SELF, 0)):
            assert errno_of(act) == ENOSPC
        assert len(bench.delivery.connected) == PORTS
        table.reset(DOMID_SELF)
        assert bench.delivery.connected == {}


def test_a_full_table_leaves_a_loop_backs_other_end_alone(bench: Bench) -> None:
    table = bench.evtchn
    for _ in range(PORTS):
        table.alloc_unbound(DOMID_SELF, DOMID_SELF)
    assert errno_of(lambda: table.bind_interdomain(DOMID_SELF, 7)) == ENOSPC
    assert table.status(DOMID_SELF, 7)[0] == EVTCHNSTAT_unbound


def test_an_ipi_that_kvm_refuses_is_not_allocated(bench: Bench) -> None:
    bench.delivery.fault = KvmError("no", "KVM_XEN_HVM_SET_ATTR", 12)
    with pytest.raises(KvmError):
        bench.evtchn.bind_ipi(0)
    bench.delivery.fault = None
    assert bench.evtchn.bind_ipi(0) == 1


def test_a_vcpu_has_few_ipis(bench: Bench) -> None:
    """KVM takes milliseconds to forget one, and a reset closes all."""
    for _ in range(2):
        ports = [bench.evtchn.bind_ipi(1) for _ in range(IPIS_MAX)]
        assert errno_of(lambda: bench.evtchn.bind_ipi(1)) == ENOSPC
        assert bench.evtchn.bind_ipi(0) not in ports
        bench.evtchn.close(ports[3])
        assert bench.evtchn.bind_ipi(1) == ports[3]
        bench.evtchn.reset(DOMID_SELF)


def test_a_loop_back_that_kvm_refuses_is_not_linked(bench: Bench) -> None:
    remote = bench.evtchn.alloc_unbound(DOMID_SELF, DOMID_SELF)
    bench.delivery.fault = KvmError("no", "KVM_XEN_HVM_EVTCHN_SEND", 22)
    with pytest.raises(KvmError):
        bench.evtchn.bind_interdomain(DOMID_SELF, remote)
    assert [(port, one.state) for port, one in bench.evtchn.listing()] == [(remote, EVTCHNSTAT_unbound)]
    bench.delivery.fault = None
    assert bench.evtchn.bind_interdomain(DOMID_SELF, remote) == remote + 1


# -- rows: what is refused


@pytest.mark.parametrize("port", [*ABSURD_PORTS, 17])
def test_operations_on_ports_that_are_not_there(bench: Bench, port: int) -> None:
    """E1, E5."""
    table = bench.evtchn
    for act in (
        lambda: table.send(port),
        lambda: table.close(port),
        lambda: table.bind_vcpu(port, 0),
        lambda: table.bind_interdomain(DOMID_SELF, port),
        lambda: table.bind_backend(port),
        lambda: table.inject(port),
    ):
        assert errno_of(act) == EINVAL
    table.unbind_backend(port, 1)
    assert bench.delivery.calls == []


@pytest.mark.parametrize("port", ABSURD_PORTS)
def test_status_and_unmask_take_any_port_number_that_can_be(bench: Bench, port: int) -> None:
    assert errno_of(lambda: bench.evtchn.status(DOMID_SELF, port)) == EINVAL
    assert errno_of(lambda: bench.evtchn.unmask(port)) == EINVAL
    assert errno_of(lambda: bench.evtchn.is_pending(port)) == EINVAL
    assert not bench.evtchn.is_bound(port)
    assert bench.evtchn.status(DOMID_SELF, 4095) == (EVTCHNSTAT_closed, 0, 0, 0)
    assert bench.told(lambda: bench.evtchn.unmask(4095)) == [("unmask", 4095, 0)]


@pytest.mark.parametrize("dom, errno", [(0, EPERM), (2, ESRCH), (0x7FF1, ESRCH), (0xFFFF, ESRCH)])
def test_only_the_own_domain_is_served(bench: Bench, dom: int, errno: int) -> None:
    table = bench.evtchn
    port = table.alloc_unbound(DOMID_SELF, DOMID_SELF)
    assert errno_of(lambda: table.alloc_unbound(dom, 0)) == errno
    assert errno_of(lambda: table.status(dom, port)) == errno
    assert errno_of(lambda: table.reset(dom)) == errno
    assert errno_of(lambda: table.bind_interdomain(dom, port)) == (EINVAL if dom == 0 else ESRCH)


@pytest.mark.parametrize("vcpu", [VCPUS, 32, 2**32 - 1])
def test_there_is_no_such_vcpu(bench: Bench, vcpu: int) -> None:
    port = bench.evtchn.alloc_unbound(DOMID_SELF, 0)
    assert errno_of(lambda: bench.evtchn.bind_ipi(vcpu)) == ENOENT
    assert errno_of(lambda: bench.evtchn.bind_virq(VIRQ_TIMER, vcpu)) == ENOENT
    assert errno_of(lambda: bench.evtchn.bind_vcpu(port, vcpu)) == ENOENT


def test_an_ipi_stays_on_its_vcpu(bench: Bench) -> None:
    port = bench.evtchn.bind_ipi(1)
    assert errno_of(lambda: bench.evtchn.bind_vcpu(port, 0)) == EINVAL
    assert bench.evtchn.status(DOMID_SELF, port) == (EVTCHNSTAT_ipi, 1, 0, 0)


def test_a_port_left_for_another_domain_is_not_domain_0s(bench: Bench) -> None:
    own = bench.evtchn.alloc_unbound(DOMID_SELF, DOMID_SELF)
    assert errno_of(lambda: bench.evtchn.bind_backend(own)) == EINVAL
    for_dom0 = bench.evtchn.alloc_unbound(DOMID_SELF, 0)
    assert errno_of(lambda: bench.evtchn.bind_interdomain(DOMID_SELF, for_dom0)) == EINVAL


# -- VIRQs


def test_a_timer_virq_is_connected_and_others_only_exist(bench: Bench) -> None:
    table = bench.evtchn
    assert bench.told(lambda: table.bind_virq(VIRQ_TIMER, 1)) == [("connect_timer", 1, 1)]
    assert bench.told(lambda: table.bind_virq(1, 1)) == []
    assert table.status(DOMID_SELF, 1) == (EVTCHNSTAT_virq, 1, VIRQ_TIMER, 0)
    assert table.status(DOMID_SELF, 2) == (EVTCHNSTAT_virq, 1, 1, 0)
    assert bench.told(lambda: table.raise_virq(VIRQ_TIMER, 1)) == [("raise", 1, 1)]
    assert bench.told(lambda: table.raise_virq(VIRQ_TIMER, 0)) == []
    assert errno_of(lambda: table.send(1)) == EINVAL, "only Xen sends it"
    assert errno_of(lambda: table.bind_vcpu(1, 0)) == EINVAL, "it is that vCPU's"
    assert errno_of(lambda: table.bind_virq(VIRQ_TIMER, 1)) == EEXIST
    assert table.bind_virq(VIRQ_TIMER, 0) == 3
    table.close(1)
    assert bench.delivery.connected == {3: 0}
    assert bench.told(lambda: table.raise_virq(VIRQ_TIMER, 1)) == []
    assert table.bind_virq(VIRQ_TIMER, 1) == 1


@pytest.mark.parametrize("virq, vcpu", [(24, 0), (2**32 - 1, 0), (2, 1), (16, 1), (24, VCPUS)])
def test_there_is_no_such_virq(bench: Bench, virq: int, vcpu: int) -> None:
    assert errno_of(lambda: bench.evtchn.bind_virq(virq, vcpu)) == EINVAL
    assert bench.evtchn.listing() == []


def test_a_virq_of_the_whole_domain_may_move_and_is_bound_once(bench: Bench) -> None:
    table = bench.evtchn
    port = table.bind_virq(16, 0)
    table.bind_vcpu(port, 1)
    assert errno_of(lambda: table.bind_virq(16, 0)) == EEXIST
    table.close(port)
    assert table.bind_virq(16, 0) == port


def test_a_timer_that_kvm_refuses_is_not_allocated(bench: Bench) -> None:
    bench.delivery.fault = KvmError("no", "KVM_XEN_VCPU_SET_ATTR", 12)
    with pytest.raises(KvmError):
        bench.evtchn.bind_virq(VIRQ_TIMER, 0)
    bench.delivery.fault = None
    assert bench.evtchn.bind_virq(VIRQ_TIMER, 0) == 1


# -- a 32-bit guest


def test_a_32_bit_guest_has_1024_ports(bench: Bench) -> None:
    table = bench.evtchn
    for _ in range(1030):
        table.bind_backend(table.alloc_unbound(DOMID_SELF, 0))
    table.limit = 1024
    for act in (lambda: table.status(DOMID, 1024), lambda: table.unmask(1029), lambda: table.send(1024)):
        assert errno_of(act) == EINVAL
    assert errno_of(lambda: table.bind_ipi(0)) == ENOSPC
    table.close(1023)
    assert table.bind_ipi(0) == 1023
    table.reset(DOMID_SELF)
    assert table.listing() == [] and bench.delivery.connected == {}
    assert [table.alloc_unbound(DOMID_SELF, 0) for _ in range(1023)] == list(range(1, 1024))
    assert errno_of(lambda: table.bind_virq(VIRQ_TIMER, 0)) == ENOSPC


# -- what travels


def test_sends(bench: Bench) -> None:
    table = bench.evtchn
    unbound, ipi = table.alloc_unbound(DOMID_SELF, 0), table.bind_ipi(1)
    assert bench.told(lambda: table.send(unbound)) == []
    assert bench.told(lambda: table.send(ipi)) == [("raise", ipi, 1)]
    table.bind_backend(unbound)
    assert bench.told(lambda: table.send(unbound)) == [("kick", unbound)]


def test_a_loop_back(bench: Bench) -> None:
    table = bench.evtchn
    first = table.alloc_unbound(DOMID_SELF, DOMID_SELF)
    second = first + 1
    # what was sent before the other end was there is not lost
    assert bench.told(lambda: table.bind_interdomain(DOMID_SELF, first)) == [("raise", second, 0)]
    table.bind_vcpu(first, 1)
    assert bench.told(lambda: table.send(second)) == [("raise", first, 1)]
    assert bench.told(lambda: table.send(first)) == [("raise", second, 0)]
    assert table.status(DOMID, first) == (EVTCHNSTAT_interdomain, 1, DOMID, second)
    assert errno_of(lambda: table.bind_interdomain(DOMID_SELF, first)) == EINVAL
    table.close(second)
    assert table.status(DOMID, first) == (EVTCHNSTAT_unbound, 1, DOMID, 0)
    assert bench.told(lambda: table.send(first)) == []
    assert table.bind_interdomain(DOMID_SELF, first) == second


def test_an_injected_event_is_the_vcpus(bench: Bench) -> None:
    port = bench.evtchn.alloc_unbound(DOMID_SELF, 0)
    bench.evtchn.bind_vcpu(port, 1)
    assert bench.told(lambda: bench.evtchn.inject(port)) == [("raise", port, 1)]
    assert bench.evtchn.is_pending(port) and bench.evtchn.is_bound(port)


def test_vcpus_are_online_while_they_have_an_ipi(bench: Bench) -> None:
    table = bench.evtchn
    assert table.online() == frozenset()
    first, other = table.bind_ipi(0), table.bind_ipi(1)
    assert table.online() == {0, 1} and bench.changes == 2
    second = table.bind_ipi(1)
    table.close(other)
    assert table.online() == {0, 1}
    table.close(second)
    assert table.online() == {0} and bench.changes == 5
    table.alloc_unbound(DOMID_SELF, 0)
    table.close(table.bind_virq(VIRQ_TIMER, 1))
    assert bench.changes == 5, "nothing that matters"
    assert [port for port, _ in table.listing()] == [first, other]


def test_a_closed_port_leaves_no_event_behind(bench: Bench) -> None:
    port = bench.evtchn.bind_ipi(0)
    assert bench.told(lambda: bench.evtchn.close(port)) == [("disconnect", port), ("clear", port)]


def test_bind_vcpu_retargets_bound_and_unbound_ports(bench: Bench) -> None:
    port = bench.evtchn.alloc_unbound(DOMID_SELF, 0)
    assert bench.told(lambda: bench.evtchn.bind_vcpu(port, 1)) == [("retarget", port, 1)]
    assert bench.told(lambda: bench.evtchn.bind_backend(port)) == [("connect", port, 1)]
    assert bench.told(lambda: bench.evtchn.unmask(port)) == [("unmask", port, 1)]


# -- domain 0


def test_a_backend_comes_and_goes(bench: Bench) -> None:
    table = bench.evtchn
    port = table.alloc_unbound(DOMID_SELF, 0)
    dom0_port = table.bind_backend(port)
    assert table.status(DOMID_SELF, port) == (EVTCHNSTAT_interdomain, 0, 0, dom0_port)
    assert errno_of(lambda: table.bind_backend(port)) == EINVAL
    table.unbind_backend(port, dom0_port)
    assert bench.delivery.connected == {}
    assert table.status(DOMID_SELF, port) == (EVTCHNSTAT_unbound, 0, 0, 0)
    assert table.bind_backend(port) != dom0_port


def test_the_guest_closes_a_backends_port_and_gets_the_number_anew(bench: Bench) -> None:
    """The old backend's late close must not cut off the new one (E7)."""
    table = bench.evtchn
    port = table.alloc_unbound(DOMID_SELF, 0)
    old = table.bind_backend(port)
    table.close(port)
    assert table.alloc_unbound(DOMID_SELF, 0) == port
    new = table.bind_backend(port)
    table.unbind_backend(port, old)
    assert table.status(DOMID_SELF, port) == (EVTCHNSTAT_interdomain, 0, 0, new)
    assert port in bench.delivery.connected


def test_a_reset_closes_everything(bench: Bench) -> None:
    table = bench.evtchn
    dom0_port = table.bind_backend(table.alloc_unbound(DOMID_SELF, 0))
    table.bind_ipi(0)
    table.bind_interdomain(DOMID_SELF, table.alloc_unbound(DOMID_SELF, DOMID_SELF))
    table.reset(DOMID_SELF)
    assert all(table.status(DOMID, port)[0] == EVTCHNSTAT_closed for port in range(1, 5))
    assert bench.delivery.connected == {}
    table.unbind_backend(1, dom0_port)
    assert table.alloc_unbound(DOMID_SELF, 0) == 1


def test_a_reset_lets_others_in_after_each_port(bench: Bench) -> None:
    """Domain 0 comes and goes meanwhile, and timers act."""
    table = bench.evtchn
    ports = [table.alloc_unbound(DOMID_SELF, 0), table.reserve(), table.alloc_unbound(DOMID_SELF, 0)]
    left: list[list[int]] = []

    def others() -> None:
        left.append([port for port, _ in table.listing()])
        if len(left) == 1:
            for port in ports[1:]:
                table.bind_backend(port)

    table.reset(DOMID_SELF, others)
    assert left == [[2, 3], [2, 3], [2]]
    assert bench.delivery.connected.keys() == {ports[1]}


def test_what_the_guest_did_not_make_survives_a_reset(bench: Bench) -> None:
    """E6: the console's and the store's ports are open after it, not pending, and back on vCPU 0."""
    table = bench.evtchn
    console, store = table.reserve(), table.reserve()
    dom0_port = table.bind_backend(console)
    other = table.alloc_unbound(DOMID_SELF, 0)
    table.bind_backend(other)
    table.bind_vcpu(console, 1)
    table.inject(console)
    assert bench.told(lambda: table.reset(DOMID_SELF)) == [
        ("retarget", console, 0),
        ("clear", console),
        ("clear", store),
        ("disconnect", other),
        ("clear", other),
    ]
    assert table.status(DOMID, console) == (EVTCHNSTAT_interdomain, 0, 0, dom0_port)
    assert table.status(DOMID, store) == (EVTCHNSTAT_unbound, 0, 0, 0)
    assert table.bind_backend(store) and bench.delivery.connected.keys() == {console, store}
    assert not table.is_pending(console)


def test_a_kept_port_that_the_guest_closes_is_like_any_other(bench: Bench) -> None:
    table = bench.evtchn
    table.close(table.reserve())
    assert table.bind_ipi(0) == 1
    table.reset(DOMID_SELF)
    assert table.listing() == []


@pytest.mark.parametrize(
    "first",
    [
        lambda table: table.alloc_unbound(DOMID_SELF, DOMID_SELF),
        lambda table: table.bind_virq(VIRQ_TIMER, 0),
        lambda table: table.bind_ipi(0),
    ],
)
def test_the_guest_is_up_when_it_has_a_port_of_its_own(
    bench: Bench, first: Callable[[EventChannels], int]
) -> None:
    """What a shim does with those that are there from the start says nothing of its guest."""
    table = bench.evtchn
    for port in (table.reserve(), table.reserve()):
        table.bind_backend(port)
        table.unmask(port)
        table.bind_vcpu(port, 0)
        table.send(port)
    assert bench.delivery.guests_up == 0
    first(table)
    assert bench.delivery.guests_up == 1
    table.alloc_unbound(DOMID_SELF, 0)
    assert bench.delivery.guests_up == 1
