"""Event channels: rows of what Xen answers, and a machine of random operations against a small model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.fakes.delivery import FakeDelivery
from xenpvd.abi.event_channel import (
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
)
from xenpvd.abi.xen import DOMID_SELF, EINVAL, ENOENT, ENOSPC, EPERM
from xenpvd.errors import KvmError, XenError
from xenpvd.vmm.xen.evtchn import EventChannels

DOMID, VCPUS = 1, 2
PORTS = 4095
ABSURD_PORTS = (0, 4096, 4097, 2**31, 2**32 - 1)


class Bench:
    def __init__(self) -> None:
        self.delivery = FakeDelivery()
        self.evtchn = EventChannels(DOMID, VCPUS, self.delivery)

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
    table = bench.evtchn
    for _ in range(3):
        assert [table.bind_ipi(1) for _ in range(PORTS)] == list(range(1, PORTS + 1))
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


# -- rows: what is refused


@pytest.mark.parametrize("port", [*ABSURD_PORTS, 17])
def test_operations_on_ports_that_are_not_there(bench: Bench, port: int) -> None:
    table = bench.evtchn
    for act in (
        lambda: table.send(port),
        lambda: table.close(port),
        lambda: table.bind_vcpu(port, 0),
        lambda: table.bind_interdomain(DOMID_SELF, port),
        lambda: table.bind_backend(port),
    ):
        assert errno_of(act) == EINVAL
    table.unbind_backend(port, 1)
    assert bench.delivery.calls == []


@pytest.mark.parametrize("port", ABSURD_PORTS)
def test_status_and_unmask_take_any_port_number_that_can_be(bench: Bench, port: int) -> None:
    assert errno_of(lambda: bench.evtchn.status(DOMID_SELF, port)) == EINVAL
    assert errno_of(lambda: bench.evtchn.unmask(port)) == EINVAL
    assert bench.evtchn.status(DOMID_SELF, 4095) == (EVTCHNSTAT_closed, 0, 0, 0)
    assert bench.told(lambda: bench.evtchn.unmask(4095)) == [("unmask", 4095, 0)]


@pytest.mark.parametrize("dom", [0, 2, 0x7FF1, 0xFFFF])
def test_only_the_own_domain_is_served(bench: Bench, dom: int) -> None:
    table = bench.evtchn
    port = table.alloc_unbound(DOMID_SELF, DOMID_SELF)
    assert errno_of(lambda: table.alloc_unbound(dom, 0)) == EPERM
    assert errno_of(lambda: table.status(dom, port)) == EPERM
    assert errno_of(lambda: table.reset(dom)) == EPERM
    assert errno_of(lambda: table.bind_interdomain(dom, port)) == EINVAL


@pytest.mark.parametrize("vcpu", [VCPUS, 32, 2**32 - 1])
def test_there_is_no_such_vcpu(bench: Bench, vcpu: int) -> None:
    port = bench.evtchn.alloc_unbound(DOMID_SELF, 0)
    assert errno_of(lambda: bench.evtchn.bind_ipi(vcpu)) == ENOENT
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
    second = table.bind_interdomain(DOMID_SELF, first)
    table.bind_vcpu(first, 1)
    assert bench.told(lambda: table.send(second)) == [("raise", first, 1)]
    assert bench.told(lambda: table.send(first)) == [("raise", second, 0)]
    assert table.status(DOMID, first) == (EVTCHNSTAT_interdomain, 1, DOMID, second)
    assert errno_of(lambda: table.bind_interdomain(DOMID_SELF, first)) == EINVAL
    table.close(second)
    assert table.status(DOMID, first) == (EVTCHNSTAT_unbound, 1, DOMID, 0)
    assert bench.told(lambda: table.send(first)) == []
    assert table.bind_interdomain(DOMID_SELF, first) == second


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


# -- random operations against a model


class Ports(RuleBasedStateMachine):
    """The model: port -> [state, vcpu, remote dom, remote port]."""

    ports = Bundle("ports")

    def __init__(self) -> None:
        super().__init__()
        self.delivery = FakeDelivery()
        self.table = EventChannels(DOMID, VCPUS, self.delivery)
        self.model: dict[int, list[int]] = {}

    def _added(self, port: int, *channel: int) -> int:
        assert port == min(set(range(1, len(self.model) + 2)) - self.model.keys())
        self.model[port] = list(channel)
        return port

    @rule(target=ports, remote=st.sampled_from([0, DOMID]))
    def alloc(self, remote: int) -> int:
        return self._added(self.table.alloc_unbound(DOMID_SELF, remote), EVTCHNSTAT_unbound, 0, remote, 0)

    @rule(target=ports, vcpu=st.integers(0, VCPUS - 1))
    def ipi(self, vcpu: int) -> int:
        return self._added(self.table.bind_ipi(vcpu), EVTCHNSTAT_ipi, vcpu, 0, 0)

    @rule(target=ports, remote=ports)
    def loop_back(self, remote: int) -> int:
        if self.model.get(remote, [9])[::2] != [EVTCHNSTAT_unbound, DOMID]:
            assert errno_of(lambda: self.table.bind_interdomain(DOMID, remote)) == EINVAL
            return remote
        port = self._added(
            self.table.bind_interdomain(DOMID, remote), EVTCHNSTAT_interdomain, 0, DOMID, remote
        )
        self.model[remote][0], self.model[remote][3] = EVTCHNSTAT_interdomain, port
        return port

    @rule(port=ports)
    def backend(self, port: int) -> None:
        if self.model.get(port, [9])[::2] != [EVTCHNSTAT_unbound, 0]:
            assert errno_of(lambda: self.table.bind_backend(port)) == EINVAL
        else:
            self.model[port][3] = self.table.bind_backend(port)
            self.model[port][0] = EVTCHNSTAT_interdomain

    @rule(port=ports, dom0_port=st.integers(0, 5))
    def backend_leaves(self, port: int, dom0_port: int) -> None:
        self.table.unbind_backend(port, dom0_port)
        channel = self.model.get(port)
        if channel and channel[0] == EVTCHNSTAT_interdomain and channel[2:] == [0, dom0_port]:
            channel[0], channel[3] = EVTCHNSTAT_unbound, 0

    @rule(port=ports, vcpu=st.integers(0, VCPUS))
    def move(self, port: int, vcpu: int) -> None:
        try:
            self.table.bind_vcpu(port, vcpu)
        except XenError:
            assert vcpu == VCPUS or port not in self.model or self.model[port][0] == EVTCHNSTAT_ipi
        else:
            self.model[port][1] = vcpu

    @rule(port=ports | consumes(ports))
    def close(self, port: int) -> None:
        if port not in self.model:
            assert errno_of(lambda: self.table.close(port)) == EINVAL
            return
        self.table.close(port)
        state, _, dom, remote = self.model.pop(port)
        if state == EVTCHNSTAT_interdomain and dom == DOMID:
            self.model[remote][0], self.model[remote][3] = EVTCHNSTAT_unbound, 0

    @rule(port=ports)
    def use(self, port: int) -> None:
        self.table.unmask(port)
        if port in self.model:
            self.table.send(port)

    @rule()
    def reset(self) -> None:
        self.table.reset(DOMID_SELF)
        self.model.clear()

    @invariant()
    def agree(self) -> None:
        for port in range(1, max(self.model, default=0) + 2):
            expected = tuple(self.model.get(port, (EVTCHNSTAT_closed, 0, 0, 0)))
            assert self.table.status(DOMID, port) == expected
        connected = {
            port
            for port, (state, _, dom, _) in self.model.items()
            if state == EVTCHNSTAT_ipi or (state == EVTCHNSTAT_interdomain and dom == 0)
        }
        assert self.delivery.connected.keys() == connected


TestPorts = Ports.TestCase
TestPorts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
