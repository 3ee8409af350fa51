"""The map of guest physical memory: nothing overlaps, whatever the size."""

from __future__ import annotations

from itertools import pairwise

import pytest

from xenpvd.abi.page import PAGE_SIZE
from xenpvd.vmm import layout
from xenpvd.vmm.layout import GIB, MIB

SIZES = [64 * MIB, 512 * MIB, 3 * GIB, layout.LOW_RAM_MAX, layout.LOW_RAM_MAX + MIB, 4 * GIB, 1 << 40]


@pytest.mark.parametrize("size", SIZES)
def test_slots_and_kvms_own_pages_do_not_overlap(size: int) -> None:
    low, high = layout.split_ram(size)
    assert low + high == size
    ranges = sorted(
        [
            (0, low),
            (layout.HIGH_RAM, high),
            (layout.ACPI, layout.ACPI_SIZE),
            (layout.SPECIAL, layout.SPECIAL_SIZE),
            (layout.IDENTITY_MAP, layout.KVM_SIZE),
            (0xFEE0_0000, PAGE_SIZE),  # the LAPIC
        ]
    )
    for (start, length), (following, _) in pairwise(ranges):
        assert start + length <= following
    assert layout.IDENTITY_MAP + PAGE_SIZE == layout.TSS
    assert layout.TSS + 3 * PAGE_SIZE == layout.IDENTITY_MAP + layout.KVM_SIZE


def test_the_first_mib() -> None:
    """What lies there lies apart, and not where the shim has its trampoline."""
    places = [
        range(0x1000, 0x11000),
        range(layout.START_INFO, layout.START_INFO_END),
        range(0xE_0000, 0xF_FFC0),
        range(layout.BIOS_RSDP, layout.BIOS_RSDP + 36),
        range(layout.KERNEL_MIN, layout.MODULES_MIN),
    ]
    for one, following in pairwise(places):
        assert one.stop <= following.start
    assert layout.BIOS_RSDP % 16 == 0, "it is looked for at every 16th byte"
    special = range(layout.SPECIAL, layout.SPECIAL + layout.SPECIAL_SIZE)
    assert layout.STORE_PFN * PAGE_SIZE in special and layout.CONSOLE_PFN * PAGE_SIZE in special


@pytest.mark.parametrize(
    "address, up", [(0, 0), (1, 4096), (4095, 4096), (4096, 4096), (2**40 + 1, 2**40 + 4096)]
)
def test_page_up(address: int, up: int) -> None:
    assert layout.page_up(address) == up
