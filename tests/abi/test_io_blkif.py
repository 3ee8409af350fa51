"""The layouts against the C compiler's: ctypes lays structures out as the ABI says."""

from __future__ import annotations

import ctypes
from ctypes import c_int16, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Any

import pytest

from xenpvd.abi.io_blkif import ABIS, BLKIF_MAX_SEGMENTS_PER_REQUEST, SEGMENT, X86_32, X86_64, Abi


def structures(align: int) -> tuple[Any, Any, Any]:
    """blkif_request_segment, blkif_request and blkif_response; ``align`` is that of a uint64_t."""

    class Segment(ctypes.Structure):
        _fields_ = (("gref", c_uint32), ("first_sect", c_uint8), ("last_sect", c_uint8))

    request = [
        ("operation", c_uint8),
        ("nr_segments", c_uint8),
        ("handle", c_uint16),
        ("id", c_uint64),
        ("sector_number", c_uint64),
        ("seg", Segment * BLKIF_MAX_SEGMENTS_PER_REQUEST),
    ]
    response = [("id", c_uint64), ("operation", c_uint8), ("status", c_int16)]
    pack = {"_pack_": align, "_layout_": "ms"}
    return (
        Segment,
        type("Request", (ctypes.Structure,), {**pack, "_fields_": request}),
        type("Response", (ctypes.Structure,), {**pack, "_fields_": response}),
    )


@pytest.mark.parametrize(("abi", "align"), [(X86_64, 8), (X86_32, 4)])
def test_layouts(abi: Abi, align: int) -> None:
    segment_type, request_type, response_type = structures(align)
    assert ctypes.sizeof(segment_type) == SEGMENT.size
    assert abi.slot_size == max(ctypes.sizeof(request_type), ctypes.sizeof(response_type))
    assert abi.response.size == ctypes.sizeof(response_type)
    assert abi.segments == request_type.seg.offset

    request = request_type(1, 2, 3, 0x1122334455667788, 0x99AABBCCDDEEFF00)
    request.seg[10] = segment_type(0xDEADBEEF, 4, 5)
    raw = bytes(request)
    assert abi.header.unpack_from(raw) == (1, 2, 3, 0x1122334455667788, 0x99AABBCCDDEEFF00)
    assert SEGMENT.unpack_from(raw, abi.segments + 10 * SEGMENT.size) == (0xDEADBEEF, 4, 5)

    response = response_type.from_buffer_copy(abi.response.pack(2**64 - 1, 255, -2))
    assert (response.id, response.operation, response.status) == (2**64 - 1, 255, -2)


def test_sizes_are_the_documented_ones() -> None:
    assert [(a.slot_size, a.response.size) for a in (X86_64, X86_32)] == [(112, 16), (108, 12)]
    assert set(ABIS) == {"x86_64-abi", "x86_32-abi"}
