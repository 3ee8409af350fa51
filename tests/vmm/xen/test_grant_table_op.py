"""grant_table_op, for callers of both widths: the table's size, and copies of the guest's own pages."""

from __future__ import annotations

import struct

import pytest

from tests.vmm.xen.bench import DOMID, Bench
from xenpvd.abi import grant_table as g
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE

GNTTAB = x.HYPERVISOR_grant_table_op
SELF = x.DOMID_SELF
ARRAYS = [g.GNTTABOP_map_grant_ref, g.GNTTABOP_unmap_grant_ref, g.GNTTABOP_copy]
TABLE = 12  # where the first grant frame lies


def one(bench: Bench, op: int, layout: struct.Struct | x.Layouts, *fields: int) -> tuple[int, ...]:
    at = bench.put(layout, *fields)
    return bench.call(GNTTAB, op, at, 1), *bench.get(layout)


# -- the table


@pytest.mark.parametrize(
    "dom, answer",
    [
        (SELF, (2, 64, g.GNTST_okay)),
        (DOMID, (2, 64, g.GNTST_okay)),
        (0, (9, 9, g.GNTST_permission_denied)),
        (5, (9, 9, g.GNTST_bad_domain)),
    ],
)
def test_query_size(bench: Bench, dom: int, answer: tuple[int, ...]) -> None:
    bench.gnttab.set_frame(1, TABLE)
    assert one(bench, g.GNTTABOP_query_size, g.gnttab_query_size, dom, 9, 9, 9) == (0, dom, *answer)


@pytest.mark.parametrize("op", [g.GNTTABOP_query_size, g.GNTTABOP_setup_table])
@pytest.mark.parametrize("count", [0, 2, 2**31, 2**32 - 1])
def test_one_table_at_a_time(bench: Bench, op: int, count: int) -> None:
    assert bench.call(GNTTAB, op, bench.arg, count) == -x.EINVAL


def setup(bench: Bench, nr_frames: int, frame_list: int, dom: int = SELF) -> int:
    layout = g.gnttab_setup_table
    result, *fields = one(bench, g.GNTTABOP_setup_table, layout, dom, nr_frames, 77, frame_list)
    assert result == 0 and fields[:2] == [dom, nr_frames] and fields[3] == frame_list
    return fields[2]


def test_setup_table_says_where_the_frames_are(bench: Bench) -> None:
    bench.gnttab.set_frame(0, TABLE)
    bench.gnttab.set_frame(2, 14)
    array, size = bench.arg + 0x100, bench.caller.ulong
    bench.virtual.write(array, b"\x55" * 64)
    assert setup(bench, 5, array) == g.GNTST_okay
    none = (1 << 8 * size) - 1
    assert [bench.caller.read_ulong(array, n) for n in range(5)] == [TABLE, none, 14, none, none]
    assert bench.virtual.read(array + 5 * size, 8) == b"\x55" * 8
    assert setup(bench, 0, 0) == g.GNTST_okay


@pytest.mark.parametrize(
    "nr_frames, dom, status",
    [
        (65, SELF, g.GNTST_general_error),
        (2**32 - 1, SELF, g.GNTST_general_error),
        (1, 0, g.GNTST_permission_denied),
        (1, 9, g.GNTST_bad_domain),
    ],
)
def test_setup_table_refuses(bench: Bench, nr_frames: int, dom: int, status: int) -> None:
    bench.virtual.write(bench.arg + 0x100, b"\x55" * 8)
    assert setup(bench, nr_frames, bench.arg + 0x100, dom) == status
    assert bench.virtual.read(bench.arg + 0x100, 8) == b"\x55" * 8


def test_setup_table_into_nowhere(bench: Bench) -> None:
    assert setup(bench, 1, bench.nowhere) == g.GNTST_bad_virt_addr


def test_versions(bench: Bench) -> None:
    """D11."""
    for dom, result in ((SELF, 0), (DOMID, 0), (0, -x.EPERM), (5, -x.ESRCH)):
        asked = one(bench, g.GNTTABOP_get_version, g.gnttab_get_version, dom, 9)
        assert asked == (result, dom, 9 if result else 1)
    for version, result in ((1, 0), (2, -x.ENOSYS), (0, -x.EINVAL), (3, -x.EINVAL), (2**32 - 1, -x.EINVAL)):
        assert one(bench, g.GNTTABOP_set_version, g.gnttab_set_version, version) == (result, 1)


@pytest.mark.parametrize("op", [3, 4, 7, 9, 11, 12, 255])
def test_what_is_not_offered(bench: Bench, op: int) -> None:
    assert bench.call(GNTTAB, op, bench.arg, 1) == -x.ENOSYS


# -- arrays of operations


def test_nobody_grants_this_guest_anything(bench: Bench) -> None:
    size = g.gnttab_map_grant_ref.size
    for n, dom in enumerate((0, DOMID, 5)):
        bench.put(g.gnttab_map_grant_ref, 2**40, 2, 8, dom, 7, 7, 7, at=bench.arg + n * size)
    assert bench.call(GNTTAB, g.GNTTABOP_map_grant_ref, bench.arg, 3) == 0
    for n, dom in enumerate((0, DOMID, 5)):
        asked = bench.get(g.gnttab_map_grant_ref, bench.arg + n * size)
        assert asked == (2**40, 2, 8, dom, g.GNTST_bad_domain, 7, 7)
    asked = one(bench, g.GNTTABOP_unmap_grant_ref, g.gnttab_unmap_grant_ref, 2**40, 0, 7, 0)
    assert asked == (0, 2**40, 0, 7, g.GNTST_bad_handle)


@pytest.mark.parametrize("op", ARRAYS)
def test_arrays_are_bounded_and_may_be_empty(bench: Bench, op: int) -> None:
    """D10."""
    for count in (33, 2**31, 2**32 - 1):
        assert bench.call(GNTTAB, op, bench.arg, count) == -x.EINVAL
    assert bench.call(GNTTAB, op, bench.nowhere, 0) == 0
    assert bench.call(GNTTAB, op, bench.read_only, 1) == -x.EFAULT
    assert bench.call(GNTTAB, op, bench.read_only - 4, 1) == -x.EFAULT


# -- copies

GRANTED, READ_ONLY, ELSEWHERE, OTHER = 8, 9, 10, 11  # references
SRC, DST, SHARED = 20, 21, 22  # frames


@pytest.fixture
def copying(bench: Bench) -> Bench:
    bench.gnttab.set_frame(0, TABLE)
    for gref, flags, domid in (
        (GRANTED, g.GTF_permit_access, DOMID),
        (READ_ONLY, g.GTF_permit_access | g.GTF_readonly, DOMID),
        (ELSEWHERE, g.GTF_permit_access, 0),
        (OTHER, 0, DOMID),
    ):
        entry = g.grant_entry_v1.pack(flags, domid, SHARED)
        bench.memory.write(TABLE * PAGE_SIZE + gref * 8, entry)
    for gfn in (SRC, SHARED):
        bench.memory.write(gfn * PAGE_SIZE, bytes([gfn]) * PAGE_SIZE)
    return bench


def copy(
    bench: Bench, source: tuple[int, int, int], dest: tuple[int, int, int], length: int, flags: int
) -> int:
    fields = *source, *dest, length, flags
    result, *after, status = one(bench, g.GNTTABOP_copy, g.gnttab_copy, *fields, 77)
    assert (result, tuple(after)) == (0, fields)
    return status


@pytest.mark.parametrize(
    "source, flags, content",
    [((SRC, SELF), 0, SRC), ((GRANTED, SELF), 1, SHARED), ((GRANTED, DOMID), 1, SHARED),
     ((READ_ONLY, SELF), 1, SHARED)],
)  # fmt: skip
def test_a_copy(copying: Bench, source: tuple[int, int], flags: int, content: int) -> None:
    assert copy(copying, (*source, 4000), (DST, SELF, 8), 96, flags) == g.GNTST_okay
    expected = bytes(8) + bytes([content]) * 96 + bytes(PAGE_SIZE - 104)
    assert copying.memory.read(DST * PAGE_SIZE, PAGE_SIZE) == expected
    assert copying.gnttab.active == 0


def test_a_copy_into_a_grant(copying: Bench) -> None:
    assert copy(copying, (SRC, SELF, 0), (GRANTED, SELF, 0), PAGE_SIZE, 2) == g.GNTST_okay
    assert copying.memory.read(SHARED * PAGE_SIZE, PAGE_SIZE) == bytes([SRC]) * PAGE_SIZE
    assert copying.gnttab.active == 0
    entry = copying.memory.read(TABLE * PAGE_SIZE + GRANTED * 8, 2)
    assert int.from_bytes(entry, "little") == g.GTF_permit_access, "no mark stays"


@pytest.mark.parametrize(
    "source, dest, length, flags, status",
    [
        ((SRC, DOMID, 0), (DST, SELF, 0), 8, 0, g.GNTST_permission_denied),  # frames: only by DOMID_SELF
        ((SRC, 0, 0), (DST, SELF, 0), 8, 0, g.GNTST_permission_denied),
        ((SRC, SELF, 0), (DST, 5, 0), 8, 0, g.GNTST_permission_denied),
        ((8, 0, 0), (DST, SELF, 0), 8, 1, g.GNTST_bad_domain),
        ((SRC, SELF, 0), (8, 5, 0), 8, 2, g.GNTST_bad_domain),
        ((ELSEWHERE, SELF, 0), (DST, SELF, 0), 8, 1, g.GNTST_bad_domain),
        ((OTHER, SELF, 0), (DST, SELF, 0), 8, 1, g.GNTST_bad_gntref),
        ((2**32 - 1, SELF, 0), (DST, SELF, 0), 8, 1, g.GNTST_bad_gntref),
        ((SRC, SELF, 0), (READ_ONLY, SELF, 0), 8, 2, g.GNTST_permission_denied),
        ((64, SELF, 0), (DST, SELF, 0), 8, 0, g.GNTST_bad_page),
        ((SRC, SELF, 0), (2**32 - 1, SELF, 0), 8, 0, g.GNTST_bad_page),
        ((SRC, SELF, 4095), (DST, SELF, 0), 2, 0, g.GNTST_bad_copy_arg),  # D12
        ((SRC, SELF, 0), (DST, SELF, 4090), 8, 0, g.GNTST_bad_copy_arg),
        ((SRC, SELF, 4097), (DST, SELF, 0), 0, 0, g.GNTST_bad_copy_arg),
        ((SRC, SELF, 0), (DST, SELF, 0), 65535, 0, g.GNTST_bad_copy_arg),
        ((SRC, SELF, 65535), (DST, SELF, 65535), 65535, 0, g.GNTST_bad_copy_arg),
    ],
)
def test_a_copy_that_is_refused(
    copying: Bench,
    source: tuple[int, int, int],
    dest: tuple[int, int, int],
    length: int,
    flags: int,
    status: int,
) -> None:
    pages = copying.memory.read(TABLE * PAGE_SIZE, 20 * PAGE_SIZE)
    assert copy(copying, source, dest, length, flags) == status
    assert copying.memory.read(TABLE * PAGE_SIZE, 20 * PAGE_SIZE) == pages
    assert copying.gnttab.active == 0


def test_a_bad_copy_stops_no_other(copying: Bench) -> None:
    """D9: each has its status."""
    size = copying.caller.layout(g.gnttab_copy).size
    for n, source in enumerate((SRC, 64, SRC)):
        fields = source, SELF, 0, DST, SELF, 8 * n, 8, 0, 77
        copying.put(g.gnttab_copy, *fields, at=copying.arg + n * size)
    assert copying.call(GNTTAB, g.GNTTABOP_copy, copying.arg, 3) == 0
    statuses = [copying.get(g.gnttab_copy, copying.arg + n * size)[-1] for n in range(3)]
    assert statuses == [g.GNTST_okay, g.GNTST_bad_page, g.GNTST_okay]
    assert copying.memory.read(DST * PAGE_SIZE, 32) == bytes([SRC] * 8 + [0] * 8 + [SRC] * 8 + [0] * 8)
