"""SharedPage: the one door to a page that the guest can change while we look at it.

Everything in it is hostile: copy once (``read``, ``load32``), validate, then use the copy. ``struct`` writes
byte by byte and zeroes first, so an index goes through ``store32`` only (one aligned 32-bit store).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT


class GrantMemory(NamedTuple):
    """Where a guest's memory is in this process, for a plane that maps grants by itself.

    ``regions`` of RAM are (first gfn, pages, address, address of a bit for each page that was given back);
    ``grant_frames`` is the address of 64 addresses of grant table frames (u64, 0: none), which may change;
    ``grant_uses`` that of a u64 for each reference of these, which counts its uses (vmm/grant_uses.py).
    """

    regions: tuple[tuple[int, int, int, int], ...]
    grant_frames: int
    grant_uses: int


class SharedPage(Protocol):
    """One 4096-byte page shared with the guest. Offsets are bytes; 32-bit ones must be 4-aligned."""

    @property
    def view(self) -> memoryview:
        """The page itself as unsigned bytes, for I/O straight into it."""

    def load32(self, offset: int) -> int:
        """One 32-bit load."""

    def store32(self, offset: int, value: int) -> None:
        """One 32-bit store; ``value`` is taken modulo 2^32."""

    def read(self, offset: int, length: int) -> bytes:
        """A private copy of ``length`` bytes."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` into the page; the guest may see any part of it at any time."""

    def fence(self) -> None:
        """A full memory barrier: no load or store moves across it."""
