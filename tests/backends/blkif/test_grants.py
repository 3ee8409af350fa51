"""A page that several requests, rings and others use at once: it is free for the guest after the last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.blkfront import pack_indirect, pack_request
from tests.fakes.disk import Disk
from tests.fakes.guest import Guest
from tests.fakes.slow_disk import SlowDisk
from xenpvd.abi.grant_table import GTF_permit_access, GTF_reading, GTF_readonly, GTF_writing
from xenpvd.abi.io_blkif import BLKIF_OP_READ, BLKIF_OP_WRITE, SEGMENT

READ, WRITE = BLKIF_OP_READ, BLKIF_OP_WRITE
FREE, READ_ONLY = GTF_permit_access, GTF_permit_access | GTF_reading
BUSY = READ_ONLY | GTF_writing

planes = pytest.mark.parametrize("one", [False, True], ids=["python", "native"])
and_planes = pytest.mark.parametrize("other", [False, True], ids=["and python", "and native"])


def test_two_requests_of_one_ring(slow: Callable[[bool], SlowDisk], guest: Guest) -> None:
    """The other plane carries out one after the other."""
    disk = slow(True)
    gref = guest.grant(guest.page())
    disk.begin(gref, gref)
    assert guest.flags(gref) == BUSY and guest.mapped[gref] == 2
    disk.finish()
    assert guest.flags(gref) == BUSY and guest.mapped[gref] == 1
    assert not guest.end_access(gref)
    disk.finish()
    assert guest.end_access(gref)


@planes
@and_planes
def test_two_rings(slow: Callable[[bool], SlowDisk], guest: Guest, one: bool, other: bool) -> None:
    disks = slow(one), slow(other)
    gref = guest.grant(guest.page())
    for disk in disks:
        disk.begin(gref)
    assert guest.mapped[gref] == 2
    disks[0].finish()
    assert guest.flags(gref) == BUSY and not guest.end_access(gref)
    disks[1].finish()
    assert guest.flags(gref) == FREE and guest.end_access(gref)


@planes
def test_who_writes_and_who_only_reads(slow: Callable[[bool], SlowDisk], guest: Guest, one: bool) -> None:
    disk = slow(one)
    gref = guest.grant(guest.page())
    looking = guest.map(gref, readonly=True)
    assert guest.flags(gref) == READ_ONLY
    disk.begin(gref)
    assert guest.flags(gref) == BUSY
    disk.finish()
    assert guest.flags(gref) == READ_ONLY
    looking.unmap()
    assert guest.flags(gref) == FREE


@planes
def test_a_guest_that_takes_the_page_back_by_force(
    slow: Callable[[bool], SlowDisk], guest: Guest, one: bool
) -> None:  # D4
    """What is under way ends in the page that it was; what the entry says is not touched or obeyed."""
    disk, page = slow(one), guest.page()
    gref = guest.grant(page)
    page.write(0, b"x" * 4096)
    for entry in ((0, 0, 0), (GTF_permit_access | GTF_readonly, 7, 33)):
        guest.regrant(gref, page)
        disk.begin(gref)
        guest.write_entry(gref, *entry)
        disk.finish()
        assert guest.entry(gref) == entry
    assert bytes(page.view) != b"x" * 4096
    disk.ring.submit(pack_request(READ, id=3, segments=[(gref, 0, 7)]))
    assert disk.ring.wait(1) == [(3, READ, -1)]


@planes
def test_storage_that_hangs_holds_up_nobody_else(
    slow: Callable[[bool], SlowDisk], guest: Guest, one: bool
) -> None:  # O9
    """Another disk goes on; to stop takes until the storage has answered, and nobody is blocked by that."""
    disk, other = slow(one), slow(True)
    gref, more = guest.grant(guest.page()), guest.grant(guest.page())
    disk.begin(gref)
    other.begin(more)
    other.finish()
    disk.plane.stop()
    assert disk.ends.empty() and disk.plane.stats()["in_flight"] == 1
    disk.finish()
    assert disk.ended() is None
    assert guest.end_access(gref)


def test_one_page_in_every_segment(disk_of_guest: Disk, guest: Guest) -> None:
    gref = guest.grant(guest.page())
    segments = [(gref, n, n) for n in range(8)] + [(gref, 0, 7)] * 3
    assert disk_of_guest.ring.do(pack_request(WRITE, segments=segments)) == [(0, WRITE, 0)]
    assert guest.flags(gref) == FREE


def test_a_request_that_fails_half_way_leaves_the_others_uses(
    disk_of_guest: Disk, guest: Guest
) -> None:  # D9
    gref = guest.grant(guest.page())
    held = guest.map(gref)
    bad = pack_request(READ, segments=[(gref, 0, 7), (gref, 0, 7), (4000, 0, 7)])
    assert disk_of_guest.ring.do(bad) == [(0, READ, -1)]
    assert guest.flags(gref) == BUSY and guest.mapped[gref] == 1
    held.unmap()
    assert guest.flags(gref) == FREE


def test_a_page_of_segments_that_names_itself(disk_of_guest: Disk, guest: Guest) -> None:  # C5
    page, ring = guest.page(), disk_of_guest.ring
    table = guest.grant(page)
    for n in range(32):
        SEGMENT.pack_into(page.view, n * SEGMENT.size, table, 0, 7)
    held = guest.map(table, readonly=True)
    assert ring.do(pack_indirect(READ, 32, [table], id=1, sector=8)) == [(1, READ, 0)]
    assert guest.flags(table) == READ_ONLY and guest.mapped[table] == 1
    held.unmap()
    assert guest.flags(table) == FREE
    assert bytes(page.view) == disk_of_guest.contents()[4096 * 32 : 4096 * 33]


def test_the_ring_itself_as_data(disk_of_guest: Disk, guest: Guest) -> None:  # C5
    """A guest may have its ring written to the disk; it stays a ring, and in use."""
    ring = disk_of_guest.ring
    held = guest.map(ring.gref)
    assert ring.do(pack_request(WRITE, id=4, segments=[(ring.gref, 0, 7)])) == [(4, WRITE, 0)]
    assert guest.flags(ring.gref) == BUSY
    assert disk_of_guest.contents()[64:68] == bytes([WRITE, 1, 0, 0])
    held.unmap()


@pytest.mark.timeout(60)
def test_nobody_is_ever_told_that_a_used_page_is_free(path: Path, tmp_path: Path, guest: Guest) -> None:
    """Three rings hammer on one page; whoever has mapped it finds it marked, until it gives it back."""
    gref, over = guest.grant(guest.page()), threading.Event()
    disks = [Disk(copy(path, tmp_path, n), native=n < 2, gnttab=guest) for n in range(3)]
    for disk in disks:
        disk.start()

    def hammer(disk: Disk) -> None:
        slots = [pack_request(READ, id=n, segments=[(gref, 0, 0)] * 11) for n in range(8)]
        while not over.is_set():
            disk.ring.do(*slots)

    threads = [threading.Thread(target=hammer, args=(disk,)) for disk in disks]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30_000):
            grant = guest.map(gref)
            assert guest.flags(gref) == BUSY
            grant.unmap()
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for disk in disks:
            disk.close()
    assert guest.flags(gref) == FREE and not guest.mapped


def copy(path: Path, tmp_path: Path, n: int) -> Path:
    twin = tmp_path / f"twin{n}.img"
    twin.write_bytes(path.read_bytes())
    return twin


@pytest.fixture
def disk_of_guest(path: Path, native: bool, guest: Guest) -> Iterator[Disk]:
    disk = Disk(path, native=native, gnttab=guest)
    disk.start()
    yield disk
    assert disk.end() is None
    disk.close()
