"""Random rings, slots and tables: whatever a guest puts there, both planes answer and do the same.

XENPVD_FUZZ is how many guests there are.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.blkfront import MASK, pack_discard, pack_indirect, pack_request
from tests.fakes.disk import Disk
from xenpvd.abi.io_blkif import SEGMENT, X86_32, X86_64, Abi
from xenpvd.abi.io_ring import REQ_EVENT, REQ_PROD, RING, RSP_EVENT, RSP_PROD
from xenpvd.backends.blkif import build
from xenpvd.backends.blkif.request import Offer
from xenpvd.errors import GuestFault

GUESTS = int(os.environ.get("XENPVD_FUZZ", "100"))
HOUSE = Path(__file__).parents[3]
SECTORS = 64
PAGES = 5
COUNTERS = (
    "reads", "read_bytes", "writes", "write_bytes", "flushes", "discards", "errors", "in_flight"
)  # fmt: skip
#: the last two are granted to nobody, and cannot be
WHICH = st.integers(0, PAGES + 1)
SEGMENTS = st.lists(
    st.one_of(
        st.tuples(WHICH, st.just(0), st.just(7)), st.tuples(WHICH, st.integers(0, 8), st.integers(0, 8))
    ),
    max_size=11,
)
NUMBERS = st.one_of(st.integers(0, SECTORS + 1), st.sampled_from([2**32, 2**55, 2**63, 2**64 - 1]))
U32 = st.integers(0, MASK)


class Step(NamedTuple):
    """One slot; ``flips`` are bytes of it that are others in the end."""

    kind: str
    operation: int
    sector: int
    count: int | None
    segments: list[tuple[int, int, int]]
    flips: list[tuple[int, int]]


class Lap(NamedTuple):
    """Slots, indexes that are garbage, and how far beyond the slots req_prod goes."""

    steps: list[Step]
    garbage: list[tuple[int, int]]
    beyond: int


STEP = st.builds(
    Step,
    kind=st.sampled_from(["plain", "plain", "indirect", "discard"]),
    operation=st.one_of(st.sampled_from([0, 0, 1, 1, 1, 3]), st.integers(0, 255)),
    sector=NUMBERS,
    count=st.one_of(st.none(), st.none(), NUMBERS),
    segments=SEGMENTS,
    flips=st.lists(st.tuples(st.integers(0, 107), st.integers(0, 255)), max_size=2),
)
LAP = st.builds(
    Lap,
    steps=st.lists(STEP, max_size=12),
    garbage=st.lists(st.tuples(st.sampled_from([REQ_EVENT, RSP_EVENT, RSP_PROD]), U32), max_size=2),
    beyond=st.one_of(st.just(0), st.just(0), st.integers(0, 40), U32),
)
OFFER = st.builds(
    Offer,
    sectors=st.just(SECTORS),
    readonly=st.booleans(),
    sector_size=st.sampled_from([512, 512, 4096]),
    max_indirect=st.sampled_from([0, 4, 256]),
    discard=st.booleans(),
)


class Twin:
    """A guest with one of the planes; what it has is the other's, byte by byte."""

    def __init__(self, folder: Path, engine: str, abi: Abi, order: int, start: int, offer: Offer) -> None:
        path = folder / f"{engine}.img"
        path.write_bytes(random.Random(1).randbytes(SECTORS * 512))
        self.disk = Disk(path, engine=engine, abi=abi, order=order, start=start)
        self.disk.plane.offer = offer
        self.abi, self.ring = abi, self.disk.start()
        for gref in self.ring.grefs:  # what is read into the ring itself may be anything, and break it
            self.disk.gnttab.end_access(gref)
        self.pages = [self.ring.data_page(readonly=n == 0) for n in range(PAGES)]
        for n, (page, _) in enumerate(self.pages):
            page.write(0, random.Random(n).randbytes(4096))
        self.grefs = [*(gref for _, gref in self.pages), 4000, 2**32 - 1]
        self.ended: BaseException | None = None

    def pack(self, step: Step) -> bytes:
        abi, segments = self.abi, [(self.grefs[which], *sectors) for which, *sectors in step.segments]
        if step.kind == "discard":
            raw = pack_discard(step.sector, step.count or 8, flag=step.operation % 4, id=9, abi=abi)
        elif step.kind == "plain":
            lie = None if step.count is None else step.count % 256
            raw = pack_request(
                step.operation, sector=step.sector, segments=segments, nr_segments=lie, id=9, abi=abi
            )
        else:
            table, gref = self.pages[-1]
            for n, segment in enumerate(segments):
                SEGMENT.pack_into(table.view, n * SEGMENT.size, *segment)
            count = len(segments) if step.count is None else step.count % 65536
            raw = pack_indirect(step.operation, count, [gref], sector=step.sector, id=9, abi=abi)
        slot = bytearray(raw)
        for at, value in step.flips:
            slot[at] = value
        return bytes(slot)

    def run(self, lap: Lap) -> None:
        """Until all is answered, or the ring is broken."""
        ring, before = self.ring, self.ring.req_prod
        for step in lap.steps[: ring.size]:
            ring.put(self.pack(step))
        wanted = ring.req_prod = (ring.req_prod + lap.beyond) & MASK
        for index, value in lap.garbage:
            if value != wanted:
                ring.page.store32(index, value)
        ring.page.store32(REQ_PROD, wanted)
        ring.kick()
        if (wanted - before) & MASK > ring.size:
            self.ended = self.disk.ended()
        elif wanted != before:
            while ring.page.load32(RSP_PROD) != wanted:
                assert self.disk.ends.empty()
                time.sleep(0)  # the plane needs the GIL

    def seen(self) -> dict[str, object]:
        stats = self.disk.plane.stats()
        return {
            "ended": type(self.ended),
            "image": self.disk.contents(),
            "pages": [bytes(page.view) for page, _ in self.pages],
            "ring": b"".join(bytes(page.view) for page in self.ring.pages)[RING:],
        } | {name: stats[name] for name in COUNTERS}


@pytest.mark.timeout(0 if GUESTS > 1000 else 120)
@given(
    laps=st.lists(LAP, min_size=1, max_size=4),
    abi=st.sampled_from([X86_64, X86_32]),
    order=st.sampled_from([0, 0, 1]),
    start=st.one_of(st.integers(2**32 - 20, MASK), U32),
    offer=OFFER,
)
@settings(max_examples=GUESTS, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_rings_against_both_planes(
    laps: list[Lap], abi: Abi, order: int, start: int, offer: Offer
) -> None:
    """In order: the native plane without io_uring, which would do several requests at once."""
    with tempfile.TemporaryDirectory() as folder:
        twins = [Twin(Path(folder), engine, abi, order, start, offer) for engine in ("python", "preadv")]
        try:
            for lap in laps:
                for twin in twins:
                    twin.run(lap)
                one, other = (twin.seen() for twin in twins)
                assert one == other
                if twins[0].ended:
                    assert isinstance(twins[0].ended, GuestFault)
                    break
            else:
                assert [twin.disk.end() for twin in twins] == [None, None]
        finally:
            for twin in twins:
                twin.disk.close()
                assert not twin.disk.gnttab.mapped


CHILD = """
import pathlib, sys
from xenpvd.backends.blkif import build
build.library = lambda: pathlib.Path(sys.argv[1])
from tests.backends.blkif import test_fuzz
test_fuzz.test_random_rings_against_both_planes()
"""


@pytest.mark.timeout(300)
def test_the_native_plane_under_sanitizers(tmp_path: Path) -> None:
    library = tmp_path / "native.so"
    flags = [*build.FLAGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    made = subprocess.run(
        ["cc", *flags, "-o", library, build.SOURCES / "native.c"], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no sanitizers here (gcc's libasan and libubsan): {made.stderr.strip()[-200:]}")
    asan = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {
        "LD_PRELOAD": asan.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "XENPVD_FUZZ": f"{max(GUESTS // 4, 1)}",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, library],
        env={**os.environ, **environment},
        cwd=HOUSE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
