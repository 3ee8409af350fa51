"""Guest virtual memory: hypercall arguments are pointers of the caller's address space.

A 4-level walk of the guest's own page tables (Intel SDM 3A, 4.5). Everything read is the guest's and may
change at any moment: each entry is read once, each address is bounds-checked by ``PhysicalMemory``.
"""

from __future__ import annotations

from typing import Protocol

from xenpvd.abi.page import PAGE_SIZE
from xenpvd.abi.xen import EFAULT
from xenpvd.errors import XenError

_FRAME = 0x000F_FFFF_FFFF_F000
_PRESENT, _HUGE, _WRITE = 1, 1 << 7, 2


class PhysicalMemory(Protocol):
    """Guest physical memory; both raise ``XenError`` EFAULT outside of it."""

    def read(self, gpa: int, length: int) -> bytes: ...

    def write(self, gpa: int, data: bytes) -> None: ...


class VirtualMemory:
    """The address space that ``cr3`` names."""

    def __init__(self, memory: PhysicalMemory, cr3: int) -> None:
        self._memory = memory
        self._cr3 = cr3

    def translate(self, gva: int, *, write: bool = False) -> int:
        """Guest physical address of one byte. Raises ``XenError`` EFAULT where it is not mapped so."""
        if gva >> 47 not in (0, 0x1FFFF):
            raise XenError(EFAULT, f"address {gva:#x} is not canonical")
        table = self._cr3 & _FRAME
        for shift in (39, 30, 21, 12):
            raw = self._memory.read(table + (gva >> shift & 511) * 8, 8)
            entry = int.from_bytes(raw, "little")
            if not entry & _PRESENT or (write and not entry & _WRITE):
                break
            if shift == 12 or (entry & _HUGE and shift in (30, 21)):
                mask = (1 << shift) - 1
                return entry & _FRAME & ~mask | gva & mask
            table = entry & _FRAME
        raise XenError(EFAULT, f"address {gva:#x} is not mapped{' for writing' if write else ''}")

    def read(self, gva: int, length: int) -> bytes:
        """A private copy of ``length`` bytes; they may cross pages."""
        parts = []
        while length:
            step = min(length, PAGE_SIZE - gva % PAGE_SIZE)
            parts.append(self._memory.read(self.translate(gva), step))
            gva, length = gva + step, length - step
        return b"".join(parts)

    def write(self, gva: int, data: bytes) -> None:
        """Write ``data``, all of it or, if any page is not mapped for writing, nothing."""
        places = []
        at = 0
        while at < len(data):
            step = min(len(data) - at, PAGE_SIZE - (gva + at) % PAGE_SIZE)
            places.append((self.translate(gva + at, write=True), data[at : at + step]))
            at += step
        for gpa, piece in places:
            self._memory.write(gpa, piece)
