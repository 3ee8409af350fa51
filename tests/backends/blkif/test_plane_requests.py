"""Indirect requests, discards, offers that change and limits, on both planes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.blkfront import pack_discard, pack_indirect, pack_request
from tests.fakes.disk import Disk
from xenpvd.abi.io_blkif import (
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_ERROR,
    SEGMENT,
    X86_32,
    X86_64,
    Abi,
)
from xenpvd.backends.blkif.request import Offer
from xenpvd.counts import histogram
from xenpvd.views import NO_LIMITS, DriveLimits

READ, WRITE, FLUSH = BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE
SECTORS = 2048


@pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)
def test_indirect_transfers(path: Path, native: bool, abi: Abi) -> None:
    disk = Disk(path, abi=abi, native=native)
    try:
        ring, before = disk.start(), disk.contents()
        pages = [ring.data_page() for _ in range(200)]
        grefs = [gref for _, gref in pages]
        assert ring.transfer_indirect(READ, 8, grefs) == 0
        assert b"".join(bytes(page.view) for page, _ in pages) == before[4096 : 201 * 4096]
        assert ring.transfer_indirect(WRITE, 0, grefs[::-1]) == 0
        assert (
            disk.contents()[: 4096 * 2] == before[200 * 4096 : 201 * 4096] + before[199 * 4096 : 200 * 4096]
        )
        assert disk.plane.stats()["read_bytes"] == disk.plane.stats()["write_bytes"] == 200 * 4096
    finally:
        disk.close()


def test_bad_indirect_requests_among_good_ones(disk: Disk) -> None:
    ring, before = disk.start(), disk.contents()
    page, table = ring.data_page()
    data, gref = ring.data_page()
    SEGMENT.pack_into(page.view, 0, gref, 0, 7)
    SEGMENT.pack_into(page.view, 8, 999, 0, 7)  # grants nothing
    _, closed = ring.data_page()
    ring.gnttab.end_access(closed)
    slots = [
        pack_indirect(READ, 1, [table], id=1),
        pack_indirect(READ, 0, [table], id=2),  # C1
        pack_indirect(READ, 257, [table], id=3),
        pack_indirect(READ, 1, [closed], id=4),  # C3
        pack_indirect(READ, 2, [table], id=5),
        pack_indirect(6, 1, [table], id=6),  # C2
        pack_indirect(READ, 1, [table, 998, 997], id=7),  # C7: what is not needed is not looked at
        pack_indirect(WRITE, 2, [table], id=8),
    ]
    answers = {id_: status for id_, _, status in ring.do(*slots)}
    assert answers == {1: 0, 2: -1, 3: -1, 4: -1, 5: -1, 6: -1, 7: 0, 8: -1}
    assert bytes(data.view) == before[:4096]
    assert disk.contents() == before


def test_a_table_that_changes_under_us_is_one_snapshot(disk: Disk) -> None:  # C4, C5
    """A request may read into the page of its own segments: what it says is known by then."""
    ring, before = disk.start(), disk.contents()
    page, table = ring.data_page()
    for n in range(256):
        SEGMENT.pack_into(page.view, n * 8, table, 0, 7)
    assert ring.do(pack_indirect(READ, 256, [table])) == [(0, READ, 0)]
    assert bytes(page.view) == before[255 * 4096 : 256 * 4096]


@pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)
def test_discarded_bytes_are_zeroes_and_the_others_stay(path: Path, native: bool, abi: Abi) -> None:  # O12
    disk = Disk(path, abi=abi, native=native)
    ring, before = disk.start(), disk.contents()
    assert ring.discard(8, 16) == 0
    assert disk.contents() == before[:4096] + bytes(8192) + before[3 * 4096 :]
    assert ring.read(0, 32) == disk.contents()[: 4 * 4096]
    assert disk.plane.stats()["discards"] == 1
    assert disk.end() is None
    disk.close()


def test_a_discard_that_fails(reference: Disk) -> None:
    ring = reference.start()
    reference.image.fail = refuse("discard", errno.ENOSPC)
    assert ring.discard(8, 16) == BLKIF_RSP_ERROR
    assert f"cannot discard in {reference.path} at byte 4096: No space" in reference.troubles[-1]


def test_an_offer_that_changes(disk: Disk) -> None:
    ring = disk.start()
    disk.plane.offer = Offer(8, readonly=True)
    assert [status for _, _, status in ring.do(pack_discard(0, 8), pack_indirect(READ, 1, [9]))] == [-2, -2]
    _, gref = ring.data_page()
    assert ring.do(pack_request(READ, sector=8, segments=[(gref, 0, 7)]))[0][2] == BLKIF_RSP_ERROR
    assert ring.read(0, 8)


def test_a_limited_disk_lets_through_what_its_limits_say(reference: Disk) -> None:
    reference.throttle.set(DriveLimits(ops_per_second=100, burst=0))
    ring = reference.start()
    _, gref = ring.data_page()
    begin = time.monotonic()
    slots = [pack_request(READ, id=n, sector=8 * n, segments=[(gref, 0, 7)]) for n in range(16)]
    assert ring.do(*slots) == [(n, READ, 0) for n in range(16)]
    took = time.monotonic() - begin
    assert took >= 0.15
    stats = reference.plane.stats()
    assert 10 <= stats["throttled"] <= 15  # whom the host has held up need not wait any more
    latency = histogram(stats)
    assert sum(latency.counts) == 16 and took / 2 <= latency.sum <= took, "to wait is part of it"


def test_a_limit_that_is_lifted_and_a_plane_that_stops_wait_for_nobody(reference: Disk) -> None:
    reference.throttle.set(DriveLimits(bytes_per_second=1, burst=0))
    ring = reference.start()
    _, gref = ring.data_page()
    slots = [pack_request(READ, id=n, segments=[(gref, 0, 7)]) for n in range(2)]
    ring.submit(*slots)
    assert ring.wait(1) == [(0, READ, 0)], "it is answered before the other waits"
    reference.throttle.set(NO_LIMITS)
    assert ring.wait(1) == [(1, READ, 0)]
    reference.throttle.set(DriveLimits(bytes_per_second=1, burst=0))
    ring.submit(*slots)
    assert ring.wait(1) == [(0, READ, 0)]
    assert reference.end() is None
    assert ring.wait(1) == [(1, READ, 0)]


def refuse(call: str, number: int) -> Callable[[str], None]:
    def fail(called: str) -> None:
        if called == call:
            raise OSError(number, os.strerror(number))

    return fail


def test_a_discard_counts_as_one_request_by_the_limits(reference: Disk) -> None:
    reference.throttle.set(DriveLimits(bytes_per_second=1, burst=1.0))
    ring = reference.start()
    for _ in range(3):
        assert ring.discard(0, SECTORS) == 0
    assert reference.plane.stats()["throttled"] == 0
    assert reference.end() is None


def test_a_large_discard_goes_in_steps(tmp_path: Path, native: bool) -> None:
    path = tmp_path / "large.img"
    with path.open("wb") as file:
        for place in (0, 1 << 30, (2 << 30) + 4096, (2 << 30) + 8192):
            file.seek(place)
            file.write(b"x" * 4096)
        file.truncate(3 << 30)
    disk = Disk(path, native=native)
    assert disk.start().discard(8, (2 << 30) // 512 + 8) == 0
    with path.open("rb") as file:
        assert file.read(8192) == b"x" * 4096 + bytes(4096)
        file.seek(1 << 30)
        assert file.read(4096) == bytes(4096)
        file.seek((2 << 30) + 4096)
        assert file.read(8192) == bytes(4096) + b"x" * 4096
    assert disk.end() is None
    disk.close()
