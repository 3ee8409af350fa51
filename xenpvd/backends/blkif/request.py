"""One xen-block request, sans-IO: a private copy of a ring slot in, plain checked values or a refusal out.

This is the reference for every data plane. The order of the checks and what each refusal says on the wire
follow io/blkif.h. The ``handle`` of a request is ignored: a ring belongs to one device.
"""

from __future__ import annotations

from typing import NamedTuple

from xenpvd.abi.io_blkif import (
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    SECTOR_SIZE,
    SECTORS_PER_PAGE,
    SEGMENT,
    Abi,
)

_SEGMENTS_SIZE = [SEGMENT.size * n for n in range(BLKIF_MAX_SEGMENTS_PER_REQUEST + 1)]


class Segment(NamedTuple):
    """Bytes ``start`` to ``end`` (not included) of the page that ``gref`` grants."""

    gref: int
    start: int
    end: int


class Request(NamedTuple):
    """A request that can be carried out: every number is within its bounds. ``offset`` and ``length`` are
    bytes of the disk; the segments together have ``length`` bytes, and FLUSH has none."""

    id: int
    operation: int
    offset: int
    length: int
    segments: list[Segment]


class Refusal(NamedTuple):
    """A request that is answered with ``status`` (BLKIF_RSP_*) and has no effect; ``why`` is for the log."""

    id: int
    operation: int
    status: int
    why: str


def parse(slot: bytes, abi: Abi, *, sectors: int, readonly: bool) -> Request | Refusal:
    """Check the request in ``slot``, which must be a private copy of ``abi.slot_size`` bytes.

    ``sectors`` is the size of the disk in units of 512 bytes. Never raises.
    """
    operation, nr_segments, _handle, req_id, sector = abi.header.unpack_from(slot)
    if operation == BLKIF_OP_FLUSH_DISKCACHE:
        if nr_segments:
            return Refusal(req_id, operation, BLKIF_RSP_ERROR, f"a flush with {nr_segments} segments")
        return Request(req_id, operation, 0, 0, [])
    if operation not in (BLKIF_OP_READ, BLKIF_OP_WRITE):
        return Refusal(req_id, operation, BLKIF_RSP_EOPNOTSUPP, f"operation {operation} is not offered")
    if readonly and operation == BLKIF_OP_WRITE:
        return Refusal(req_id, operation, BLKIF_RSP_ERROR, "a write to a read-only disk")
    if not 1 <= nr_segments <= BLKIF_MAX_SEGMENTS_PER_REQUEST:
        return Refusal(req_id, operation, BLKIF_RSP_ERROR, f"{nr_segments} segments")

    segments = []
    count = 0
    table = slot[abi.segments : abi.segments + _SEGMENTS_SIZE[nr_segments]]
    for gref, first_sect, last_sect in SEGMENT.iter_unpack(table):
        if not first_sect <= last_sect < SECTORS_PER_PAGE:
            why = f"a segment of sectors {first_sect} to {last_sect} of a page"
            return Refusal(req_id, operation, BLKIF_RSP_ERROR, why)
        segments.append(Segment(gref, first_sect * SECTOR_SIZE, (last_sect + 1) * SECTOR_SIZE))
        count += last_sect + 1 - first_sect
    # Python's integers do not overflow; a compiled plane must compare as (sectors - count), not add.
    if sector + count > sectors:
        why = f"sectors {sector} to {sector + count - 1} of a disk of {sectors}"
        return Refusal(req_id, operation, BLKIF_RSP_ERROR, why)
    return Request(req_id, operation, sector * SECTOR_SIZE, count * SECTOR_SIZE, segments)
