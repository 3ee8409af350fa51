"""Guest virtual memory: hypercall arguments are pointers of the caller's address space.

A walk of the guest's own page tables, in the mode that its CPU is in (Intel SDM 3A, 4.3-4.5). Everything read
is the guest's and may change at any moment: each entry is read once, each address is bounds-checked by
``PhysicalMemory``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from xenpvd.abi.page import PAGE_SIZE
from xenpvd.abi.xen import EFAULT
from xenpvd.errors import XenError

_PRESENT, _HUGE, _WRITE = 1, 1 << 7, 2


class PhysicalMemory(Protocol):
    """Guest physical memory; both raise ``XenError`` EFAULT outside of it."""

    def read(self, gpa: int, length: int) -> bytes: ...

    def write(self, gpa: int, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Mode:
    """How a CPU walks. ``levels`` has the lowest address bit of each table's index, from CR3's table on."""

    levels: tuple[int, ...]
    huge: tuple[int, ...]  # levels where an entry may be a page
    entry_size: int
    root: int  # CR3's bits that name the first table
    frame: int  # an entry's bits that name a frame
    tops: tuple[int, ...] = (0,)  # what may be left of an address ...
    top_shift: int = 32  # ... above this bit
    no_write_bit: int = 0  # a level whose entries have none


_FRAME = 0x000F_FFFF_FFFF_F000

#: CR0.PG = 0
FLAT = Mode((), (), 0, 0, 0)
#: CR4.PAE = 0, with PSE
LEGACY32 = Mode((22, 12), (22,), 4, 0xFFFF_F000, 0xFFFF_F000)
#: CR4.PAE = 1, EFER.LMA = 0
PAE = Mode((30, 21, 12), (21,), 8, 0xFFFF_FFE0, _FRAME, no_write_bit=30)
#: EFER.LMA = 1, also for a caller of 32 bits in it
LONG = Mode((39, 30, 21, 12), (30, 21), 8, _FRAME, _FRAME, (0, 0x1FFFF), 47)


class VirtualMemory:
    """The address space that ``cr3`` names, walked as ``mode`` says."""

    __slots__ = ("_cr3", "_mode", "physical")

    def __init__(self, memory: PhysicalMemory, cr3: int, mode: Mode = LONG) -> None:
        self.physical = memory
        self._cr3 = cr3
        self._mode = mode

    def translate(self, gva: int, *, write: bool = False) -> int:
        """Guest physical address of one byte. Raises ``XenError`` EFAULT where it is not mapped so."""
        mode = self._mode
        if gva >> mode.top_shift not in mode.tops:
            raise XenError(EFAULT, f"there is no address {gva:#x}")
        if not mode.levels:
            return gva
        table, size = self._cr3 & mode.root, mode.entry_size
        last = PAGE_SIZE // size - 1
        for shift in mode.levels:
            raw = self.physical.read(table + (gva >> shift & last) * size, size)
            entry = int.from_bytes(raw, "little")
            if not entry & _PRESENT or (write and not entry & _WRITE and shift != mode.no_write_bit):
                break
            if shift == 12 or (entry & _HUGE and shift in mode.huge):
                mask = (1 << shift) - 1
                return entry & mode.frame & ~mask | gva & mask
            table = entry & mode.frame
        raise XenError(EFAULT, f"address {gva:#x} is not mapped{' for writing' if write else ''}")

    def read(self, gva: int, length: int) -> bytes:
        """A private copy of ``length`` bytes; they may cross pages."""
        step = PAGE_SIZE - gva % PAGE_SIZE
        if length <= step:
            return self.physical.read(self.translate(gva), length) if length else b""
        parts = []
        while length:
            step = min(length, PAGE_SIZE - gva % PAGE_SIZE)
            parts.append(self.physical.read(self.translate(gva), step))
            gva, length = gva + step, length - step
        return b"".join(parts)

    def write(self, gva: int, data: bytes) -> None:
        """Write ``data``, all of it or, if any page is not mapped for writing or not memory, nothing."""
        places = []
        at = 0
        while at < len(data):
            step = min(len(data) - at, PAGE_SIZE - (gva + at) % PAGE_SIZE)
            places.append((self.translate(gva + at, write=True), data[at : at + step]))
            at += step
        for gpa, piece in places[1:]:
            self.physical.read(gpa, len(piece))
        for gpa, piece in places:
            self.physical.write(gpa, piece)
