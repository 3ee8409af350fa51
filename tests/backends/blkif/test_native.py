"""The native plane beside the plain-Python one: whatever is on the ring, both answer and do the same."""

from __future__ import annotations

import os
import random
import resource
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.blkfront import pack_discard, pack_indirect, pack_request
from tests.fakes.disk import Disk
from tests.fakes.page import FakePage
from xenpvd.abi.io_blkif import SEGMENT, X86_32, X86_64, Abi
from xenpvd.backends.blkif import build, native
from xenpvd.backends.blkif.request import Offer
from xenpvd.counts import histogram
from xenpvd.errors import Unsupported

SECTORS = 64
PAGES = 6
ABIS = st.sampled_from([X86_64, X86_32])
#: the data pages' references, what grants nothing, and what cannot be
GREFS = st.one_of(st.integers(0, PAGES - 1), st.integers(0, PAGES - 1), st.sampled_from([-1, -2]))
SEGMENTS = st.lists(st.tuples(GREFS, st.integers(0, 8), st.integers(0, 8)), max_size=11)
NUMBERS = st.one_of(st.integers(0, SECTORS + 2), st.sampled_from([2**32, 2**55, 2**63, 2**64 - 1]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("plain"), st.sampled_from([0, 1, 1, 2, 3, 4, 7, 255]), NUMBERS, SEGMENTS),
        st.tuples(st.just("indirect"), st.sampled_from([0, 1, 1, 3, 6]), NUMBERS, SEGMENTS),
        st.tuples(st.just("discard"), st.sampled_from([0, 0, 1, 2]), NUMBERS, NUMBERS),
        st.tuples(st.just("raw"), st.just(0), st.just(0), st.binary(min_size=112, max_size=112)),
    ),
    max_size=12,
)


class Twin:
    """One plane on one image, with its guest's pages."""

    def __init__(self, folder: Path, native: bool, abi: Abi, readonly: bool, sector_size: int) -> None:
        path = folder / f"{native}.img"
        path.write_bytes(random.Random(1).randbytes(SECTORS * 512))
        self.disk = Disk(path, abi=abi, readonly=readonly, native=native)
        self.disk.plane.offer = Offer(SECTORS, readonly, sector_size, max_indirect=32, discard=True)
        self.abi = abi
        self.ring = self.disk.start()
        self.pages = [self.ring.data_page(readonly=n == 0) for n in range(PAGES)]
        for n, (page, _) in enumerate(self.pages):
            page.write(0, random.Random(n).randbytes(4096))
        self.table, self.table_gref = self.ring.data_page(readonly=True)
        self.canary = FakePage()
        self.canary.write(0, b"canary" * 600)

    def gref(self, which: int) -> int:
        return {-1: 4000, -2: 2**32 - 1}.get(which) or self.pages[which][1]

    def step(self, kind: str, operation: int, sector: int, what: object) -> tuple[int, int, int]:
        if kind == "raw":
            slot = bytes(what)[: self.abi.slot_size]  # type: ignore[call-overload]
        elif kind == "discard":
            slot = pack_discard(sector, int(what), flag=operation, id=9, abi=self.abi)  # type: ignore[call-overload]
        else:
            segments = [(self.gref(which), first, last) for which, first, last in what]  # type: ignore[attr-defined]
            if kind == "plain":
                slot = pack_request(operation, id=9, sector=sector, segments=segments, abi=self.abi)
            else:
                for n, segment in enumerate(segments):
                    SEGMENT.pack_into(self.table.view, n * 8, *segment)
                tables = [self.table_gref]
                slot = pack_indirect(operation, len(segments), tables, id=9, sector=sector, abi=self.abi)
        (answer,) = self.ring.do(slot)
        return answer

    def seen(self) -> tuple[bytes, list[bytes], bytes]:
        return (
            self.disk.contents(),
            [bytes(page.view) for page, _ in self.pages],
            bytes(self.canary.view),
        )

    def end(self) -> dict[str, int]:
        assert self.disk.end() is None
        stats = self.disk.plane.stats()
        self.disk.close()
        names = ("reads", "read_bytes", "writes", "write_bytes", "flushes", "discards", "errors")
        return {name: stats[name] for name in names} | {"timed": sum(histogram(stats).counts)}


@given(steps=STEPS, abi=ABIS, readonly=st.booleans(), sector_size=st.sampled_from([512, 512, 4096]))
@settings(max_examples=150, deadline=None)
def test_both_planes_are_one(
    steps: list[tuple[str, int, int, object]], abi: Abi, readonly: bool, sector_size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        twins = [Twin(Path(folder), native, abi, readonly, sector_size) for native in (False, True)]
        try:
            for step in steps:
                one, other = (twin.step(*step) for twin in twins)
                assert one == other, step
                one_sees, other_sees = (twin.seen() for twin in twins)
                assert one_sees == other_sees, step
        finally:
            one_did, other_did = (twin.end() for twin in twins)
        assert one_did == other_did


@pytest.mark.timeout(120)
def test_a_guest_that_flips_a_table_of_segments_all_the_time(tmp_path: Path, native: bool) -> None:
    """B14, C4: whatever is read, it is one of the two, whole, and nothing else is touched."""
    twin = Twin(tmp_path, native, X86_64, False, 512)
    good, evil = (twin.pages[n][1] for n in (1, 2))
    image = twin.disk.contents()
    over = threading.Event()

    def flip() -> None:
        choices = [SEGMENT.pack(good, 0, 7), SEGMENT.pack(evil, 0, 7), SEGMENT.pack(2**32 - 1, 255, 255)]
        n = 0
        while not over.is_set():
            twin.table.view[0:8] = choices[n % 3]
            n += 1

    flipper = threading.Thread(target=flip)
    flipper.start()
    try:
        slot = pack_indirect(0, 1, [twin.table_gref], id=1)
        for _ in range(3000 if native else 200):
            for n in (1, 2):
                twin.pages[n][0].write(0, bytes(4096))
            ((_, _, status),) = twin.ring.do(slot)
            read = [bytes(twin.pages[n][0].view) for n in (1, 2)]
            if status == 0:
                assert sorted(read) == sorted([image[:4096], bytes(4096)])
            else:
                assert read == [bytes(4096), bytes(4096)]
    finally:
        over.set()
        flipper.join()
    assert bytes(twin.canary.view[:3600]) == b"canary" * 600
    twin.end()


def test_without_io_uring_it_does_the_same(path: Path) -> None:
    disk = Disk(path, native=True, uring=False)
    ring = disk.start()
    ring.write(0, b"x" * 8192)
    assert disk.plane.engine == "native, preadv: no io_uring here"
    assert ring.read(0, 16) == b"x" * 8192
    assert ring.flush() == ring.discard(0, 8) == 0
    assert disk.contents()[:8192] == bytes(4096) + b"x" * 4096
    assert disk.end() is None
    disk.close()


def test_what_it_says_of_io_uring_is_what_it_got(path: Path) -> None:
    disk = Disk(path, native=True)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, files[1]))
    holes = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                holes.append(os.dup(0))
        ring = disk.start()
        ring.write(0, b"x" * 512)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        for fd in holes:
            os.close(fd)
    assert disk.plane.engine == "native, preadv: no io_uring here"
    assert disk.end() is None
    disk.close()


def test_a_guest_is_notified_where_there_is_no_irq_fd(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16))
    disk = Disk(path, native=True, irq=False)
    ring = disk.start()
    ring.write(0, b"x" * 512)
    assert disk.port.notified >= 1
    assert disk.end() is None
    disk.close()


def test_a_full_disk_is_an_error_and_a_trouble(tmp_path: Path) -> None:
    """O: /dev/full has no room, whoever asks."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16))
    disk = Disk(path, native=True)
    with Path("/dev/full").open("r+b", buffering=0) as full:
        disk.plane._plane.is_block = 1  # type: ignore[union-attr]  # its size is not asked for then
        disk.plane._plane.image_fd = full.fileno()  # type: ignore[union-attr]
        ring = disk.start()
        page, gref = ring.data_page(readonly=True)
        assert ring.do(pack_request(1, id=5, sector=8, segments=[(gref, 0, 7)])) == [(5, 1, -1)]
        assert disk.troubles == [f"cannot write {path} at byte 4096: No space left on device"]
        assert disk.end() is None
    disk.close()
    assert page is not None


def test_troubles_are_told_seldom_and_all_counted(path: Path) -> None:
    disk = Disk(path, native=True)
    plane = disk.plane._plane  # type: ignore[union-attr]
    plane.trouble_pause = 1 << 62
    ring = disk.start()
    for _ in range(10):
        ring.do(*[pack_request(77, id=1)] * 32)
    assert len(disk.troubles) == 1
    plane.trouble_pause = 0
    ring.do(pack_request(77, id=1))
    assert len(disk.troubles) == 2 and "319 more" in disk.troubles[1]
    assert disk.plane.stats()["errors"] == 321
    disk.close()


def test_a_library_that_is_not_built_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.cache_clear()
    monkeypatch.setattr(build, "library", lambda: tmp_path / "none.so")
    try:
        with pytest.raises(Unsupported, match=r"blkif\.build"):
            native.library()
    finally:
        native.library.cache_clear()


def test_who_comes_back_soon_finds_it_awake(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "spin_max", lambda: 1_000_000_000)
    disk = Disk(path, native=True)
    ring = disk.start()
    for sector in range(20):
        ring.read(sector, 1)
    assert disk.plane.stats()["wakeups"] == 0
    disk.close()
