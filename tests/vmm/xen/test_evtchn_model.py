"""Event channels: a machine of random operations against a small model. No port leaks, the lowest free one is
taken, both ends of a channel agree, and the delivery is connected exactly where something is to deliver."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.fakes.delivery import FakeDelivery
from tests.vmm.xen.test_evtchn import DOMID, VCPUS, errno_of
from xenpvd.abi.event_channel import (
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenpvd.abi.xen import DOMID_SELF, EEXIST, EINVAL, VIRQ_TIMER
from xenpvd.errors import XenError
from xenpvd.vmm.xen.evtchn import EventChannels


class Ports(RuleBasedStateMachine):
    """The model: port -> [state, vcpu, remote dom, remote port], of a VIRQ [state, vcpu, VIRQ, 0]."""

    ports = Bundle("ports")

    def __init__(self) -> None:
        super().__init__()
        self.delivery = FakeDelivery()
        self.table = EventChannels(DOMID, VCPUS, self.delivery)
        self.model: dict[int, list[int]] = {}
        self.kept: set[int] = set()

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

    @rule(vcpu=st.integers(0, VCPUS - 1), virq=st.sampled_from([VIRQ_TIMER, 1, 2, 16]), target=ports)
    def virq(self, vcpu: int, virq: int) -> int:
        bound = [one for one in self.model.values() if (one[0], one[2]) == (EVTCHNSTAT_virq, virq)]
        if virq > 1 and vcpu:
            assert errno_of(lambda: self.table.bind_virq(virq, vcpu)) == EINVAL
        elif any(virq > 1 or one[1] == vcpu for one in bound):
            assert errno_of(lambda: self.table.bind_virq(virq, vcpu)) == EEXIST
        else:
            return self._added(self.table.bind_virq(virq, vcpu), EVTCHNSTAT_virq, vcpu, virq, 0)
        return 0

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
            state, _, virq, _ = self.model.get(port, (EVTCHNSTAT_ipi, 0, 0, 0))
            stays = state == EVTCHNSTAT_ipi or (state == EVTCHNSTAT_virq and virq < 2)
            assert vcpu == VCPUS or stays
        else:
            self.model[port][1] = vcpu

    @rule(port=ports | consumes(ports))
    def close(self, port: int) -> None:
        if port not in self.model:
            assert errno_of(lambda: self.table.close(port)) == EINVAL
            return
        self.table.close(port)
        self.kept.discard(port)
        state, _, dom, remote = self.model.pop(port)
        if state == EVTCHNSTAT_interdomain and dom == DOMID:
            self.model[remote][0], self.model[remote][3] = EVTCHNSTAT_unbound, 0

    @rule(port=ports)
    def use(self, port: int) -> None:
        if not port:
            return
        self.table.unmask(port)
        if self.model.get(port, [0])[0] not in (0, EVTCHNSTAT_virq):
            self.table.send(port)
        else:
            assert errno_of(lambda: self.table.send(port)) == EINVAL

    @rule()
    def reserve(self) -> None:
        port = self.table.reserve()
        assert port not in self.model
        self.model[port] = [EVTCHNSTAT_unbound, 0, 0, 0]
        self.kept.add(port)

    @rule()
    def reset(self) -> None:
        self.table.reset(DOMID_SELF)
        self.model = {port: [one[0], 0, *one[2:]] for port, one in self.model.items() if port in self.kept}

    @invariant()
    def agree(self) -> None:
        for port in range(1, max(self.model, default=0) + 2):
            expected = tuple(self.model.get(port, (EVTCHNSTAT_closed, 0, 0, 0)))
            assert self.table.status(DOMID, port) == expected
        connected = {
            port
            for port, (state, _, dom, _) in self.model.items()
            if state == EVTCHNSTAT_ipi or (state in (EVTCHNSTAT_interdomain, EVTCHNSTAT_virq) and dom == 0)
        }
        assert [port for port, _ in self.table.listing()] == sorted(self.model)
        ipis = {vcpu for state, vcpu, *_ in self.model.values() if state == EVTCHNSTAT_ipi}
        assert self.table.online() == ipis
        assert self.delivery.connected.keys() == connected


TestPorts = Ports.TestCase
TestPorts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
