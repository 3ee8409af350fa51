"""The plane against a front that does real I/O, behaves badly among good requests, or breaks the ring."""

from __future__ import annotations

import os
import random
import select
import threading
import time
from pathlib import Path

import pytest

from tests.fakes.blkfront import BlkRing, pack_request
from tests.fakes.disk import Disk
from tests.fakes.evtchn import FakeEvtchnPort
from tests.fakes.gnttab import FakeGnttab, FakeGrant
from xenpvd.abi.io_blkif import (
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    X86_32,
    X86_64,
    Abi,
)
from xenpvd.abi.io_ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.plane import TROUBLE_PAUSE, Plane
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.throttle import Throttle
from xenpvd.errors import GuestFault

READ, WRITE, FLUSH = BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE
SECTORS = 2048


@pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)
@pytest.mark.parametrize("start", [0, 2**32 - 3])
def test_random_reads_and_writes_against_a_shadow(path: Path, native: bool, abi: Abi, start: int) -> None:
    disk = Disk(path, abi=abi, start=start, native=native)
    try:
        ring, shadow, rng = disk.start(), bytearray(disk.contents()), random.Random(start)
        for _ in range(300):
            count = rng.randint(1, 88)
            sector = rng.randint(0, SECTORS - count)
            where = slice(sector * 512, (sector + count) * 512)
            if rng.random() < 0.5:
                assert ring.read(sector, count) == shadow[where]
            else:
                shadow[where] = rng.randbytes(count * 512)
                ring.write(sector, bytes(shadow[where]))
            if rng.random() < 0.05:
                assert ring.flush() == 0
        assert disk.end() is None
        assert disk.contents() == shadow
        stats = disk.plane.stats()
        assert stats["reads"] + stats["writes"] == 300 and stats["errors"] == stats["in_flight"] == 0
        assert disk.troubles == []
    finally:
        disk.close()


def test_full_rings_of_requests(disk: Disk) -> None:
    """Thirty-two at a time, each with its own pages; each response belongs to its request."""
    ring, shadow = disk.start(), disk.contents()
    pages = [ring.data_page() for _ in range(32)]
    for lap in range(20):
        rng = random.Random(lap)
        sectors = [rng.randint(0, SECTORS - 8) for _ in pages]
        slots = [
            pack_request(READ, id=lap << 32 | n, sector=sector, segments=[(gref, 0, 7)])
            for n, (sector, (_, gref)) in enumerate(zip(sectors, pages, strict=True))
        ]
        assert ring.do(*slots) == [(lap << 32 | n, READ, 0) for n in range(32)]
        for sector, (page, _) in zip(sectors, pages, strict=True):
            assert bytes(page.view) == shadow[sector * 512 : sector * 512 + 4096]
    stats = disk.plane.stats()
    assert stats["reads"] == 640 and stats["read_bytes"] == 640 * 4096
    assert (
        stats["notifications"] + stats["notifications_suppressed"] >= 20 * 2
    )  # in groups, half a ring at most


def test_the_guest_is_notified_only_as_it_asked(disk: Disk, native: bool) -> None:
    ring = disk.ring
    for n in range(32):
        ring.put(pack_request(FLUSH, id=n))
    ring.push()
    ring.page.store32(RSP_EVENT, 32)  # "tell me at the last"
    disk.start()
    assert select.select([disk.port.irq_fd], [], [], 5)[0], "not notified"
    assert sorted(ring.take()) == [(n, FLUSH, 0) for n in range(32)]
    stats = disk.plane.stats()
    assert stats["notifications"] == 1
    assert stats["notifications_suppressed"] >= (1 if native else 3), "in groups of 16, or of 8"


@pytest.mark.parametrize("count", [2, 8])
def test_half_of_few_requests_is_answered_before_the_rest(path: Path, count: int) -> None:
    """Or the guest would stand still until all are done, and the plane until there are new ones."""
    disk = Disk(path, native=True)
    for n in range(count):
        disk.ring.put(pack_request(99, id=n))  # is answered at once
    disk.ring.push()
    disk.start()
    assert sorted(id_ for id_, _, _ in disk.ring.wait(count)) == [*range(count)]
    stats = disk.plane.stats()
    assert stats["notifications"] + stats["notifications_suppressed"] == 2
    assert disk.end() is None
    disk.close()


def test_requests_from_before_the_start_need_no_kick(disk: Disk) -> None:
    disk.ring.put(pack_request(FLUSH, id=1))
    disk.ring.push()
    disk.start()
    assert disk.ring.wait(1) == [(1, FLUSH, 0)]
    assert disk.ring.kicks == 0


@pytest.mark.usefixtures("no_collection")
def test_kicks_without_requests(disk: Disk) -> None:  # A8
    """They are nothing to answer, and leave no work behind: the plane sleeps."""
    ring = disk.start()
    for _ in range(100_000):
        ring.kick()
    assert ring.flush() == 0
    assert disk.plane.stats()["notifications"] == 1
    clock = time.pthread_getcpuclockid(disk.plane._thread.ident or 0)
    begin = time.clock_gettime(clock)
    time.sleep(0.2)  # what is measured
    assert time.clock_gettime(clock) - begin < 0.05


def test_nothing_beyond_the_size_it_was_given(path: Path, native: bool) -> None:  # O5
    disk = Disk(path, native=native, size=16 * 512)
    try:
        ring = disk.start()
        _, gref = ring.data_page()
        assert ring.do(pack_request(WRITE, id=1, sector=9, segments=[(gref, 0, 7)])) == [(1, WRITE, -1)]
        assert ring.do(pack_request(WRITE, id=2, sector=8, segments=[(gref, 0, 7)])) == [(2, WRITE, 0)]
    finally:
        disk.close()


def test_a_guest_that_flips_its_slots_all_the_time(disk: Disk) -> None:  # B14 by chance
    ring, before = disk.start(), disk.contents()
    one = ring.data_page()
    two = ring.data_page()
    slots = [
        pack_request(READ, id=1, sector=0, segments=[(one[1], 0, 7)]),
        pack_request(FLUSH, id=2, sector=2**64 - 1),
        pack_request(READ, id=3, sector=SECTORS - 1, segments=[(two[1], 0, 0)]),
    ]
    done = threading.Event()

    def flip() -> None:
        view, rng = ring.page.view, random.Random(1)
        while not done.is_set():
            offset = 64 + 112 * rng.randrange(32)
            slot = rng.choice(slots)
            part = rng.randrange(0, 112, 8)
            view[offset + part : offset + part + 8] = slot[part : part + 8]

    flipper = threading.Thread(target=flip)
    flipper.start()
    try:
        for _ in range(100):
            assert len(ring.do(*slots)) == 3
    finally:
        done.set()
        flipper.join()
    assert disk.contents() == before
    assert disk.end() is None


@pytest.mark.parametrize(("start", "order"), [(0, 0), (2**32 - 3, 0), (2**32 - 3, 4)])
@pytest.mark.parametrize("jump", ["one too many", 2**31, 2**32 - 1])
def test_a_broken_ring_ends_this_plane(
    path: Path, native: bool, start: int, order: int, jump: int | str
) -> None:  # A1, A2
    disk = Disk(path, native=native, start=start, order=order)
    ring, before = disk.start(), disk.contents()
    assert ring.flush() == 0
    for n in range(ring.size):
        ring.put(pack_request(WRITE, id=n, segments=[(8, 0, 7)]))
    ring.page.store32(REQ_PROD, start + 1 + (jump if isinstance(jump, int) else ring.size + 1))
    ring.kick()
    assert isinstance(disk.ended(), GuestFault)
    assert ring.page.load32(RSP_PROD) == (start + 1) % 2**32  # not one of them was carried out
    assert disk.contents() == before
    disk.close()


def test_a_ring_that_is_full_of_rubbish(disk: Disk) -> None:  # A9
    ring, before = disk.start(), disk.contents()
    assert ring.flush() == 0
    ring.page.view[:] = b"\xff" * 4096
    ring.kick()
    assert isinstance(disk.ended(), GuestFault)
    assert disk.contents() == before


def test_a_ring_that_is_broken_from_the_start(path: Path) -> None:
    gnttab, port = FakeGnttab(), FakeEvtchnPort()
    ring = BlkRing(gnttab)
    ring.page.store32(REQ_PROD, 1000)
    image = Image.open(path, readonly=False)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(GuestFault):
        Plane(
            ring.pages,
            port,
            gnttab,
            image,
            abi=X86_64,
            offer=Offer(1),
            throttle=Throttle(),
            on_trouble=print,
            on_end=print,
        )
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    port.close()
    image.close()


def test_a_ring_that_breaks_as_we_stop_is_no_fault(reference: Disk) -> None:
    def late() -> None:
        reference.ring.page.store32(REQ_PROD, 1000)
        reference.plane.stop()

    reference.ring.page.on_fence = late
    reference.start()
    assert reference.ended() is None


def test_garbage_in_the_other_indexes(disk: Disk) -> None:  # A5, A6
    """Ours are private; the guest's decide on nothing but whether it is notified."""
    ring = disk.start()
    for served, garbage in enumerate((2**31, 2**32 - 1, 0), 1):
        for index in (REQ_EVENT, RSP_PROD, RSP_EVENT):
            ring.page.store32(index, garbage)
        ring.put(pack_request(FLUSH, id=served))
        ring.push()
        ring.kick()
        while ring.page.load32(RSP_PROD) != served:
            assert disk.ends.empty()
        assert ring.take() == [(served, FLUSH, 0)]
    assert ring.flush() == 0, "and it is woken and notified as before"


# ---- the host fails: also in test_faults.py


@pytest.mark.parametrize("size", [4096, 6144])
def test_a_truncated_image(disk: Disk, size: int) -> None:  # O4
    ring, before = disk.start(), disk.contents()
    os.truncate(disk.path, size)
    page, gref = ring.data_page()
    page.view[:] = b"g" * 4096
    assert ring.do(pack_request(READ, id=1, sector=8, segments=[(gref, 0, 7)])) == [(1, READ, -1)]
    assert bytes(page.view) == before[4096:size] + b"g" * (8192 - size), "no zeroes that nobody has written"


def test_a_file_that_is_another_ones_name_by_now(disk: Disk, tmp_path: Path) -> None:  # O7, O13
    """What was opened stays, whatever becomes of its name and its rights."""
    ring, other = disk.start(), tmp_path / "other.img"
    other.write_bytes(bytes(4096))
    with disk.path.open("rb") as held:
        disk.path.chmod(0)
        other.rename(disk.path)
        ring.write(0, b"x" * 4096)
        assert ring.read(0, 8) == b"x" * 4096 and ring.flush() == 0
        assert held.read(4096) == b"x" * 4096
    assert disk.contents() == bytes(4096)


def test_troubles_are_told_seldom_and_all_counted(reference: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ring = reference.start()
    for _ in range(10):
        ring.do(*[pack_request(77, id=1)] * 32)
    assert len(reference.troubles) == 1
    now += TROUBLE_PAUSE
    ring.do(pack_request(77, id=1))
    assert len(reference.troubles) == 2 and "319 more" in reference.troubles[1]
    assert reference.plane.stats()["errors"] == 321


# ---- the end


def test_stop_finishes_what_was_taken_and_flushes(reference: Disk) -> None:
    ring = reference.ring
    page, gref = ring.data_page()
    page.view[:] = b"w" * 4096
    taken, go = threading.Event(), threading.Event()
    calls = []

    def fail(call: str) -> None:
        calls.append(call)
        taken.set()
        assert go.wait(5)

    reference.image.fail = fail
    reference.start()
    ring.submit(*[pack_request(WRITE, id=n, sector=8 * n, segments=[(gref, 0, 7)]) for n in range(20)])
    assert taken.wait(5)
    reference.plane.stop()
    assert reference.plane.stats()["in_flight"] == 8
    go.set()
    assert reference.ended() is None
    assert ring.take() == [(n, WRITE, 0) for n in range(8)]
    assert reference.contents()[: 8 * 4096] == b"w" * 8 * 4096
    assert calls == ["write"] * 8 + ["flush"]
    assert reference.plane.stats()["in_flight"] == 0


def test_stop_before_start_and_twice(disk: Disk) -> None:
    disk.plane.stop()
    disk.start()
    assert disk.ended() is None
    disk.plane.stop()
    disk.plane.join()


def test_a_plane_that_never_started_leaves_no_fd(path: Path, native: bool) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    Disk(path).close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_our_own_fault_ends_it_and_is_told(reference: Disk) -> None:
    class Broken(FakeGrant):
        pass

    def broken(gref: int, *, readonly: bool = False) -> FakeGrant:
        raise ZeroDivisionError("ours")

    reference.gnttab.map = broken  # type: ignore[method-assign]
    ring = reference.start()
    ring.submit(pack_request(READ, segments=[(8, 0, 7)]))
    assert isinstance(reference.ended(), ZeroDivisionError)


def test_a_port_that_is_closed_under_us_is_no_busy_loop(disk: Disk) -> None:
    """A closed fd polls ready for ever."""
    disk.start()
    assert disk.ring.flush() == 0
    os.eventfd_write(disk.port.kick_fd, 1)
    os.close(disk.port.kick_fd)
    disk.port.closed = True
    os.close(disk.port.irq_fd)
    disk.plane.stop()
    disk.ends.get(timeout=5)
