"""io/ring.h: the shared page of a request/response ring (``struct *_sring``)."""

from __future__ import annotations

# Offsets in the page. The four indexes are free-running RING_IDX (u32).
REQ_PROD = 0
REQ_EVENT = 4
RSP_PROD = 8
RSP_EVENT = 12
RING = 64

RING_IDX_MASK = 0xFFFF_FFFF


def ring_size(length: int, slot_size: int) -> int:
    """``__RING_SIZE``: how many slots of ``slot_size`` bytes fit in ``length`` bytes, rounded down to a
    power of two."""
    fit = (length - RING) // slot_size
    return 1 << (fit.bit_length() - 1)
