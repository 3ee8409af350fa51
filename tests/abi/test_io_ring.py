from __future__ import annotations

import pytest

from xenpvd.abi import io_ring
from xenpvd.abi.io_blkif import X86_32, X86_64


@pytest.mark.parametrize(
    ("length", "slot_size", "size"),
    [
        (4096, X86_64.slot_size, 32),
        (4096, X86_32.slot_size, 32),
        (16 * 4096, X86_64.slot_size, 512),
        (4096, 4032, 1),
        (4096, 2016, 2),
        (4096, 64, 32),  # 63 fit
    ],
)
def test_ring_size_is_the_power_of_two_that_fits(length: int, slot_size: int, size: int) -> None:
    assert io_ring.ring_size(length, slot_size) == size


def test_sring_header() -> None:
    # struct *_sring: req_prod, req_event, rsp_prod, rsp_event, 4 + 44 bytes of padding, ring
    header = (io_ring.REQ_PROD, io_ring.REQ_EVENT, io_ring.RSP_PROD, io_ring.RSP_EVENT, io_ring.RING)
    assert header == (0, 4, 8, 12, 16 + 4 + 44)
