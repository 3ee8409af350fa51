"""The page walk against tables of every page size, and against tables that lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.guest_memory import HUGE, PRESENT, WRITE, FakeMemory, PageTables
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.abi.xen import EFAULT
from xenpvd.errors import XenError
from xenpvd.vmm.xen.gva import FLAT, LEGACY32, LONG, PAE, Mode, VirtualMemory

STACK = 0xFFFF_82D0_8060_7000
RAM = 64 * PAGE_SIZE


def space(pages: int = 64) -> tuple[FakeMemory, PageTables, VirtualMemory]:
    memory = FakeMemory(pages)
    tables = PageTables(memory)
    return memory, tables, VirtualMemory(memory, tables.cr3 | 0x18)  # low bits of CR3 are flags


@pytest.mark.parametrize(
    "gva, gpa, shift, at, expected",
    [
        (STACK, 0x20000, 12, 0x123, 0x20123),
        (0x7000, 0x20000, 12, 0, 0x20000),
        (0xFFFF_8300_0020_0000, 0x20_0000, 21, 0x12_3456, 0x32_3456),
        (0xFFFF_8300_4000_0000, 0x4000_0000, 30, 0x1234_5678, 0x5234_5678),
        (0x7FFF_FFFF_F000, 0x3000, 12, 0xFFF, 0x3FFF),
        (0xFFFF_FFFF_FFFF_F000, 0x3000, 12, 0xFFF, 0x3FFF),
    ],
)
def test_translates(gva: int, gpa: int, shift: int, at: int, expected: int) -> None:
    _, tables, virtual = space()
    tables.map(gva, gpa, shift=shift)
    assert virtual.translate(gva + at) == expected
    assert virtual.translate(gva + at, write=True) == expected


def test_only_the_frame_bits_of_an_entry_count() -> None:
    _, tables, virtual = space()
    tables.map(STACK, 0x20000, flags=PRESENT | WRITE | 1 << 63 | 0x7FF << 52 | 0xE60)
    assert virtual.translate(STACK + 8) == 0x20008
    tables.map(0x20_0000, 0x20_0000, shift=21, flags=PRESENT | 1 << 12)  # PAT, not an address
    assert virtual.translate(0x20_0008) == 0x20_0008


@pytest.mark.parametrize(
    "gva",
    [0, STACK - 1, STACK + PAGE_SIZE, 1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63, 1 << 64, (1 << 64) + STACK],
)
def test_what_is_not_mapped_is_a_fault(gva: int) -> None:
    _, tables, virtual = space()
    tables.map(STACK, 0x20000)
    with pytest.raises(XenError) as caught:
        virtual.translate(gva)
    assert caught.value.errno == EFAULT


def test_a_read_only_page_is_not_written() -> None:
    memory, tables, virtual = space()
    tables.map(STACK, 0x20000, flags=PRESENT)
    assert virtual.read(STACK, 4) == bytes(4)
    with pytest.raises(XenError):
        virtual.write(STACK, b"boom")
    assert memory.read(0x20000, 4) == bytes(4)


def test_reads_and_writes_cross_pages_that_lie_apart() -> None:
    memory, tables, virtual = space()
    tables.map(STACK, 0x20000)
    tables.map(STACK + PAGE_SIZE, 0x9000)
    tables.map(STACK + 2 * PAGE_SIZE, 0x30000)
    data = bytes(range(256)) * 17  # 4352 bytes: three pages
    virtual.write(STACK + PAGE_SIZE - 8, data)
    assert virtual.read(STACK + PAGE_SIZE - 8, len(data)) == data
    assert memory.read(0x20000 + PAGE_SIZE - 8, 8) == data[:8]
    assert memory.read(0x9000, PAGE_SIZE) == data[8:4104]
    assert memory.read(0x30000, 248) == data[4104:]


def test_a_write_that_runs_into_nothing_writes_nothing() -> None:
    memory, tables, virtual = space()
    tables.map(STACK, 0x20000)
    with pytest.raises(XenError):
        virtual.write(STACK + PAGE_SIZE - 4, b"12345678")
    assert memory.read(0x20000, PAGE_SIZE) == bytes(PAGE_SIZE)
    with pytest.raises(XenError):
        virtual.read(STACK + PAGE_SIZE - 4, 8)


def test_a_write_to_a_page_that_is_no_memory_writes_nothing() -> None:
    """E12: the second page is mapped, to where no memory is."""
    memory, tables, virtual = space()
    tables.map(STACK, 0x20000)
    tables.map(STACK + PAGE_SIZE, RAM)
    with pytest.raises(XenError) as caught:
        virtual.write(STACK + PAGE_SIZE - 4, b"12345678")
    assert caught.value.errno == EFAULT
    assert memory.read(0x20000, PAGE_SIZE) == bytes(PAGE_SIZE)


# -- 32-bit callers


@pytest.mark.parametrize(
    "mode, levels, gva, shift, at, expected",
    [
        (PAE, PageTables.PAE, 0x7000, 12, 5, 0x20005),
        (PAE, PageTables.PAE, 0xFFFF_F000, 12, 0xFFF, 0x20FFF),
        (PAE, PageTables.PAE, 0xC020_0000, 21, 0x12_3456, 0x32_3456),
        (LEGACY32, PageTables.LEGACY32, 0x7000, 12, 5, 0x20005),
        (LEGACY32, PageTables.LEGACY32, 0xFFFF_F000, 12, 0xFFF, 0x20FFF),
        (LEGACY32, PageTables.LEGACY32, 0xC040_0000, 22, 0x32_3456, 0x72_3456),
    ],
)
def test_32_bit_tables(
    mode: Mode, levels: tuple[int, ...], gva: int, shift: int, at: int, expected: int
) -> None:
    memory = FakeMemory()
    tables = PageTables(memory, levels=levels)
    tables.map(gva, {12: 0x20000, 21: 0x20_0000, 22: 0x40_0000}[shift], shift=shift)
    virtual = VirtualMemory(memory, tables.cr3 | 0x18, mode)
    assert virtual.translate(gva + at) == virtual.translate(gva + at, write=True) == expected
    for nowhere in (gva + 0x40_0000, gva + (1 << 32), 1 << 32, 1 << 63):
        with pytest.raises(XenError) as caught:
            virtual.translate(nowhere)
        assert caught.value.errno == EFAULT


@pytest.mark.parametrize("mode, levels", [(PAE, PageTables.PAE), (LEGACY32, PageTables.LEGACY32)])
def test_a_32_bit_read_only_page_is_not_written(mode: Mode, levels: tuple[int, ...]) -> None:
    memory = FakeMemory()
    tables = PageTables(memory, levels=levels)
    tables.map(0x7000, 0x20000, flags=PRESENT)
    virtual = VirtualMemory(memory, tables.cr3, mode)
    assert virtual.read(0x7FFC, 4) == bytes(4)
    with pytest.raises(XenError):
        virtual.write(0x7FFC, b"boom")


def test_pae_has_four_top_entries_at_any_32_bytes() -> None:
    memory = FakeMemory()
    tables = PageTables(memory, levels=PageTables.PAE)
    tables.map(0xC000_0000, 0x20000)
    memory.write(0x9020, memory.read(tables.cr3, 32))
    assert VirtualMemory(memory, 0x9020, PAE).translate(0xC000_0123) == 0x20123
    large = 0x20_0000 | HUGE | PRESENT  # no such thing at that level: the bit is nothing
    memory.write(0x9020, large.to_bytes(8, "little"))
    with pytest.raises(XenError):
        VirtualMemory(memory, 0x9020, PAE).translate(0x123)


def test_without_paging_addresses_are_physical() -> None:
    memory = FakeMemory()
    virtual = VirtualMemory(memory, 0xDEAD_BEEF, FLAT)
    virtual.write(0x8FFC, b"12345678")
    assert memory.read(0x8FFC, 8) == virtual.read(0x8FFC, 8) == b"12345678"
    for nowhere in (RAM - 4, RAM, 0xFFFF_FFFC, 1 << 32):
        with pytest.raises(XenError) as caught:
            virtual.write(nowhere, b"12345678")
        assert caught.value.errno == EFAULT
    assert memory.read(RAM - 4, 4) == bytes(4)


def test_tables_that_name_themselves_end() -> None:
    memory, tables, virtual = space()
    loop = (tables.cr3 | PRESENT | WRITE).to_bytes(8, "little")
    memory.write(tables.cr3, loop * 512)
    assert virtual.translate(0x123) == tables.cr3 + 0x123
    assert virtual.translate(STACK) == tables.cr3


@pytest.mark.parametrize("level", range(4))
def test_a_table_or_page_beyond_ram_is_a_fault(level: int) -> None:
    memory, tables, virtual = space()
    tables.map(STACK, 0x20000)
    table = tables.cr3
    for shift in (39, 30, 21, 12)[:level]:
        table = memory.word(table + (STACK >> shift & 511) * 8, 8) & ~0xFFF
    shift = (39, 30, 21, 12)[level]
    beyond = 0xF_FFFF_FFFF_F000 | PRESENT | WRITE
    memory.write(table + (STACK >> shift & 511) * 8, beyond.to_bytes(8, "little"))
    with pytest.raises(XenError) as caught:
        virtual.read(STACK, 8)
    assert caught.value.errno == EFAULT


def test_an_entry_is_read_once() -> None:
    """Tables that change under the walk give the old or the new page, never a mix."""
    memory, tables, virtual = space()
    tables.map(STACK, 0x20000)
    reads: list[int] = []
    memory.on_read = reads.append
    virtual.translate(STACK)
    assert len(reads) == len(set(reads)) == 4


entries = st.one_of(
    st.integers(0, 63).map(lambda gfn: gfn << 12 | PRESENT | WRITE),
    st.integers(0, 63).map(lambda gfn: gfn << 12 | PRESENT | HUGE),
    st.integers(0, 2**64 - 1),
)


@given(
    tables=st.lists(st.tuples(st.integers(0, 63), st.integers(0, 511), entries), max_size=40),
    cr3=st.integers(0, 2**64 - 1) | st.integers(0, 63).map(lambda gfn: gfn << 12),
    gva=st.integers(0, 2**64 - 1)
    | st.integers(0, RAM)
    | st.integers(0, 511).map(lambda n: n << 39 | n << 30 | n << 21 | n << 12),
    length=st.integers(0, 3 * PAGE_SIZE),
    mode=st.sampled_from([FLAT, LEGACY32, PAE, LONG]),
)
def test_whatever_the_tables_say_it_is_bytes_or_a_fault(
    tables: list[tuple[int, int, int]], cr3: int, gva: int, length: int, mode: Mode
) -> None:
    memory = FakeMemory()
    for gfn, slot, entry in tables:
        memory.write(gfn * PAGE_SIZE + slot * 8, entry.to_bytes(8, "little"))
    virtual = VirtualMemory(memory, cr3, mode)
    for act in (lambda: virtual.read(gva, length), lambda: virtual.write(gva, bytes(length))):
        try:
            data = act()
        except XenError as fault:
            assert fault.errno == EFAULT
        else:
            assert data is None or len(data) == length
    assert len(memory.bytes) == RAM
