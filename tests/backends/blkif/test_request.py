"""Requests as a guest may write them; the numbers B1..B13 are those of the misbehaviour list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.blkfront import Segment, pack_discard, pack_indirect, pack_request
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
    Abi,
)
from xenpvd.backends.blkif.request import Indirect, Offer, Refusal, Request, parse, parse_indirect

READ, WRITE, FLUSH = BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE
SECTORS = 1000
ABIS = pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)
WHOLE: Segment = (8, 0, 7)


@ABIS
@pytest.mark.parametrize(
    ("request_", "offset", "length", "segments"),
    [
        ({"operation": READ, "segments": [WHOLE]}, 0, 4096, [(8, 0, 4096)]),
        (
            {"operation": WRITE, "sector": 3, "segments": [(2**32 - 1, 2, 2)]},
            1536,
            512,
            [(2**32 - 1, 1024, 1536)],
        ),
        (
            {"operation": READ, "sector": SECTORS - 8, "segments": [WHOLE]},
            (SECTORS - 8) * 512,
            4096,
            [(8, 0, 4096)],
        ),
        (
            {"operation": READ, "segments": [(n, 0, 7) for n in range(11)]},
            0,
            45056,
            [(n, 0, 4096) for n in range(11)],
        ),
        ({"operation": READ, "segments": [(5, 7, 7), (5, 0, 0)]}, 0, 1024, [(5, 3584, 4096), (5, 0, 512)]),
        ({"operation": READ, "segments": [WHOLE], "handle": 0xFFFF}, 0, 4096, [(8, 0, 4096)]),  # B9: ignored
        ({"operation": FLUSH}, 0, 0, []),
        ({"operation": FLUSH, "sector": 2**64 - 1}, 0, 0, []),  # it names no sectors
    ],
)
def test_good(abi: Abi, request_: dict[str, Any], offset: int, length: int, segments: list[Segment]) -> None:
    slot = pack_request(**request_, id=2**64 - 1, abi=abi)
    good = Request(2**64 - 1, request_["operation"], offset, length, segments)  # type: ignore[arg-type]
    assert parse(slot, abi, Offer(SECTORS)) == good


BAD = [
    # B1, B11, B13 and indirect: what is not offered
    *[({"operation": op, "segments": [WHOLE]}, BLKIF_RSP_EOPNOTSUPP) for op in (4, 7, 8, 127, 128, 255)],
    ({"operation": BLKIF_OP_WRITE_BARRIER, "segments": [WHOLE]}, BLKIF_RSP_EOPNOTSUPP),
    ({"operation": BLKIF_OP_DISCARD}, BLKIF_RSP_EOPNOTSUPP),
    ({"operation": BLKIF_OP_INDIRECT}, BLKIF_RSP_EOPNOTSUPP),
    # B2, B3: the number of segments
    *[({"operation": op, "nr_segments": n}, BLKIF_RSP_ERROR) for op in (READ, WRITE) for n in (0, 12, 255)],
    # B4, B5: sectors of a page
    ({"operation": READ, "segments": [(8, 4, 3)]}, BLKIF_RSP_ERROR),
    ({"operation": READ, "segments": [(8, 0, 8)]}, BLKIF_RSP_ERROR),
    ({"operation": READ, "segments": [(8, 255, 255)]}, BLKIF_RSP_ERROR),
    ({"operation": WRITE, "segments": [WHOLE] * 10 + [(8, 0, 8)]}, BLKIF_RSP_ERROR),
    # B6: sectors of the disk
    ({"operation": WRITE, "sector": SECTORS - 1, "segments": [(8, 0, 1)]}, BLKIF_RSP_ERROR),
    ({"operation": READ, "sector": SECTORS, "segments": [(8, 0, 0)]}, BLKIF_RSP_ERROR),
    ({"operation": WRITE, "sector": 2**63, "segments": [WHOLE]}, BLKIF_RSP_ERROR),
    ({"operation": WRITE, "sector": 2**64 - 1, "segments": [WHOLE]}, BLKIF_RSP_ERROR),
    ({"operation": WRITE, "sector": 2**64 - 8, "segments": [WHOLE]}, BLKIF_RSP_ERROR),
    ({"operation": WRITE, "sector": 2**55, "segments": [WHOLE]}, BLKIF_RSP_ERROR),  # * 512 is 0 in 64 bits
    # B12: a flush with data
    ({"operation": FLUSH, "segments": [WHOLE]}, BLKIF_RSP_ERROR),
    ({"operation": FLUSH, "nr_segments": 255}, BLKIF_RSP_ERROR),
]


@ABIS
@pytest.mark.parametrize(("request_", "status"), BAD)
def test_bad(abi: Abi, request_: dict[str, Any], status: int) -> None:
    refusal = parse(pack_request(**request_, id=77, abi=abi), abi, Offer(SECTORS))
    assert isinstance(refusal, Refusal)
    assert refusal[:3] == (77, request_["operation"], status)
    assert refusal.why


@ABIS
def test_read_only_disk(abi: Abi) -> None:  # B7
    def ask(operation: int, *segments: Segment) -> Request | Refusal:
        return parse(pack_request(operation, segments=segments, abi=abi), abi, Offer(8, readonly=True))

    refusal = ask(WRITE, WHOLE)
    assert isinstance(refusal, Refusal) and refusal.status == BLKIF_RSP_ERROR
    assert isinstance(ask(READ, WHOLE), Request)
    assert isinstance(ask(FLUSH), Request)


DISCARDING = Offer(SECTORS, discard=True, max_indirect=600)


@ABIS
@pytest.mark.parametrize(
    ("sector", "count", "flag", "status"),
    [
        (0, 1, 0, None),
        (0, SECTORS, 0, None),
        (SECTORS - 1, 1, 0, None),
        (0, 0, 0, BLKIF_RSP_ERROR),  # B10
        (1, SECTORS, 0, BLKIF_RSP_ERROR),
        (SECTORS, 1, 0, BLKIF_RSP_ERROR),
        (2**64 - 1, 2, 0, BLKIF_RSP_ERROR),
        (1, 2**64 - 1, 0, BLKIF_RSP_ERROR),
        (0, 2**40, 0, BLKIF_RSP_ERROR),
        (0, 1, BLKIF_DISCARD_SECURE, BLKIF_RSP_EOPNOTSUPP),  # B11
        (0, 1, 2, None),  # nobody knows that flag
    ],
)
def test_discard(abi: Abi, sector: int, count: int, flag: int, status: int | None) -> None:
    slot = pack_discard(sector, count, id=2**64 - 2, flag=flag, abi=abi)
    request = parse(slot, abi, DISCARDING)
    assert request[:2] == (2**64 - 2, BLKIF_OP_DISCARD)
    if status is None:
        assert request[2:] == (sector * 512, count * 512, [])
    else:
        assert isinstance(request, Refusal) and request.status == status
    assert isinstance(parse(slot, abi, Offer(SECTORS, readonly=True, discard=True)), Refusal)
    refused = parse(slot, abi, Offer(SECTORS))
    assert isinstance(refused, Refusal) and refused.status == BLKIF_RSP_EOPNOTSUPP


@ABIS
@pytest.mark.parametrize(
    ("operation", "nr_segments", "pages"),
    [
        (READ, 1, 1),
        (WRITE, 512, 1),
        (READ, 513, 2),
        (READ, 600, 2),
        (READ, 0, None),  # C1
        (READ, 601, None),
        (WRITE, 65535, None),
        (BLKIF_OP_INDIRECT, 1, None),  # C2
        (BLKIF_OP_DISCARD, 1, None),
        (FLUSH, 1, None),
        (255, 1, None),
    ],
)
def test_indirect(abi: Abi, operation: int, nr_segments: int, pages: int | None) -> None:
    slot = pack_indirect(operation, nr_segments, range(100, 108), id=5, sector=9, abi=abi)
    request = parse(slot, abi, DISCARDING)
    if pages is None:
        assert isinstance(request, Refusal)
        assert request[:3] == (5, operation, BLKIF_RSP_ERROR)
    else:
        assert request == Indirect(5, operation, 9, nr_segments, tuple(range(100, 100 + pages)))


@pytest.mark.parametrize(
    ("sector", "segments", "good"),
    [
        (0, [WHOLE] * 100, True),
        (SECTORS - 800, [WHOLE] * 100, True),
        (SECTORS - 799, [WHOLE] * 100, False),
        (0, [WHOLE] * 50 + [(8, 0, 8)], False),
        (2**64 - 1, [WHOLE], False),
    ],
)
def test_the_segments_of_an_indirect_request(sector: int, segments: list[Segment], good: bool) -> None:
    table = b"".join(SEGMENT.pack(*segment) for segment in segments)
    indirect = Indirect(5, WRITE, sector, len(segments), (8,))
    request = parse_indirect(indirect, table, DISCARDING)
    assert isinstance(request, Request) is good
    assert request[:2] == (5, WRITE)
    if isinstance(request, Request):
        assert request.length == len(segments) * 4096 == sum(s.end - s.start for s in request.segments)
    assert isinstance(parse_indirect(indirect, table, Offer(SECTORS, readonly=True)), Refusal)


@pytest.mark.parametrize(
    ("sector", "segments", "good"),
    [
        (8, [WHOLE], True),
        (0, [WHOLE] * 3, True),
        (4, [WHOLE], False),  # B8
        (0, [(8, 0, 3)], False),
        (0, [(8, 4, 7), (8, 0, 3)], False),
        (0, [(8, 0, 3), (8, 0, 3)], False),
        (0, [(8, 4, 7), (8, 4, 7)], False),
    ],
)
def test_sectors_of_4096_bytes(sector: int, segments: list[Segment], good: bool) -> None:
    request = parse(
        pack_request(READ, sector=sector, segments=segments), X86_64, Offer(800, sector_size=4096)
    )
    assert isinstance(request, Request) is good
    large = Offer(800, sector_size=4096, discard=True)
    assert isinstance(parse(pack_discard(sector, 8), X86_64, large), Request) is (sector % 8 == 0)


@given(slot=st.binary(min_size=112, max_size=112), sectors=st.integers(1, 2**40), readonly=st.booleans())
def test_whatever_comes_out_is_within_bounds(slot: bytes, sectors: int, readonly: bool) -> None:
    for abi in (X86_64, X86_32):
        request = parse(slot[: abi.slot_size], abi, Offer(sectors, readonly))
        assert request.id == abi.header.unpack_from(slot)[3]
        assert request.operation == slot[0]
        check(request, sectors, readonly)


@given(
    operation=st.sampled_from([READ, WRITE, FLUSH]),
    sector=st.one_of(st.integers(0, 200), st.integers(2**64 - 200, 2**64 - 1)),
    segments=st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 9)), max_size=11
    ),
    sectors=st.integers(1, 200),
    readonly=st.booleans(),
)
def test_likely_requests(
    operation: int, sector: int, segments: list[Segment], sectors: int, readonly: bool
) -> None:
    slot = pack_request(operation, sector=sector, segments=segments)
    request = parse(slot, X86_64, Offer(sectors, readonly))
    check(request, sectors, readonly)
    count = sum(last + 1 - first for _, first, last in segments)
    fine = all(first <= last < 8 for _, first, last in segments) and sector + count <= sectors
    writes = operation == WRITE
    good = not segments if operation == FLUSH else bool(segments) and fine and not (writes and readonly)
    assert isinstance(request, Request) is good


def check(request: Request | Refusal, sectors: int, readonly: bool) -> None:
    if isinstance(request, Refusal):
        assert request.status in (BLKIF_RSP_ERROR, BLKIF_RSP_EOPNOTSUPP)
        return
    assert request.operation in (READ, WRITE, FLUSH)
    assert not (readonly and request.operation == WRITE)
    assert 0 <= request.offset <= request.offset + request.length <= sectors * 512
    assert len(request.segments) <= 11
    assert sum(end - start for _, start, end in request.segments) == request.length
    assert all(0 <= start < end <= 4096 for _, start, end in request.segments)
