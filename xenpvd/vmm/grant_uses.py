"""How often each grant is mapped, counted together with a plane that maps grants without the GIL.

A u64 per reference: maps in its low half, those for writing in the high one, and the top bit while somebody
changes it. The entry's own bits, which tell the guest, are set and cleared under that, too: else one's last
unmap could clear what another's map has just found set. c/grants.h is the other side.
"""

from __future__ import annotations

import ctypes
import time

from xenpvd.vmm import atomic

_HELD = 1 << 63
_LOW = (1 << 32) - 1


class GrantUses:
    """:class:`xenpvd.vmm.xen.gnttab.Uses`, for ``size`` references. From any thread."""

    def __init__(self, size: int) -> None:
        words = (ctypes.c_uint64 * size)()
        #: for :class:`xenpvd.abi.page.GrantMemory`
        self.address = ctypes.addressof(words)
        self._words = memoryview(words).cast("B").cast("Q")

    def hold(self, gref: int) -> tuple[int, int]:
        while (seen := atomic.fetch_or64(self.address + gref * 8, _HELD)) & _HELD:
            time.sleep(0)  # the other's few instructions; it may have been preempted
        return seen & _LOW, seen >> 32

    def let_go(self, gref: int, maps: int, writable: int) -> None:
        self._words[gref] = writable << 32 | maps  # one store, after all others: this is x86

    def maps(self, gref: int) -> int:
        return self._words[gref] & _LOW

    def active(self, grefs: int) -> int:
        return grefs - self._words[:grefs].tolist().count(0)
