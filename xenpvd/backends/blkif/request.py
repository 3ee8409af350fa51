"""One xen-block request, sans-IO: a private copy of a ring slot in, plain checked values or a refusal out.

This is the reference for every data plane. The order of the checks and what each refusal says on the wire
follow io/blkif.h. The ``handle`` of a request is ignored: a ring belongs to one device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from xenpvd.abi.io_blkif import (
    BLKIF_DISCARD_SECURE,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    SECTOR_SIZE,
    SECTORS_PER_PAGE,
    SEGMENT,
    SEGMENTS_PER_PAGE,
    Abi,
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a disk is and takes. ``sectors`` are of 512 bytes, whatever ``sector_size`` (bytes) is, to whose
    multiples requests are held; an indirect request has ``max_indirect`` segments at most (0: none)."""

    sectors: int
    readonly: bool = False
    sector_size: int = SECTOR_SIZE
    max_indirect: int = 0
    discard: bool = False


class Segment(NamedTuple):
    """Bytes ``start`` to ``end`` (not included) of the page that ``gref`` grants."""

    gref: int
    start: int
    end: int


class Request(NamedTuple):
    """A request that can be carried out: every number is within its bounds. ``offset`` and ``length`` are
    bytes of the disk; the segments of a READ or WRITE together have ``length`` bytes, a DISCARD has none, and
    a FLUSH has no bytes either. ``operation`` is what the response names."""

    id: int
    operation: int
    offset: int
    length: int
    segments: list[Segment]


class Indirect(NamedTuple):
    """A request whose ``nr_segments`` segments are yet to be copied from the pages of ``grefs``, which are as
    many as it takes; then :func:`parse_indirect` goes on with it."""

    id: int
    operation: int
    sector: int
    nr_segments: int
    grefs: tuple[int, ...]


class Refusal(NamedTuple):
    """A request that is answered with ``status`` (BLKIF_RSP_*) and has no effect; ``why`` is for the log."""

    id: int
    operation: int
    status: int
    why: str


def parse(slot: bytes, abi: Abi, offer: Offer) -> Request | Indirect | Refusal:
    """Check the request in ``slot``, a private copy of ``abi.slot_size`` bytes. Never raises."""
    operation, nr_segments, _handle, req_id, sector = abi.header.unpack_from(slot)
    if operation in (BLKIF_OP_READ, BLKIF_OP_WRITE):
        if not 1 <= nr_segments <= BLKIF_MAX_SEGMENTS_PER_REQUEST:
            return Refusal(req_id, operation, BLKIF_RSP_ERROR, f"{nr_segments} segments")
        table = slot[abi.segments : abi.segments + nr_segments * SEGMENT.size]
        return _transfer(req_id, operation, sector, table, offer)
    if operation == BLKIF_OP_FLUSH_DISKCACHE:
        if nr_segments:
            return Refusal(req_id, operation, BLKIF_RSP_ERROR, f"a flush with {nr_segments} segments")
        return Request(req_id, operation, 0, 0, [])
    if operation == BLKIF_OP_DISCARD and offer.discard:
        return _discard(slot, abi, offer)
    if operation == BLKIF_OP_INDIRECT and offer.max_indirect:
        return _indirect(slot, abi, offer)
    return Refusal(req_id, operation, BLKIF_RSP_EOPNOTSUPP, f"operation {operation} is not offered")


def parse_indirect(indirect: Indirect, table: bytes, offer: Offer) -> Request | Refusal:
    """Check the segments in ``table``, a private copy of 8 * ``nr_segments`` bytes. Never raises."""
    return _transfer(indirect.id, indirect.operation, indirect.sector, table, offer)


def _transfer(req_id: int, operation: int, sector: int, table: bytes, offer: Offer) -> Request | Refusal:
    if offer.readonly and operation == BLKIF_OP_WRITE:
        return Refusal(req_id, operation, BLKIF_RSP_ERROR, "a write to a read-only disk")
    unit = offer.sector_size // SECTOR_SIZE
    segments = []
    count = 0
    for gref, first_sect, last_sect in SEGMENT.iter_unpack(table):
        if not first_sect <= last_sect < SECTORS_PER_PAGE or first_sect % unit or (last_sect + 1) % unit:
            why = f"a segment of sectors {first_sect} to {last_sect} of a page"
            return Refusal(req_id, operation, BLKIF_RSP_ERROR, why)
        segments.append(Segment(gref, first_sect * SECTOR_SIZE, (last_sect + 1) * SECTOR_SIZE))
        count += last_sect + 1 - first_sect
    if refusal := _check_range(req_id, operation, sector, count, offer):
        return refusal
    return Request(req_id, operation, sector * SECTOR_SIZE, count * SECTOR_SIZE, segments)


def _discard(slot: bytes, abi: Abi, offer: Offer) -> Request | Refusal:
    flag, req_id, sector, count = abi.discard.unpack_from(slot)
    operation = BLKIF_OP_DISCARD
    if offer.readonly:
        return Refusal(req_id, operation, BLKIF_RSP_ERROR, "a discard on a read-only disk")
    if flag & BLKIF_DISCARD_SECURE:  # the header would have it ignored, but then secrets would stay
        return Refusal(req_id, operation, BLKIF_RSP_EOPNOTSUPP, "a secure discard is not offered")
    if not count:
        return Refusal(req_id, operation, BLKIF_RSP_ERROR, "a discard of nothing")
    if refusal := _check_range(req_id, operation, sector, count, offer):
        return refusal
    return Request(req_id, operation, sector * SECTOR_SIZE, count * SECTOR_SIZE, [])


def _indirect(slot: bytes, abi: Abi, offer: Offer) -> Indirect | Refusal:
    operation, nr_segments, req_id, sector, *grefs = abi.indirect.unpack_from(slot)
    if operation not in (BLKIF_OP_READ, BLKIF_OP_WRITE):
        return Refusal(req_id, operation, BLKIF_RSP_ERROR, f"an indirect request of operation {operation}")
    if not 1 <= nr_segments <= offer.max_indirect:
        return Refusal(req_id, operation, BLKIF_RSP_ERROR, f"{nr_segments} indirect segments")
    pages = -(-nr_segments // SEGMENTS_PER_PAGE)
    return Indirect(req_id, operation, sector, nr_segments, tuple(grefs[:pages]))


def _check_range(req_id: int, operation: int, sector: int, count: int, offer: Offer) -> Refusal | None:
    # Python's integers do not overflow; a compiled plane must compare with (sectors - count), not add.
    if sector + count > offer.sectors:
        why = f"sectors {sector} to {sector + count - 1} of a disk of {offer.sectors}"
    elif (sector | count) % (offer.sector_size // SECTOR_SIZE):
        why = f"sector {sector}, {count} of them: no multiple of {offer.sector_size} bytes"
    else:
        return None
    return Refusal(req_id, operation, BLKIF_RSP_ERROR, why)
