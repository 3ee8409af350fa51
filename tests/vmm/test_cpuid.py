"""What a vCPU sees of its CPU, by rows: what KVM supports on the left, what is shown on the right."""

from __future__ import annotations

import pytest

from xenpvd.vmm.cpuid import Entry, build, xen_leaves

ALL = 0xFFFF_FFFF
HV, TSC_DL, LA57 = 1 << 31, 1 << 24, 1 << 16


def shown(*supported: Entry, tsc_deadline: bool = True, vcpu_id: int = 3) -> list[Entry]:
    built = build(supported, vcpu_id=vcpu_id, domid=1, version=(4, 17), tsc_deadline=tsc_deadline)
    assert built[-8:] == xen_leaves((4, 17), vcpu_id, 1)
    return built[:-8]


@pytest.mark.parametrize(
    "supported, tsc_deadline, expected",
    [
        ((0, 0, 0, 13, 1, 2, 3), True, (0, 0, 0, 13, 1, 2, 3)),
        ((1, 0, 0, 5, 0xAA00_1234, 0, 7), True, (1, 0, 0, 5, 0x0300_1234, HV | TSC_DL, 7)),
        ((1, 0, 0, 5, ALL, ALL, 7), False, (1, 0, 0, 5, 0x03FF_FFFF, ALL & ~TSC_DL, 7)),
        ((7, 0, 1, 1, 2, ALL, 4), True, (7, 0, 1, 1, 2, ALL & ~LA57, 4)),
        ((7, 1, 1, 1, 2, ALL, 4), True, (7, 1, 1, 1, 2, ALL, 4)),
        ((0xB, 0, 1, 1, 2, 3, 99), True, (0xB, 0, 1, 1, 2, 3, 3)),
        ((0xB, 1, 1, 1, 2, 3, 99), True, (0xB, 1, 1, 1, 2, 3, 3)),
        ((0x1F, 1, 1, 1, 2, 3, 99), True, (0x1F, 1, 1, 1, 2, 3, 3)),
        ((0x8000_001E, 0, 0, 99, 2, 3, 4), True, (0x8000_001E, 0, 0, 3, 2, 3, 4)),
        ((0x8000_0008, 0, 0, 48, 0, 0, 0), True, (0x8000_0008, 0, 0, 48, 0, 0, 0)),
    ],
)
def test_a_leaf(supported: Entry, tsc_deadline: bool, expected: Entry) -> None:
    assert shown(supported, tsc_deadline=tsc_deadline) == [expected]


@pytest.mark.parametrize("function", [0x4000_0000, 0x4000_0001, 0x4000_0100, 0x4000_FF00])
def test_kvms_own_leaves_go(function: int) -> None:
    assert shown((function, 0, 0, 0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D)) == []


def test_what_the_shim_looks_for() -> None:
    leaves = {(function, index): rest for function, index, _, *rest in xen_leaves((4, 17), 5, 9)}
    top, *signature = leaves[0x4000_0000, 0]
    assert top >= 0x4000_0002
    assert b"".join(n.to_bytes(4, "little") for n in signature) == b"XenVMMXenVMM"
    assert leaves[0x4000_0001, 0][0] == 4 << 16 | 17
    assert leaves[0x4000_0002, 0][:2] == [1, 0x4000_0000]
    eax, vcpu_id, domid, _ = leaves[0x4000_0004, 0]
    assert eax == 1 << 3 | 1 << 4 | 1 << 6 and (vcpu_id, domid) == (5, 9)
    assert {index for function, index in leaves if function == 0x4000_0003} == {0, 1, 2}
    assert all((function, 0) in leaves for function in range(0x4000_0000, top + 1))
