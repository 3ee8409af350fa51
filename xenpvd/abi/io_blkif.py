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

    ``header`` unpacks operation, nr_segments, handle, id, sector_number from a request's start;
    ``segment`` unpacks gref, first_sect, last_sect at ``segments`` + 8 * n; ``response`` packs id,
    operation, status with zeroes in every gap, so that no stale byte of ours reaches the guest.
    """

    name: str
    slot_size: int
    header: Struct
    segments: int
    response: Struct


#: ``struct blkif_request_segment``: gref, first_sect, last_sect and two bytes of padding; the same in both.
SEGMENT = Struct("<IBB2x")

X86_64 = Abi(XEN_IO_PROTO_ABI_X86_64, 112, Struct("<BBH4xQQ"), 24, Struct("<QBxh4x"))
X86_32 = Abi(XEN_IO_PROTO_ABI_X86_32, 108, Struct("<BBHQQ"), 20, Struct("<QBxh"))

ABIS = {abi.name: abi for abi in (X86_64, X86_32)}
