"""The layouts of vhost-user and virtio-blk: sizes, and where each field is."""

from __future__ import annotations

from struct import Struct

import pytest

from xenpvd.abi import vhost_user as abi


@pytest.mark.parametrize(
    ("layout", "size", "offsets"),
    [
        (abi.HEADER, 12, (0, 4, 8)),
        (abi.VRING_STATE, 8, (0, 4)),
        (abi.VRING_ADDR, 40, (0, 4, 8, 16, 24, 32)),
        (abi.MEM_TABLE, 40, (0, 4, 8, 16, 24, 32)),
        (abi.CONFIG, 12, (0, 4, 8)),
        (abi.OUTHDR, 16, (0, 4, 8)),
        (abi.DISCARD, 16, (0, 8, 12)),
        (abi.DESC, 16, (0, 8, 12, 14)),
    ],
)
def test_layouts(layout: Struct, size: int, offsets: tuple[int, ...]) -> None:
    assert layout.size == size
    for n, offset in enumerate(offsets):
        marked = layout.pack(*(0xFF if n == m else 0 for m in range(len(offsets))))
        assert marked.index(0xFF) == offset
