"""A guest that changes what it shares with a plane at the worst moment there is, on every engine.

The test is that guest: it steps in once a slot or a table has been copied, and at the barriers.
"""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from tests.fakes.blkfront import pack_indirect, pack_request
from tests.fakes.disk import Disk
from tests.fakes.faults import Faults
from xenpvd.abi.grant_table import GTF_permit_access, GTF_reading, GTF_writing
from xenpvd.abi.io_blkif import (
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    SEGMENT,
    X86_32,
    X86_64,
    Abi,
)
from xenpvd.abi.io_ring import REQ_PROD, RSP_EVENT, RSP_PROD
from xenpvd.errors import GuestFault

READ, WRITE, FLUSH = BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE


# ---- who wakes whom


def test_a_request_that_comes_as_the_plane_goes_to_sleep(engine_disk: Disk, faults: Faults) -> None:  # A3
    """The guest has looked at req_event before: it does not kick."""
    ring = engine_disk.ring
    ring.put(pack_request(FLUSH, id=1))
    faults.step_in("fence", lambda: ring.page.store32(REQ_PROD, 1), nth=1)
    engine_disk.start()
    assert ring.wait(1) == [(1, FLUSH, 0)]
    assert ring.kicks == 0


def test_a_request_without_a_kick_is_served_with_the_next_one(disk: Disk) -> None:  # A3
    ring = disk.start()
    assert ring.flush() == 0
    for n in range(2):
        ring.put(pack_request(FLUSH, id=n))
        ring.push()
    ring.kick()
    assert sorted(ring.wait(2)) == [(0, FLUSH, 0), (1, FLUSH, 0)]


def test_a_guest_that_asks_to_be_told_as_the_response_is_shown(engine_disk: Disk, faults: Faults) -> None:
    disk, ring = engine_disk, engine_disk.ring
    ring.put(pack_request(77, id=1))
    ring.push()
    ring.page.store32(RSP_EVENT, 0)  # passed: it is not to be told
    shown = []

    def late() -> None:
        shown.append(ring.page.load32(RSP_PROD))
        ring.page.store32(RSP_EVENT, 1)

    faults.step_in("fence", late, nth=1)
    disk.start()
    assert select.select([disk.port.irq_fd], [], [], 5)[0], "it sleeps for ever"
    assert shown == [1], "rsp_prod is out before rsp_event is read"
    assert ring.take() == [(1, 77, BLKIF_RSP_EOPNOTSUPP)]


@pytest.mark.parametrize("req_prod", [0, 1 + 33, 2**31])
def test_req_prod_that_changes_as_a_slot_is_copied(
    engine_disk: Disk, faults: Faults, req_prod: int
) -> None:  # A4
    """What was there when it was read is served, and nothing else."""
    ring, before = engine_disk.ring, engine_disk.contents()
    page, gref = ring.data_page()
    ring.put(pack_request(READ, id=1, sector=8, segments=[(gref, 0, 7)]))
    ring.push()
    ring.put(pack_request(WRITE, id=2, segments=[(gref, 0, 7)]))
    faults.step_in("copy", lambda: ring.page.store32(REQ_PROD, req_prod), nth=1)
    engine_disk.start()
    assert isinstance(engine_disk.ended(), GuestFault)
    assert ring.take() == [(1, READ, 0)]
    assert bytes(page.view) == before[4096:8192] and engine_disk.contents() == before


@pytest.mark.parametrize("engine", ["preadv", "io_uring"])
@pytest.mark.parametrize("change", [GTF_permit_access, 0x100], ids=["withdrawn", "always another"])
def test_a_grant_that_changes_as_it_is_claimed(engine_disk: Disk, faults: Faults, change: int) -> None:  # D4
    """The other plane's grants are claimed by vmm/xen/gnttab.py, which has its own test."""
    disk = engine_disk
    ring, table = disk.start(), disk.gnttab.table
    page, gref = ring.data_page()
    entry = slice(gref * 8, gref * 8 + 2)

    def flip() -> None:
        table[entry] = (int.from_bytes(table[entry], "little") ^ change).to_bytes(2, "little")

    faults.step_in("swap", flip)
    assert ring.do(pack_request(READ, segments=[(gref, 0, 7)])) == [(0, READ, -1)]
    assert not any(page.view)
    assert not int.from_bytes(table[entry], "little") & (GTF_reading | GTF_writing), "it is not marked"


# ---- what is copied is what happens


@pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)
def test_a_slot_that_changes_once_it_is_copied(
    path: Path, faults: Faults, engine: str, abi: Abi
) -> None:  # B14
    disk = Disk(path, engine=engine, abi=abi)
    ring, before = disk.start(), disk.contents()
    page, gref = ring.data_page()
    other, evil = ring.data_page()
    swaps = [
        pack_request(WRITE, id=2, sector=0, segments=[(evil, 0, 7)], abi=abi),
        pack_request(READ, id=2, sector=0, segments=[(evil, 0, 7)] * 11, abi=abi),
        pack_request(255, id=2, nr_segments=255, segments=[(evil, 0, 255)] * 11, abi=abi),
        b"\xff" * abi.slot_size,
    ]
    for n, swap in enumerate(swaps):
        at = 64 + n * abi.slot_size
        page.view[:] = bytes(4096)
        faults.step_in("copy", lambda at=at, swap=swap: ring.page.write(at, swap))  # type: ignore[misc]
        slot = pack_request(READ, id=1, sector=8, segments=[(gref, 0, 3), (gref, 4, 7)], abi=abi)
        assert ring.do(slot) == [(1, READ, 0)]
        assert faults.calls > 0
        assert bytes(page.view) == before[4096:8192]
    assert not any(other.view) and disk.contents() == before
    assert disk.end() is None
    disk.close()


def test_a_table_that_changes_once_it_is_copied(engine_disk: Disk, faults: Faults) -> None:  # C4
    disk = engine_disk
    ring, before = disk.start(), disk.contents()
    page, gref = ring.data_page()
    other, evil = ring.data_page()
    table, table_gref = ring.data_page(readonly=True)
    for swap in (SEGMENT.pack(evil, 0, 7), SEGMENT.pack(2**32 - 1, 0, 7), SEGMENT.pack(gref, 255, 255)):
        page.view[:] = bytes(4096)
        for n in range(8):
            SEGMENT.pack_into(table.view, n * SEGMENT.size, gref, n, n)
        faults.step_in("copy", lambda swap=swap: table.write(0, swap * 8), nth=2)  # type: ignore[misc]
        assert ring.do(pack_indirect(READ, 8, [table_gref], id=1, sector=8)) == [(1, READ, 0)]
        assert faults.calls == 2, "the slot, and the table: each once"
        assert bytes(page.view) == before[4096:8192]
    assert not any(other.view)
