"""memory_op, for callers of both widths."""

from __future__ import annotations

import pytest

from tests.vmm.xen.bench import CLAIM_END, CLAIMABLE, DOMID, E820, RAM_PAGES, Bench
from xenpvd.abi import memory as m
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE

MEMORY = x.HYPERVISOR_memory_op
SELF = x.DOMID_SELF


@pytest.mark.parametrize("room, given", [(128, 3), (3, 3), (1, 1), (0, 0), (2**32 - 1, 3)])
def test_memory_map(bench: Bench, room: int, given: int) -> None:
    buffer = bench.arg + 0x100
    asked = bench.ask(MEMORY, m.XENMEM_memory_map, m.xen_memory_map, room, buffer)
    assert asked == (0, given, buffer)
    assert list(m.e820entry.iter_unpack(bench.virtual.read(buffer, 20 * given))) == E820[:given]


def test_memory_map_into_nowhere(bench: Bench) -> None:
    fields = 128, bench.nowhere - 4
    assert bench.ask(MEMORY, m.XENMEM_memory_map, m.xen_memory_map, *fields)[0] == -x.EFAULT


# -- add_to_physmap, its batch, and back


def place(bench: Bench, space: int, idx: int, gfn: int, domid: int = SELF) -> int:
    fields = domid, 0, space, idx, gfn
    return bench.ask(MEMORY, m.XENMEM_add_to_physmap, m.xen_add_to_physmap, *fields)[0]


def place_all(bench: Bench, space: int, *pairs: tuple[int, int], foreign: int = 0) -> tuple[int, list[int]]:
    """(result, status of each) of a batch."""
    idxs = bench.ulongs(bench.arg + 0x100, *(idx for idx, _ in pairs))
    gfns = bench.ulongs(bench.arg + 0x200, *(gfn for _, gfn in pairs))
    errs = bench.arg + 0x300
    bench.virtual.write(errs, b"\x55" * 4 * len(pairs))
    fields = SELF, space, len(pairs), foreign, idxs, gfns, errs
    result = bench.ask(MEMORY, m.XENMEM_add_to_physmap_batch, m.xen_add_to_physmap_batch, *fields)[0]
    raw = bench.virtual.read(errs, 4 * len(pairs))
    return result, [int.from_bytes(raw[n : n + 4], "little", signed=True) for n in range(0, len(raw), 4)]


@pytest.mark.parametrize("gfn", [12, CLAIMABLE, CLAIM_END - 1])
def test_shared_info_goes_where_memory_can_be(bench: Bench, gfn: int) -> None:
    assert place(bench, m.XENMAPSPACE_shared_info, 0, gfn) == 0
    assert bench.platform.calls == [("shared_info", gfn)]
    assert bench.platform.is_backed(gfn)


def test_grant_frames(bench: Bench) -> None:
    assert place(bench, m.XENMAPSPACE_grant_table, 0, 12, domid=DOMID) == 0
    assert place(bench, m.XENMAPSPACE_grant_table, 3, 13) == 0
    assert bench.gnttab.nr_frames == 4
    assert bench.platform.claimed == {12, 13}


@pytest.mark.parametrize(
    "domid, space, idx, gfn, error",
    [
        (0, 0, 0, 12, x.EPERM),
        (2, 0, 0, 12, x.ESRCH),
        (SELF, 0, 1, 12, x.EINVAL),
        (SELF, 2, 0, 12, x.EINVAL),
        (SELF, 3, 0, 12, x.EINVAL),
        (SELF, 4, 0, 12, x.ENOSYS),
        (SELF, 5, 0, 12, x.EACCES),
        (SELF, 2**32 - 1, 0, 12, x.EINVAL),
        (SELF, 0, 0, CLAIM_END, x.EINVAL),
        (SELF, 1, 0, 2**32 - 1, x.EINVAL),
        (SELF, 1, 64, 12, x.EINVAL),
        (SELF, 1, 1 << 31, 12, x.EINVAL),  # a status frame of version 2
        (SELF, 1, 2**32 - 1, 12, x.EINVAL),
    ],
)
def test_add_to_physmap_refuses(bench: Bench, domid: int, space: int, idx: int, gfn: int, error: int) -> None:
    """E9, E14: and nothing is claimed of the host for a refused one."""
    assert place(bench, space, idx, gfn, domid) == -error
    assert bench.platform.calls == [] and bench.gnttab.nr_frames == 0
    assert bench.platform.claimed == set()


def test_add_to_physmap_of_64_bit_absurdities() -> None:
    bench = Bench()
    for idx, gfn in ((2**64 - 1, 12), (0, 2**64 - 1), (0, 2**52)):
        assert place(bench, m.XENMAPSPACE_grant_table, idx, gfn) == -x.EINVAL


def test_a_batch_has_a_status_for_each(bench: Bench) -> None:
    placed = place_all(
        bench, m.XENMAPSPACE_grant_table, (0, 12), (64, 13), (1, CLAIM_END), (2, CLAIMABLE - 1)
    )
    assert placed[0] == 0 and placed[1][:3] == [0, -x.EINVAL, -x.EINVAL]
    assert bench.gnttab.frames()[0] == 12
    assert bench.platform.breaks == 3, "others are let in between them"
    assert place_all(bench, m.XENMAPSPACE_shared_info, (0, 14)) == (0, [0])
    assert bench.platform.calls == [("shared_info", 14)]
    assert place_all(bench, m.XENMAPSPACE_shared_info) == (0, [])


def test_batches_that_are_refused(bench: Bench) -> None:
    assert place_all(bench, m.XENMAPSPACE_gmfn_range, (0, 12))[0] == -x.EOPNOTSUPP
    assert place_all(bench, m.XENMAPSPACE_gmfn_foreign, (0, 12), (1, 13)) == (0, [-x.EPERM] * 2)
    assert place_all(bench, m.XENMAPSPACE_gmfn_foreign, (0, 12), foreign=9) == (0, [-x.ESRCH])
    assert place_all(bench, m.XENMAPSPACE_dev_mmio, (0, 12)) == (0, [-x.EACCES])
    for domid, size, error in ((0, 1, x.EPERM), (7, 1, x.ESRCH), (SELF, 0xFFFF, x.EINVAL)):
        fields = domid, m.XENMAPSPACE_grant_table, size, 0, bench.arg, bench.arg, bench.arg
        asked = bench.ask(MEMORY, m.XENMEM_add_to_physmap_batch, m.xen_add_to_physmap_batch, *fields)
        assert asked[0] == -error
    assert bench.platform.claimed == set()


@pytest.mark.parametrize("which", range(3))
def test_a_batch_with_an_array_nowhere(bench: Bench, which: int) -> None:
    arrays = [bench.arg + 0x100] * 3
    arrays[which] = bench.nowhere
    fields = SELF, m.XENMAPSPACE_grant_table, 2, 0, *arrays
    asked = bench.ask(MEMORY, m.XENMEM_add_to_physmap_batch, m.xen_add_to_physmap_batch, *fields)
    assert asked[0] == -x.EFAULT


def remove(bench: Bench, gfn: int, domid: int = SELF) -> int:
    return bench.ask(MEMORY, m.XENMEM_remove_from_physmap, m.xen_remove_from_physmap, domid, gfn)[0]


def test_remove_from_physmap(bench: Bench) -> None:
    assert place(bench, m.XENMAPSPACE_grant_table, 0, CLAIM_END - 1) == -x.EFAULT, (
        "FakeMemory has no such page"
    )
    assert remove(bench, 12) == 0
    assert bench.platform.calls == [("discard", 12)]
    assert reservation_size(bench, m.XENMEM_current_reservation) == RAM_PAGES - 1
    assert remove(bench, CLAIM_END - 1) == 0, "Xen's own page stays"
    assert remove(bench, CLAIMABLE) == -x.ENOENT
    assert remove(bench, 12, domid=0) == -x.EPERM
    assert remove(bench, 12, domid=3) == -x.ESRCH
    assert bench.platform.calls == [("discard", 12)]


# -- the balloon


def reservation(
    bench: Bench, op: int, gfns: list[int], *, count: int | None = None, order: int = 0, domid: int = SELF
) -> int:
    extents = bench.ulongs(bench.arg + 0x100, *gfns)
    fields = extents, len(gfns) if count is None else count, order, 0, domid
    return bench.ask(MEMORY, op, m.xen_memory_reservation, *fields)[0]


def reservation_size(bench: Bench, op: int, domid: int = SELF) -> int:
    return bench.ask(MEMORY, op, m.xen_memory_domain, domid)[0]


GIVE, TAKE = m.XENMEM_decrease_reservation, m.XENMEM_populate_physmap


def test_the_balloon_gives_back_and_takes(bench: Bench) -> None:
    assert reservation(bench, GIVE, [5, 7, 9]) == 3
    assert reservation_size(bench, m.XENMEM_current_reservation) == RAM_PAGES - 3
    assert reservation(bench, TAKE, [5, 7]) == 2
    assert reservation(bench, GIVE, [16], order=2) == 1
    assert bench.platform.calls == [
        *(("discard", gfn) for gfn in (5, 7, 9)),
        *(("populate", gfn) for gfn in (5, 7)),
        *(("discard", gfn) for gfn in range(16, 20)),
    ]
    assert reservation_size(bench, m.XENMEM_current_reservation) == RAM_PAGES - 5
    assert reservation_size(bench, m.XENMEM_maximum_reservation) == RAM_PAGES


@pytest.mark.parametrize("op", [GIVE, TAKE])
@pytest.mark.parametrize(
    "gfns, done", [([5, 64, 6], 1), ([CLAIMABLE], 0), ([2**32 - 1], 0), ([2**31], 0), ([], 0)]
)
def test_the_answer_is_how_many_extents_were_done(bench: Bench, op: int, gfns: list[int], done: int) -> None:
    assert reservation(bench, op, gfns) == done
    assert len(bench.platform.calls) == done


@pytest.mark.parametrize("op", [GIVE, TAKE])
@pytest.mark.parametrize(
    "gfns, order, domid", [([1], 10, SELF), ([1], 2**32 - 1, SELF), ([1], 0, 0), ([1], 0, 5), ([62], 2, SELF)]
)
def test_reservations_that_are_refused_do_nothing(
    bench: Bench, op: int, gfns: list[int], order: int, domid: int
) -> None:
    """As in Xen, where the answer counts and is no error."""
    assert reservation(bench, op, gfns, order=order, domid=domid) == 0
    assert bench.platform.calls == []


def test_reservations_are_bounded(bench: Bench) -> None:
    """E14: an absurd count holds nobody up; what was done is said."""
    full = [1] * 400
    assert reservation(bench, GIVE, full, count=2**32 - 1) == len(bench.platform.calls) == 64
    bench.platform.calls.clear()
    assert reservation(bench, GIVE, [0] * 400, count=2**31, order=5) == 32
    assert len(bench.platform.calls) == 1024
    assert reservation_size(bench, m.XENMEM_current_reservation) == RAM_PAGES - 32, "the same many times"


def test_pages_that_were_taken_twice_are_no_more_than_there_are(bench: Bench) -> None:
    assert reservation(bench, TAKE, [1, 1, 1]) == 3
    assert reservation_size(bench, m.XENMEM_current_reservation) == RAM_PAGES


def test_extents_that_run_into_nowhere_end_there(bench: Bench) -> None:
    size = bench.caller.ulong
    extents = bench.ulongs(bench.read_only - 2 * size, 5, 5)
    bench.memory.write(0x5000, (99).to_bytes(8, "little") * 512)  # not RAM
    fields = extents, 3, 0, 0, DOMID
    assert bench.ask(MEMORY, GIVE, m.xen_memory_reservation, *fields)[0] == 2


def test_pages_without_a_place_are_not_given(bench: Bench) -> None:
    """E14."""
    assert reservation(bench, m.XENMEM_increase_reservation, [0] * 8, count=2**31) == 0
    assert reservation(bench, m.XENMEM_increase_reservation, [0], order=2**31) == 0
    assert bench.platform.calls == []


# -- sizes


def test_the_highest_frames(bench: Bench) -> None:
    assert reservation_size(bench, m.XENMEM_maximum_gpfn) == 0xFEFFF
    assert bench.call(MEMORY, m.XENMEM_maximum_ram_page, bench.nowhere) == 0xFEFFF


@pytest.mark.parametrize(
    "op", [m.XENMEM_current_reservation, m.XENMEM_maximum_reservation, m.XENMEM_maximum_gpfn]
)
def test_sizes_of_others(bench: Bench, op: int) -> None:
    assert reservation_size(bench, op, 0) == -x.EPERM
    assert reservation_size(bench, op, 2) == -x.ESRCH
    assert reservation_size(bench, op, DOMID) == reservation_size(bench, op) > 0


def test_a_struct_may_cross_pages_that_lie_apart(bench: Bench) -> None:
    fields = SELF, 0, m.XENMAPSPACE_shared_info, 0, 12
    asked = bench.ask(MEMORY, m.XENMEM_add_to_physmap, m.xen_add_to_physmap, *fields, at=bench.last)
    assert asked[0] == 0
    across = bench.read_only - 4  # its end is in a page that is read-only, which a read bears
    raw = bench.caller.layout(m.xen_add_to_physmap).pack(*fields)
    bench.memory.write(0x3000 + PAGE_SIZE - 4, raw[:4])
    bench.memory.write(0x5000, raw[4:])
    assert bench.call(MEMORY, m.XENMEM_add_to_physmap, across) == 0
