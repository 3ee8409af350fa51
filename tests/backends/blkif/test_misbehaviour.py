"""Guests that behave badly with rings of several pages, tables of segments and grants, on both planes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.blkfront import pack_discard, pack_indirect, pack_request
from tests.fakes.disk import Disk
from tests.fakes.guest import Guest
from tests.fakes.slow_disk import SlowDisk
from xenpvd.abi.grant_table import GTF_permit_access, GTF_readonly
from xenpvd.abi.io_blkif import (
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    SEGMENT,
    X86_32,
    X86_64,
    Abi,
)
from xenpvd.abi.io_ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from xenpvd.backends.blkif.request import Offer
from xenpvd.errors import GuestFault
from xenpvd.vmm.memory import allocate

READ, WRITE, FLUSH = BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE
SECTORS = 2048


@pytest.fixture
def disk(path: Path, native: bool, guest: Guest) -> Iterator[Disk]:
    """On either plane, with a guest whose grant table is real."""
    disk = Disk(path, native=native, gnttab=guest)
    yield disk
    disk.close()


# ---- rings


@pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)
@pytest.mark.parametrize("order", [1, 4])
def test_large_rings_whose_indexes_wrap(path: Path, native: bool, abi: Abi, order: int) -> None:  # A7, A12
    """Slots that begin in one page and end in the next; all of them at once, with one id or each its own."""
    start = 2**32 - 3
    disk = Disk(path, native=native, abi=abi, order=order, start=start)
    try:
        ring, contents = disk.start(), disk.contents()
        assert ring.size == {1: 64, 4: 512}[order]
        pages = [ring.data_page() for _ in range(ring.size)]
        for lap in range(2):
            sectors = random.Random(lap).choices(range(SECTORS - 7), k=ring.size)
            slots = [
                pack_request(READ, id=n << 32, sector=sector, segments=[(gref, 0, 7)], abi=abi)
                for n, (sector, (_, gref)) in enumerate(zip(sectors, pages, strict=True))
            ]
            assert ring.do(*slots) == [(n << 32, READ, 0) for n in range(ring.size)]
            for sector, (page, _) in zip(sectors, pages, strict=True):
                assert bytes(page.view) == contents[sector * 512 : sector * 512 + 4096]
            assert ring.do(*[pack_request(FLUSH, id=5, abi=abi)] * ring.size) == [(5, FLUSH, 0)] * ring.size
        assert ring.page.load32(REQ_PROD) == (start + 4 * ring.size) % 2**32
        assert disk.end() is None
    finally:
        disk.close()


@pytest.mark.parametrize("order", [0, 4])
def test_a_guest_that_takes_no_responses(path: Path, native: bool, order: int) -> None:  # A11
    """Its loss: they are overwritten. We have a ring's worth of requests under way at most, and go on."""
    disk = Disk(path, native=native, order=order)
    try:
        ring = disk.start()
        _, gref = ring.data_page()
        slots = [pack_request(READ, id=n, segments=[(gref, 0, 0)]) for n in range(ring.size)]
        for lap in range(1, 4):
            ring.submit(*slots)
            while ring.page.load32(RSP_PROD) != lap * ring.size:
                assert disk.ends.empty() and disk.plane.stats()["in_flight"] <= ring.size
        ring.rsp_cons = ring.page.load32(RSP_PROD)
        assert ring.do(slots[7]) == [(7, READ, 0)]
        assert disk.plane.stats()["reads"] == 3 * ring.size + 1
        ring.page.store32(REQ_PROD, 3 * ring.size + 1 + ring.size + 1)
        ring.kick()
        assert isinstance(disk.ended(), GuestFault), "one more than there is room for"
    finally:
        disk.close()


def test_one_request_too_many_while_others_are_under_way(
    slow: Callable[[bool], SlowDisk], guest: Guest
) -> None:  # A1
    """What is under way has its slot until it is answered. The other plane looks when it has answered all."""
    disk = slow(True)
    grefs = [guest.grant(guest.page()) for _ in range(31)]
    disk.begin(*grefs)
    for _ in range(2):
        disk.ring.put(pack_request(READ, id=77, segments=[(grefs[0], 0, 7)]))
    disk.ring.push()
    disk.ring.kick()
    disk.finish_all(31)
    assert isinstance(disk.ended(), GuestFault)
    assert 77 not in [id_ for id_, _, _ in disk.ring.take()]


def test_requests_that_come_while_another_one_is_under_way(
    slow: Callable[[bool], SlowDisk], guest: Guest
) -> None:  # A3, O9
    """Each kick is heard, however long that one takes. The other plane carries out one after the other."""
    disk = slow(True)
    disk.begin(guest.grant(guest.page()))
    for n in range(3):
        while disk.ring.page.load32(REQ_EVENT) != disk.ring.req_prod + 1:
            assert disk.ends.empty()  # it is about to sleep
        disk.ring.submit(pack_request(77, id=n))
        assert disk.ring.wait(1) == [(n, 77, -2)]
    disk.finish()


def test_a_guest_that_has_asked_for_no_more_is_not_notified(disk: Disk) -> None:  # A6
    ring = disk.start()
    assert ring.flush() == 0
    ring.page.store32(RSP_EVENT, 1)  # the response that it has taken
    ring.submit(pack_request(FLUSH, id=1))
    while ring.page.load32(RSP_PROD) != 2:
        assert disk.ends.empty()
    assert disk.end() is None
    assert not disk.port.guest_pending()
    assert disk.plane.stats()["notifications_suppressed"] == 1


def test_a_ring_that_is_taken_away(disk: Disk, guest: Guest) -> None:  # A10
    """The guest revokes the ring's grant, and gives the page back: the plane ends, and we do not."""
    ring = disk.start()
    held = guest.map(ring.gref)
    assert ring.flush() == 0
    assert not guest.end_access(ring.gref), "a guest that behaves would not"
    guest.write_entry(ring.gref, 0, 0, 0)
    guest.ram.discard(ring.page.gfn)  # type: ignore[attr-defined]
    ring.kick()
    assert isinstance(disk.ended(), GuestFault)
    held.unmap()
    assert guest.flags(ring.gref) == 0


# ---- requests


def test_writes_over_each_other_in_one_batch(disk: Disk) -> None:  # B17
    ring, rng = disk.start(), random.Random(17)
    pages = [ring.data_page(readonly=True) for _ in range(32)]
    for n, (page, _) in enumerate(pages):
        page.write(0, bytes([n + 1]) * 4096)
    before = disk.contents()
    for _ in range(20):
        places = [rng.randrange(24) for _ in pages]
        ring.do(
            *[
                pack_request(WRITE, id=n, sector=place, segments=[(gref, 0, 7)])
                for n, (place, (_, gref)) in enumerate(zip(places, pages, strict=True))
            ]
        )
        after = disk.contents()
        for sector in range(32):
            written = after[sector * 512 : (sector + 1) * 512]
            writers = {n + 1 for n, place in enumerate(places) if place <= sector < place + 8}
            if writers:
                assert len(set(written)) == 1 and written[0] in writers, "a whole sector of one of them"
        assert after[32 * 512 :] == before[32 * 512 :]


def test_garbage_behind_the_last_segment(disk: Disk) -> None:  # C6
    ring, before = disk.start(), disk.contents()
    page, table = ring.data_page()
    data, gref = ring.data_page()
    page.write(0, b"\xff" * 4096)
    SEGMENT.pack_into(page.view, 0, gref, 0, 3)
    SEGMENT.pack_into(page.view, 8, gref, 4, 7)
    assert ring.do(pack_indirect(READ, 2, [table, 2**32 - 1], id=1)) == [(1, READ, 0)]
    assert bytes(data.view) == before[:4096]


def test_numbers_at_their_edges(disk: Disk) -> None:  # B5, B6, C1
    ring, before = disk.start(), disk.contents()
    _, gref = ring.data_page()
    table_page, table = ring.data_page()
    for n in range(257):
        SEGMENT.pack_into(table_page.view, 8 * n, gref, 0, 0)
    good = [
        pack_request(READ, id=1, sector=SECTORS - 8, segments=[(gref, 0, 7)]),
        pack_request(READ, id=2, sector=SECTORS - 1, segments=[(gref, 7, 7)]),
        pack_request(READ, id=3, segments=[(gref, 0, 0)] * 11),
        pack_indirect(READ, 256, [table], id=4, sector=SECTORS - 256),
        pack_discard(SECTORS - 8, 8, id=5),
    ]
    bad = [
        pack_request(READ, id=11, sector=SECTORS - 7, segments=[(gref, 0, 7)]),
        pack_request(READ, id=12, sector=2**64 - 8, segments=[(gref, 0, 7)]),
        pack_request(READ, id=13, segments=[(gref, 0, 0)], nr_segments=12),
        pack_request(READ, id=14, segments=[(gref, 0, 8)]),
        pack_request(READ, id=15, segments=[(gref, 5, 4)]),
        pack_indirect(READ, 257, [table], id=16),
        pack_request(READ, id=20, segments=[(gref, 5, 4), (gref, 0, 7)]),
        pack_indirect(READ, 256, [table], id=17, sector=SECTORS - 255),
        pack_discard(SECTORS - 8, 9, id=18),
        pack_discard(2**64 - 8, 16, id=19),
    ]
    answers = {id_: status for id_, _, status in ring.do(*good, *bad)}
    assert answers == {**dict.fromkeys(range(1, 6), 0), **dict.fromkeys(range(11, 21), -1)}
    assert disk.contents()[: (SECTORS - 8) * 512] == before[: (SECTORS - 8) * 512]


def test_sectors_of_4096_bytes(disk: Disk) -> None:  # B8
    ring, before = disk.start(), disk.contents()
    disk.plane.offer = Offer(SECTORS, sector_size=4096, max_indirect=2, discard=True)
    page, gref = ring.data_page()
    table_page, table = ring.data_page(readonly=True)
    for n in range(3):
        SEGMENT.pack_into(table_page.view, 8 * n, gref, 0, 7)
    bad = [(0, 0, 6), (0, 1, 7), (0, 3, 3), (4, 0, 7), (SECTORS - 4, 0, 7)]
    slots = [pack_request(READ, id=0, sector=16, segments=[(gref, 0, 7)]), pack_discard(8, 8, id=1)]
    slots += [
        pack_request(WRITE, id=10 + n, sector=sector, segments=[(gref, first, last)])
        for n, (sector, first, last) in enumerate(bad)
    ]
    halves = [[(gref, 0, 3)] * 2, [(gref, 4, 7)] * 2]
    slots += [pack_request(WRITE, id=15 + n, segments=segments) for n, segments in enumerate(halves)]
    slots += [pack_discard(4, 8, id=20), pack_discard(8, 4, id=21), pack_indirect(READ, 3, [table], id=22)]
    answers = {id_: status for id_, _, status in ring.do(*slots)}
    assert answers == {0: 0, 1: 0, **dict.fromkeys([*range(10, 17), 20, 21, 22], -1)}
    assert bytes(page.view) == before[8192:12288]
    assert ring.do(pack_indirect(READ, 2, [table], id=2)) == [(2, READ, 0)]
    assert disk.contents() == before[:4096] + bytes(4096) + before[8192:]


@pytest.mark.parametrize("size", [8192 - 512, 4096, 512])
def test_a_write_does_not_make_a_truncated_image_grow(disk: Disk, size: int) -> None:  # O4
    ring = disk.start()
    _, gref = ring.data_page(readonly=True)
    write = pack_request(WRITE, sector=8, segments=[(gref, 0, 7)])
    os.truncate(disk.path, size)
    assert ring.do(write) == [(0, WRITE, -1)] and disk.path.stat().st_size == size
    os.truncate(disk.path, 8192)
    assert ring.do(write) == [(0, WRITE, 0)] and disk.path.stat().st_size == 8192


# ---- grants


def test_references_at_the_tables_edges(disk: Disk, guest: Guest) -> None:  # D1
    ring = disk.start()
    last = 512 * guest.FRAMES - 1
    page = guest.page()
    guest.regrant(last, page)
    bad = (0, last + 1, 512 * 64 - 1, 512 * 64, 2**31, 2**32 - 1)
    slots = [pack_request(READ, id=n, segments=[(gref, 0, 7)]) for n, gref in enumerate((last, *bad))]
    assert ring.do(*slots) == [(0, READ, 0), *((n + 1, READ, -1) for n in range(len(bad)))]
    assert bytes(page.view) == disk.contents()[:4096]


def test_frames_that_are_no_ram(disk: Disk, guest: Guest) -> None:  # D2, D5, D6: a frame has 32 bits
    ring = disk.start()
    ram = len(guest.ram.regions[0].view) >> 12
    gone = guest.page()
    guest.ram.discard(gone.gfn)
    shared = guest.ram.add("shared info, say", 1 << 30, 4096)
    claimed = allocate("a page that the guest has claimed", 2 << 30, 4096, ram=False)
    guest.ram.add_page(claimed)
    entries = [
        (GTF_permit_access, 0, ram - 1),
        (GTF_permit_access, 0, ram),
        (GTF_permit_access, 0, 2**32 - 1),
        (GTF_permit_access, 1, 100),
        (GTF_permit_access, 0x8000, 100),
        (GTF_permit_access | GTF_readonly, 0, 100),
        (2, 0, 100),
        (3, 0, 100),
        (0, 0, 100),
        (GTF_permit_access, 0, gone.gfn),
        (GTF_permit_access, 0, shared.gpa >> 12),
        (GTF_permit_access, 0, claimed.gpa >> 12),
    ]
    for n, entry in enumerate(entries):
        guest.write_entry(100 + n, *entry)
    slots = [pack_request(READ, id=n, segments=[(100 + n, 0, 7)]) for n in range(len(entries))]
    statuses = [status for _, _, status in ring.do(*slots)]
    assert statuses == [0, *[-1] * (len(entries) - 1)]
    assert not any(guest.page().view) and not guest.mapped
    assert not any(shared.view) and not any(claimed.view)


def test_more_grants_than_anybody_would_keep(disk: Disk, guest: Guest) -> None:  # D7
    """Nothing is kept for references that were used once, persistent or not."""
    ring = disk.start()
    assert ring.flush() == 0
    page, fds = guest.page(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    grefs = range(100, 512 * guest.FRAMES)
    for gref in grefs:
        guest.regrant(gref, page)
    for begin in range(0, len(grefs), 32):
        some = grefs[begin : begin + 32]
        slots = [pack_request(READ, id=gref, segments=[(gref, 0, 0)]) for gref in some]
        assert ring.do(*slots) == [(gref, READ, 0) for gref in some]
        assert guest.grants.active == 0
    assert len(os.listdir("/proc/self/fd")) == fds  # noqa: PTH208
    assert all(guest.end_access(gref) for gref in grefs)


def test_a_reference_that_is_granted_anew_for_another_page(disk: Disk, guest: Guest) -> None:  # D8
    ring, contents = disk.start(), disk.contents()
    one, other = guest.page(), guest.page()
    gref = guest.grant(one)
    assert ring.do(pack_request(READ, segments=[(gref, 0, 7)])) == [(0, READ, 0)]
    guest.regrant(gref, other)
    assert ring.do(pack_request(READ, sector=8, segments=[(gref, 0, 7)])) == [(0, READ, 0)]
    assert bytes(one.view) == contents[:4096] and bytes(other.view) == contents[4096:8192]
    assert guest.end_access(gref)
    assert ring.do(pack_request(READ, segments=[(gref, 0, 7)])) == [(0, READ, -1)]
