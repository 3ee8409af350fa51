"""hvm_op, for callers of both widths."""

from __future__ import annotations

import pytest

from tests.vmm.xen.bench import DOMID, Bench
from xenpvd.abi import hvm_op as h
from xenpvd.abi import xen as x

HVM = x.HYPERVISOR_hvm_op
SELF = x.DOMID_SELF


def param(bench: Bench, op: int, index: int, value: int = 99, domid: int = SELF) -> tuple[int, int]:
    asked = bench.ask(HVM, op, h.xen_hvm_param, domid, index, value)
    return asked[0], asked[3]


def get(bench: Bench, index: int) -> tuple[int, int]:
    return param(bench, h.HVMOP_get_param, index)


def put(bench: Bench, index: int, value: int) -> int:
    return param(bench, h.HVMOP_set_param, index, value)[0]


@pytest.mark.parametrize(
    "index, value", [(1, 0xFEFFC), (2, 2), (17, 0xFEFFF), (18, 1), (0, 0), (15, 0), (34, 0), (35, 0), (37, 0)]
)
def test_get_param(bench: Bench, index: int, value: int) -> None:
    assert get(bench, index) == (0, value)


@pytest.mark.parametrize(
    "op, domid, index, error",
    [
        (1, DOMID, 3, x.EPERM),
        (1, DOMID, 5, x.EPERM),
        (1, DOMID, 4, x.EINVAL),  # deprecated
        (1, DOMID, 39, x.EINVAL),
        (1, DOMID, 2**32 - 1, x.EINVAL),
        (1, 0, 1, x.EPERM),
        (1, 2, 1, x.ESRCH),
        (0, DOMID, 1, x.EPERM),
        (0, DOMID, 17, x.EPERM),
        (0, DOMID, 35, x.EPERM),
        (0, DOMID, 12, x.EPERM),
        (0, DOMID, 24, x.EINVAL),  # deprecated
        (0, DOMID, 36, x.EINVAL),  # 7 is no width
        (0, DOMID, 39, x.EINVAL),
        (0, 0, 0, x.EPERM),
        (0, 2, 0, x.ESRCH),
    ],
)
def test_params_that_are_not_to_be_had(bench: Bench, op: int, domid: int, index: int, error: int) -> None:
    before = dict(bench.params)
    assert param(bench, op, index, 7, domid) == (-error, 7)
    assert bench.params == before and bench.platform.calls == []


@pytest.mark.parametrize("index, value", [(2, 9), (18, 2**64 - 1), (15, 0x1000), (34, 2**40), (36, 8)])
def test_what_a_guest_may_write_it_may_read(bench: Bench, index: int, value: int) -> None:
    assert put(bench, index, value) == 0
    assert get(bench, index) == (0, value)
    assert bench.platform.calls == []


VECTOR = 2 << 56 | 0xF3


def test_only_a_callback_vector_reaches_the_platform(bench: Bench) -> None:
    latch = ("latch", bench.caller.longmode)
    assert put(bench, h.HVM_PARAM_CALLBACK_IRQ, 1) == 0  # the shim's: GSI 1
    assert bench.platform.calls == [latch]
    assert put(bench, h.HVM_PARAM_CALLBACK_IRQ, VECTOR) == 0
    assert put(bench, h.HVM_PARAM_CALLBACK_IRQ, VECTOR) == 0
    assert put(bench, h.HVM_PARAM_CALLBACK_IRQ, 1 << 56 | 3) == 0
    assert put(bench, h.HVM_PARAM_CALLBACK_IRQ, 0xFF << 56 | 3) == 0
    assert bench.platform.calls[1:] == [("callback", 0xF3), latch, latch, ("callback", 0), latch, latch]
    assert get(bench, h.HVM_PARAM_CALLBACK_IRQ) == (0, 0xFF << 56 | 3)


def test_who_sets_the_callback_decides_the_layout(bench: Bench) -> None:
    """E11: also when it changes on the way, as from a 32-bit loader to its 64-bit kernel."""
    assert bench.evtchn.limit == 4096
    put(bench, h.HVM_PARAM_CALLBACK_IRQ, 0)
    assert bench.evtchn.limit == (4096 if bench.caller.longmode else 1024)
    bench.caller.longmode = not bench.caller.longmode
    put(bench, h.HVM_PARAM_CALLBACK_IRQ, 0)
    assert bench.evtchn.limit == (4096 if bench.caller.longmode else 1024)
    assert bench.platform.calls == [("latch", not bench.caller.longmode), ("latch", bench.caller.longmode)]


@pytest.mark.parametrize(
    "vcpu, vector, result",
    [(0, 0xF1, 0), (1, 0x10, 0), (0, 0xF, -x.EINVAL), (0, 0, -x.EINVAL), (2, 0xF1, -x.ENOENT)],
)
def test_upcall_vector(bench: Bench, vcpu: int, vector: int, result: int) -> None:
    assert (
        bench.ask(HVM, h.HVMOP_set_evtchn_upcall_vector, h.xen_hvm_evtchn_upcall_vector, vcpu, vector)[0]
        == result
    )
    assert bench.platform.calls == ([("vector", vcpu, vector)] if not result else [])


def test_get_time(bench: Bench) -> None:
    assert bench.ask(HVM, h.HVMOP_get_time, h.xen_hvm_get_time, 7) == (0, bench.platform.now)


@pytest.mark.parametrize("op", [h.HVMOP_flush_tlbs, h.HVMOP_pagetable_dying, 2, 24])
def test_what_is_not_offered(bench: Bench, op: int) -> None:
    assert bench.call(HVM, op, bench.arg) == -x.ENOSYS
