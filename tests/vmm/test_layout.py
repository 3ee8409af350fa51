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
            (layout.hole(size), layout.HOLE_SIZE),
            (layout.IDENTITY_MAP, PAGE_SIZE),
            (layout.TSS, 3 * PAGE_SIZE),
            (0xFEE0_0000, PAGE_SIZE),  # the LAPIC
        ]
    )
    for (start, length), (following, _) in pairwise(ranges):
        assert start + length <= following


@pytest.mark.parametrize("size", SIZES)
def test_the_hole_is_the_first_page_above_all_that_the_e820_names(size: int) -> None:
    """There the shim puts shared_info and grant frames."""
    assert layout.hole(size) == layout.HIGH_RAM + layout.split_ram(size)[1]


def test_the_shims_own_places_are_left_alone() -> None:
    trampoline = range(0x1000, 0x11000)
    assert layout.START_INFO not in trampoline and layout.START_INFO_END <= layout.SHIM_MIN
    assert layout.MODULES % PAGE_SIZE == 0
    special = range(layout.SPECIAL, layout.SPECIAL + layout.SPECIAL_SIZE)
    assert layout.STORE_PFN * PAGE_SIZE in special and layout.CONSOLE_PFN * PAGE_SIZE in special
