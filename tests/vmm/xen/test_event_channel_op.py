"""event_channel_op: what lies between a hypercall and the table (test_evtchn.py has the table's rules)."""

from __future__ import annotations

from struct import Struct

import pytest

from tests.vmm.xen.bench import DOMID, Bench
from xenpvd.abi import event_channel as e
from xenpvd.abi import xen as x

EVTCHN = x.HYPERVISOR_event_channel_op
SELF = x.DOMID_SELF


def test_ports_are_told(bench: Bench) -> None:
    def ask(op: int, layout: Struct, *fields: int) -> tuple[int, ...]:
        return bench.ask(EVTCHN, op, layout, *fields)

    alloc = e.EVTCHNOP_alloc_unbound, e.evtchn_alloc_unbound
    assert ask(*alloc, SELF, 0, 0) == (0, SELF, 0, 1)
    assert ask(*alloc, DOMID, SELF, 0) == (0, DOMID, SELF, 2)
    assert ask(e.EVTCHNOP_bind_interdomain, e.evtchn_bind_interdomain, DOMID, 2, 0) == (0, DOMID, 2, 3)
    assert ask(e.EVTCHNOP_bind_ipi, e.evtchn_bind_ipi, 1, 0) == (0, 1, 4)
    assert ask(e.EVTCHNOP_bind_virq, e.evtchn_bind_virq, 0, 1, 0) == (0, 0, 1, 5)
    assert ask(e.EVTCHNOP_bind_virq, e.evtchn_bind_virq, 0, 1, 9) == (-x.EEXIST, 0, 1, 9)
    assert ask(e.EVTCHNOP_bind_pirq, e.evtchn_bind_pirq, 4, 0, 9) == (-x.EINVAL, 4, 0, 9)
    assert ask(e.EVTCHNOP_bind_vcpu, e.evtchn_bind_vcpu, 3, 1)[0] == 0
    assert ask(e.EVTCHNOP_unmask, e.evtchn_port, 3)[0] == 0
    assert ask(e.EVTCHNOP_send, e.evtchn_port, 4)[0] == 0
    assert ask(e.EVTCHNOP_close, e.evtchn_port, 4)[0] == 0
    assert ask(e.EVTCHNOP_send, e.evtchn_port, 4)[0] == -x.EINVAL
    assert ask(e.EVTCHNOP_reset, e.evtchn_reset, DOMID)[0] == 0
    assert bench.platform.breaks > 0, "others are let in meanwhile"
    assert ask(e.EVTCHNOP_send, e.evtchn_port, 1)[0] == -x.EINVAL


def test_status_of_every_state(bench: Bench) -> None:
    """All fields are of now: nothing of what was there before (E18)."""
    table = bench.evtchn
    for_dom0, loop, backed = (table.alloc_unbound(SELF, dom) for dom in (0, SELF, 0))
    other = table.bind_interdomain(SELF, loop)
    ipi, virq = table.bind_ipi(1), table.bind_virq(16, 0)
    dom0_port = table.bind_backend(backed)
    for port, expected in (
        (77, (e.EVTCHNSTAT_closed, 0, 0, 0)),
        (for_dom0, (e.EVTCHNSTAT_unbound, 0, 0, 0)),
        (backed, (e.EVTCHNSTAT_interdomain, 0, 0, dom0_port)),
        (other, (e.EVTCHNSTAT_interdomain, 0, DOMID, loop)),
        (ipi, (e.EVTCHNSTAT_ipi, 1, 0, 0)),
        (virq, (e.EVTCHNSTAT_virq, 0, 16, 0)),
    ):
        stale = (2**32 - 1,) * 4
        asked = bench.ask(EVTCHN, e.EVTCHNOP_status, e.evtchn_status, SELF, port, *stale)
        assert asked == (0, SELF, port, *expected)


@pytest.mark.parametrize("op", [e.EVTCHNOP_close, e.EVTCHNOP_send, e.EVTCHNOP_unmask])
@pytest.mark.parametrize("port", [0, 4096, 2**31, 2**32 - 1])
def test_absurd_ports(bench: Bench, op: int, port: int) -> None:
    """E1."""
    assert bench.ask(EVTCHN, op, e.evtchn_port, port)[0] == -x.EINVAL


@pytest.mark.parametrize("op", [11, 12, 13])
def test_fifo_events_are_not_offered(bench: Bench, op: int) -> None:
    """E8: all three say the same, so that a guest stays with the 2-level ABI."""
    assert bench.call(EVTCHN, op, bench.arg) == bench.call(EVTCHN, op, bench.nowhere) == -x.ENOSYS


def test_arguments_may_cross_pages_that_lie_apart(bench: Bench) -> None:
    fields = e.EVTCHNOP_alloc_unbound, e.evtchn_alloc_unbound, SELF, 0, 0
    assert bench.ask(EVTCHN, *fields, at=bench.last) == (0, SELF, 0, 1)


@pytest.mark.parametrize(
    "op, layout, fields",
    [
        (e.EVTCHNOP_alloc_unbound, e.evtchn_alloc_unbound, (DOMID, DOMID, 0)),
        (e.EVTCHNOP_bind_interdomain, e.evtchn_bind_interdomain, (DOMID, 1, 0)),
        (e.EVTCHNOP_bind_ipi, e.evtchn_bind_ipi, (0, 0)),
        (e.EVTCHNOP_bind_virq, e.evtchn_bind_virq, (0, 0, 0)),
    ],
)
def test_a_port_that_cannot_be_told_is_not_kept(
    bench: Bench, op: int, layout: Struct, fields: tuple[int, ...]
) -> None:
    """E12: whether the struct lies in a read-only page or only its end does."""
    first = bench.evtchn.alloc_unbound(DOMID, DOMID)
    assert bench.ask(EVTCHN, op, layout, *fields, at=bench.read_only)[0] == -x.EFAULT
    crossing = layout.pack(*fields)
    bench.virtual.write(bench.read_only - 2, crossing[:2])
    bench.memory.write(0x5000, crossing[2:])
    assert bench.call(EVTCHN, op, bench.read_only - 2) == -x.EFAULT
    assert bench.evtchn.status(DOMID, first)[0] == e.EVTCHNSTAT_unbound
    assert bench.delivery.connected == {}
    assert bench.evtchn.alloc_unbound(DOMID, 0) == first + 1
