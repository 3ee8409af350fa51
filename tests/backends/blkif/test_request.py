"""Requests as a guest may write them; the numbers B1..B13 are those of the misbehaviour list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.blkfront import Segment, pack_request
from xenpvd.abi.io_blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    X86_32,
    X86_64,
    Abi,
)
from xenpvd.backends.blkif.request import Refusal, Request, parse

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
    assert parse(slot, abi, sectors=SECTORS, readonly=False) == good


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
    refusal = parse(pack_request(**request_, id=77, abi=abi), abi, sectors=SECTORS, readonly=False)
    assert isinstance(refusal, Refusal)
    assert refusal[:3] == (77, request_["operation"], status)
    assert refusal.why


@ABIS
def test_read_only_disk(abi: Abi) -> None:  # B7
    def ask(operation: int, *segments: Segment) -> Request | Refusal:
        return parse(pack_request(operation, segments=segments, abi=abi), abi, sectors=8, readonly=True)

    refusal = ask(WRITE, WHOLE)
    assert isinstance(refusal, Refusal) and refusal.status == BLKIF_RSP_ERROR
    assert isinstance(ask(READ, WHOLE), Request)
    assert isinstance(ask(FLUSH), Request)


@given(slot=st.binary(min_size=112, max_size=112), sectors=st.integers(1, 2**40), readonly=st.booleans())
def test_whatever_comes_out_is_within_bounds(slot: bytes, sectors: int, readonly: bool) -> None:
    for abi in (X86_64, X86_32):
        request = parse(slot[: abi.slot_size], abi, sectors=sectors, readonly=readonly)
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
    request = parse(slot, X86_64, sectors=sectors, readonly=readonly)
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
