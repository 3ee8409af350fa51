"""FakePage: 4096 bytes of this process that fit ``xenpvd.abi.page.SharedPage``; both halves use it.

They are pages of one fake RAM, so that a plane which maps grants by itself finds them by their frame number.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from xenpvd.abi.page import PAGE_SIZE

PAGES = 1 << 14
_ram = mmap.mmap(-1, PAGES * PAGE_SIZE)
_free = list(range(PAGES))
_gone = (ctypes.c_uint8 * (PAGES // 8))()

#: As ``GrantMemory.regions`` has them.
REGION = (0, PAGES, ctypes.addressof(ctypes.c_char.from_buffer(_ram)), ctypes.addressof(_gone))


class FakePage:
    """A zeroed page, at frame ``gfn``. ``fences`` counts the barriers; ``on_fence``, if set, runs at each:
    the place for a test to be the guest that changes the page at the worst moment."""

    def __init__(self) -> None:
        self.gfn = _free.pop()
        self.view = memoryview(_ram)[self.gfn * PAGE_SIZE : (self.gfn + 1) * PAGE_SIZE]
        self.view[:] = bytes(PAGE_SIZE)
        self._words = self.view.cast("I")
        self.fences = 0
        self.on_fence: Callable[[], None] = lambda: None

    def __del__(self) -> None:
        _free.append(self.gfn)

    def load32(self, offset: int) -> int:
        assert offset % 4 == 0
        return self._words[offset // 4]

    def store32(self, offset: int, value: int) -> None:
        assert offset % 4 == 0
        self._words[offset // 4] = value & 0xFFFF_FFFF

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= PAGE_SIZE
        return bytes(self.view[offset : offset + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert offset + len(data) <= PAGE_SIZE
        self.view[offset : offset + len(data)] = bytes(data)

    def fence(self) -> None:
        self.fences += 1
        self.on_fence()
