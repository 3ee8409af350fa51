"""Bad requests among good ones, on both planes: each has one answer and no effect. The numbers are those of
the misbehaviour list; tests/backends/blkif/test_request.py has them without a ring."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.blkfront import Segment, pack_discard, pack_indirect, pack_request
from tests.fakes.disk import Disk
from xenpvd.abi.io_blkif import (
    BLKIF_DISCARD_SECURE,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    SEGMENT,
    X86_32,
    X86_64,
)
from xenpvd.abi.io_ring import RSP_PROD
from xenpvd.backends.blkif.request import Offer

READ, WRITE, FLUSH = BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE
SECTORS = 2048
GOOD = 31
UNKNOWN, ERROR = BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR
#: of a page that is the guest's to grant: the ring's
OURS = 8


def bad(operation: int, *segments: Segment, sector: int = 0, nr_segments: int | None = None) -> bytes:
    return pack_request(operation, id=99, sector=sector, segments=segments, nr_segments=nr_segments)


BAD = {
    "B1 7": (bad(7, (OURS, 0, 7)), UNKNOWN),
    "B1 255": (bad(255, (OURS, 0, 7)), UNKNOWN),
    "B2 read": (bad(READ, nr_segments=0), ERROR),
    "B2 write": (bad(WRITE, nr_segments=0), ERROR),
    "B3 12": (bad(READ, *[(OURS, 0, 7)] * 11, nr_segments=12), ERROR),
    "B3 255": (bad(WRITE, (OURS, 0, 7), nr_segments=255), ERROR),
    "B4": (bad(WRITE, (OURS, 4, 3)), ERROR),
    "B4 the last one": (bad(WRITE, *[(OURS, 0, 7)] * 10, (OURS, 7, 6)), ERROR),
    "B5 8": (bad(WRITE, (OURS, 0, 8)), ERROR),
    "B5 255": (bad(READ, (OURS, 255, 255)), ERROR),
    "B6 half beyond": (bad(WRITE, (OURS, 0, 1), sector=SECTORS - 1), ERROR),
    "B6 the end": (bad(WRITE, (OURS, 0, 7), sector=SECTORS), ERROR),
    "B6 2^55": (bad(WRITE, (OURS, 0, 7), sector=2**55), ERROR),
    "B6 2^63": (bad(WRITE, (OURS, 0, 7), sector=2**63), ERROR),
    "B6 2^64 - 1": (bad(WRITE, (OURS, 0, 7), sector=2**64 - 1), ERROR),
    "B10 wraps": (pack_discard(2**64 - 1, 2, id=99), ERROR),
    "B10 wraps, too": (pack_discard(1, 2**64 - 1, id=99), ERROR),
    "B10 beyond": (pack_discard(SECTORS - 1, 2, id=99), ERROR),
    "B10 nothing": (pack_discard(0, 0, id=99), ERROR),
    "B10 2^40": (pack_discard(0, 2**40, id=99), ERROR),
    "B11": (pack_discard(0, 8, id=99, flag=BLKIF_DISCARD_SECURE), UNKNOWN),
    "B12 1": (bad(FLUSH, (OURS, 0, 7)), ERROR),
    "B12 11": (bad(FLUSH, *[(OURS, 0, 7)] * 11), ERROR),
    "B13": (bad(BLKIF_OP_WRITE_BARRIER, (OURS, 0, 7)), UNKNOWN),
    "C1 0": (pack_indirect(WRITE, 0, [OURS], id=99), ERROR),
    "C1 257": (pack_indirect(WRITE, 257, [OURS], id=99), ERROR),
    "C1 65535": (pack_indirect(WRITE, 65535, [OURS], id=99), ERROR),
    "C2 indirect": (pack_indirect(BLKIF_OP_INDIRECT, 1, [OURS], id=99), ERROR),
    "C2 discard": (pack_indirect(BLKIF_OP_DISCARD, 1, [OURS], id=99), ERROR),
    "C2 flush": (pack_indirect(FLUSH, 1, [OURS], id=99), ERROR),
    "C2 255": (pack_indirect(255, 1, [OURS], id=99), ERROR),
    "C3": (pack_indirect(WRITE, 1, [12345], id=99), ERROR),
    "D1 0": (bad(READ, (0, 0, 7)), ERROR),
    "D1 max": (bad(READ, (4095, 0, 7)), ERROR),
    "D1 max + 1": (bad(READ, (4096, 0, 7)), ERROR),
    "D1 2^32 - 1": (bad(READ, (2**32 - 1, 0, 7)), ERROR),
    "D9 one of two": (bad(WRITE, (OURS, 0, 7), (12345, 0, 7)), ERROR),
}


@pytest.mark.parametrize(("slot", "status"), BAD.values(), ids=BAD)
def test_one_bad_request_among_good_ones(disk: Disk, slot: bytes, status: int) -> None:
    ring, before = disk.start(), disk.contents()
    pages = [ring.data_page() for _ in range(GOOD)]
    slots = [
        pack_request(READ, id=n, sector=8 * n, segments=[(gref, 0, 7)]) for n, (_, gref) in enumerate(pages)
    ]
    slots.insert(13, slot)
    responses = ring.do(*slots)
    assert responses.pop() == (99, slot[1] if slot[0] == BLKIF_OP_INDIRECT else slot[0], status)
    assert responses == [(n, READ, 0) for n in range(GOOD)]
    for n, (page, _) in enumerate(pages):
        assert bytes(page.view) == before[n * 4096 : (n + 1) * 4096]
    assert disk.plane.stats()["errors"] == 1 and len(disk.troubles) == 1
    assert disk.contents() == before
    assert ring.flush() == 0
    assert not disk.gnttab.mapped


def test_every_operation_that_is_not_offered(disk: Disk) -> None:  # B1, B11, B13, C
    ring, before = disk.start(), disk.contents()
    disk.plane.offer = Offer(SECTORS)
    operations = [n for n in range(256) if n not in (READ, WRITE, FLUSH)]
    for begin in range(0, len(operations), 32):
        some = operations[begin : begin + 32]
        answers = ring.do(*[pack_request(n, id=n, segments=[(OURS, 0, 7)]) for n in some])
        assert answers == [(n, n, BLKIF_RSP_EOPNOTSUPP) for n in some]
    assert disk.contents() == before


def test_a_handle_is_nothing_to_us(disk: Disk) -> None:  # B9
    ring = disk.start()
    page, gref = ring.data_page()
    assert ring.do(pack_request(READ, id=1, segments=[(gref, 0, 7)], handle=0xFFFF)) == [(1, READ, 0)]
    assert bytes(page.view) == disk.contents()[:4096]


def test_all_with_the_same_id(disk: Disk) -> None:  # A12
    ring = disk.start()
    assert ring.do(*[pack_request(FLUSH, id=5)] * 32) == [(5, FLUSH, 0)] * 32


def test_one_page_for_several_segments(disk: Disk, native: bool) -> None:  # B18
    ring, before = disk.start(), disk.contents()
    page, gref = ring.data_page()
    segments = [(gref, 0, 3), (gref, 4, 7), (gref, 0, 0)]
    assert ring.do(pack_request(READ, segments=segments)) == [(0, READ, 0)]
    assert bytes(page.view) == before[4096:4608] + before[512:4096]
    assert ring.do(pack_request(WRITE, sector=16, segments=segments)) == [(0, WRITE, 0)]
    assert disk.contents()[8192:12800] == bytes(page.view) + bytes(page.view[:512])
    if not native:
        assert disk.gnttab.maps == 2, "once for each request"


def test_reading_into_a_page_granted_for_reading_only(disk: Disk) -> None:  # B19, D3
    ring = disk.start()
    page, gref = ring.data_page(readonly=True)
    other, fine = ring.data_page()
    assert ring.do(pack_request(READ, id=1, segments=[(fine, 0, 7), (gref, 0, 7)])) == [(1, READ, -1)]
    assert not any(page.view) and not any(other.view), "nothing is read for half a request"
    assert ring.do(pack_request(WRITE, id=2, segments=[(gref, 0, 0)])) == [(2, WRITE, 0)]  # from it is fine
    assert disk.contents()[:512] == bytes(512)


@pytest.mark.parametrize("opened", ["ro", "rw"])
def test_a_read_only_disk(path: Path, native: bool, opened: str) -> None:  # B7
    """Whatever its image could do."""
    disk = Disk(path, readonly=opened == "ro", native=native)
    disk.plane.offer = Offer(SECTORS, readonly=True, max_indirect=256, discard=True)
    try:
        ring, before = disk.start(), disk.contents()
        _, gref = ring.data_page()
        table, table_gref = ring.data_page()
        SEGMENT.pack_into(table.view, 0, gref, 0, 7)
        slots = [
            pack_request(WRITE, id=1, segments=[(gref, 0, 7)]),
            pack_indirect(WRITE, 1, [table_gref], id=2),
            pack_discard(0, 8, id=3),
            pack_request(FLUSH, id=4, segments=[(gref, 0, 7)]),
        ]
        assert [(id_, status) for id_, _, status in ring.do(*slots)] == [(n, -1) for n in range(1, 5)]
        assert ring.read(0, 88) == before[: 88 * 512]
        assert ring.flush() == 0
        assert disk.contents() == before
    finally:
        disk.close()


def test_a_guest_that_writes_the_other_layout(path: Path, native: bool) -> None:  # B16
    """It has said x86_32-abi: what it asks for makes no sense, and is refused."""
    disk = Disk(path, native=native, abi=X86_32)
    ring, before = disk.ring, disk.contents()
    _, gref = ring.data_page()
    ring.abi = X86_64
    disk.start()
    for n in range(32):
        ring.put(pack_request(READ, id=2**64 - 1 - n, sector=8 * n, segments=[(gref, 0, 7)] * 11))
    ring.push()
    ring.kick()
    while ring.page.load32(RSP_PROD) != 32:
        assert disk.ends.empty()
    stats = disk.plane.stats()
    assert stats["errors"] == 32 and stats["writes"] == 0 and disk.contents() == before
    assert disk.end() is None
    disk.close()
