"""What a vCPU sees of its CPU, by rows: what KVM supports on the left, what is shown on the right."""

from __future__ import annotations

import pytest

from xenpvd.vmm.cpuid import Entry, build, xen_leaves

ALL = 0xFFFF_FFFF
HV, TSC_DL, LA57, HTT = 1 << 31, 1 << 24, 1 << 16, 1 << 28


def shown(*supported: Entry, tsc_deadline: bool = True, vcpu_id: int = 3) -> list[Entry]:
    built = build(supported, vcpu_id=vcpu_id, domid=1, version=(4, 17), tsc_deadline=tsc_deadline)
    assert built[-8:] == xen_leaves((4, 17), vcpu_id, 1)
    return built[:-8]


@pytest.mark.parametrize(
    "supported, tsc_deadline, expected",
    [
        ((0, 0, 0, 13, 1, 2, 3), True, (0, 0, 0, 13, 1, 2, 3)),
        ((1, 0, 0, 5, 0xAAAA_1234, 0, 7), True, (1, 0, 0, 5, 0x0301_1234, HV | TSC_DL, 7)),
        ((1, 0, 0, 5, ALL, ALL, ALL), False, (1, 0, 0, 5, 0x0301_FFFF, ALL & ~TSC_DL, ALL & ~HTT)),
        ((4, 2, 1, ALL, 2, 3, 4), True, (4, 2, 1, 0x3FFF, 2, 3, 4)),
        ((7, 0, 1, 1, 2, ALL, 4), True, (7, 0, 1, 1, 2, ALL & ~LA57, 4)),
        ((7, 1, 1, 1, 2, ALL, 4), True, (7, 1, 1, 1, 2, ALL, 4)),
        ((0x8000_0001, 0, 0, 1, 2, ALL, ALL), True, (0x8000_0001, 0, 0, 1, 2, ALL & ~2, ALL)),
        ((0x8000_0008, 0, 0, 48, 1, ALL, 2), True, (0x8000_0008, 0, 0, 48, 1, ALL & ~0xF0FF, 2)),
        ((0x8000_001D, 3, 1, ALL, 2, 3, 4), True, (0x8000_001D, 3, 1, 0xFC00_3FFF, 2, 3, 4)),
        ((0x8000_001E, 0, 0, 99, 0x102, 0x703, 4), True, (0x8000_001E, 0, 0, 3, 0, 3, 0)),
    ],
)
def test_a_leaf(supported: Entry, tsc_deadline: bool, expected: Entry) -> None:
    assert shown(supported, tsc_deadline=tsc_deadline) == [expected]


@pytest.mark.parametrize(
    "supported",
    [
        [(0xB, 0, 1, 0, 0, 0, 99)],  # KVM of today: no topology
        [(0xB, 0, 1, 1, 2, 0x100, 99), (0xB, 1, 1, 6, 64, 0x201, 99), (0xB, 2, 1, 0, 0, 2, 99)],  # the host's
    ],
)
def test_every_vcpu_is_a_package_of_its_own(supported: list[Entry]) -> None:
    """By leaf 0xb: a level of threads and one of cores, each of one CPU and no bits of the APIC id."""
    assert shown(*supported, vcpu_id=31) == [(0xB, 0, 1, 0, 1, 0x100, 31), (0xB, 1, 1, 0, 1, 0x201, 31)]


@pytest.mark.parametrize("function", [0x1F, 0x8000_0026, 0x4000_0000, 0x4000_0001, 0x4000_0100, 0x4000_FF00])
def test_leaves_that_go(function: int) -> None:
    """KVM's own, and the host's topology."""
    assert shown((function, 0, 0, 0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D)) == []


def test_no_leaf_comes_twice() -> None:
    supported = [(f, i, 1, 0, 0, 0, 0) for f in (0, 1, 4, 7, 0xB, 0x1F, 0x8000_001E) for i in range(3)]
    keys = [entry[:2] for entry in shown(*supported)]
    assert len(keys) == len(set(keys))


def test_what_the_shim_looks_for() -> None:
    leaves = {(function, index): rest for function, index, _, *rest in xen_leaves((4, 17), 5, 9)}
    top, *signature = leaves[0x4000_0000, 0]
    assert top >= 0x4000_0002
    assert b"".join(n.to_bytes(4, "little") for n in signature) == b"XenVMMXenVMM"
    assert leaves[0x4000_0001, 0][0] == 4 << 16 | 17
    assert leaves[0x4000_0002, 0][:2] == [1, 0x4000_0000]
    eax, vcpu_id, domid, _ = leaves[0x4000_0004, 0]
    assert eax == 1 << 3 | 1 << 4 | 1 << 6 and (vcpu_id, domid) == (5, 9)
    assert all((function, 0) in leaves for function in range(0x4000_0000, top + 1))


def test_the_clocks_leaf_has_the_entries_that_kvm_fills() -> None:
    clock = [entry for entry in xen_leaves((4, 17), 0, 1) if entry[0] == 0x4000_0003]
    assert [entry[1:3] for entry in clock] == [(0, 1), (1, 1), (2, 1)], "each by its index"


@pytest.mark.parametrize("version", [(4, 20), (9, 999)])
def test_the_version_is_as_configured(version: tuple[int, int]) -> None:
    assert xen_leaves(version, 0, 1)[1][3] == version[0] << 16 | version[1]
