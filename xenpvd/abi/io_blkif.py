"""io/blkif.h and io/protocols.h: numbers and layouts of xen-block requests and responses.

The layouts differ by the alignment of 64-bit fields: 8 in x86_64, 4 in x86_32. A ring slot is the union of
request and response, so its size is the request's.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

BLKIF_OP_READ = 0
BLKIF_OP_WRITE = 1
BLKIF_OP_WRITE_BARRIER = 2
BLKIF_OP_FLUSH_DISKCACHE = 3
BLKIF_OP_DISCARD = 5
BLKIF_OP_INDIRECT = 6

BLKIF_RSP_OKAY = 0
BLKIF_RSP_ERROR = -1
BLKIF_RSP_EOPNOTSUPP = -2

BLKIF_MAX_SEGMENTS_PER_REQUEST = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8

#: flag of a BLKIF_OP_DISCARD
BLKIF_DISCARD_SECURE = 1 << 0

VDISK_CDROM = 0x1
VDISK_REMOVABLE = 0x2
VDISK_READONLY = 0x4

#: Every sector number and count is in these units, whatever ``sector-size`` says.
SECTOR_SIZE = 512
SECTORS_PER_PAGE = 4096 // SECTOR_SIZE

XEN_IO_PROTO_ABI_X86_32 = "x86_32-abi"
XEN_IO_PROTO_ABI_X86_64 = "x86_64-abi"


@dataclass(frozen=True, slots=True)
class Abi:
    """One layout of the ring's slots.

    ``header`` unpacks operation, nr_segments, handle, id, sector_number from a request's start, and
    ``SEGMENT`` gref, first_sect, last_sect at ``segments`` + 8 * n. In the place of them, ``discard`` unpacks
    flag, id, sector_number, nr_sectors, and ``indirect`` indirect_op, nr_segments, id, sector_number and
    eight grefs. ``response`` packs id, operation, status with zeroes in every gap, so that no stale byte of
    ours reaches the guest.
    """

    name: str
    slot_size: int
    header: Struct
    segments: int
    discard: Struct
    indirect: Struct
    response: Struct


#: ``struct blkif_request_segment``: gref, first_sect, last_sect and two bytes of padding; the same in both.
SEGMENT = Struct("<IBB2x")
SEGMENTS_PER_PAGE = 4096 // SEGMENT.size

X86_64 = Abi(
    name=XEN_IO_PROTO_ABI_X86_64,
    slot_size=112,
    header=Struct("<BBH4xQQ"),
    segments=24,
    discard=Struct("<xB6xQQQ"),
    indirect=Struct("<xBH4xQQ4x8I"),
    response=Struct("<QBxh4x"),
)
X86_32 = Abi(
    name=XEN_IO_PROTO_ABI_X86_32,
    slot_size=108,
    header=Struct("<BBHQQ"),
    segments=20,
    discard=Struct("<xB2xQQQ"),
    indirect=Struct("<xBHQQ4x8I"),
    response=Struct("<QBxh"),
)

ABIS = {abi.name: abi for abi in (X86_64, X86_32)}
