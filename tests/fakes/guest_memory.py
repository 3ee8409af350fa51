"""Guest memory and a guest's page tables without KVM."""

from __future__ import annotations

from collections.abc import Callable

from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.abi.xen import EFAULT
from xenpvd.errors import XenError

PRESENT, WRITE, HUGE = 1, 2, 1 << 7


class FakeMemory:
    """RAM from 0 on that fits ``PhysicalMemory`` and ``GrantMemory``. ``on_read``, if set, runs before each
    read and may change what is read: a guest that races."""

    def __init__(self, pages: int = 64) -> None:
        self.bytes = bytearray(pages * PAGE_SIZE)
        self.on_read: Callable[[int], None] = lambda gpa: None
        #: what cas16 answers before it looks at the memory; None: it looks
        self.refuse_cas: Callable[[], bool] = lambda: False

    def _check(self, gpa: int, length: int) -> None:
        if gpa < 0 or gpa + length > len(self.bytes):
            raise XenError(EFAULT, f"no memory at {gpa:#x}")

    def read(self, gpa: int, length: int) -> bytes:
        self._check(gpa, length)
        self.on_read(gpa)
        return bytes(self.bytes[gpa : gpa + length])

    def write(self, gpa: int, data: bytes) -> None:
        self._check(gpa, len(data))
        self.bytes[gpa : gpa + len(data)] = data

    def cas16(self, gpa: int, expected: int, desired: int) -> bool:
        self._check(gpa, 2)
        if self.refuse_cas() or int.from_bytes(self.bytes[gpa : gpa + 2], "little") != expected:
            return False
        self.bytes[gpa : gpa + 2] = desired.to_bytes(2, "little")
        return True

    def is_ram(self, gfn: int) -> bool:
        return 0 <= gfn < len(self.bytes) >> PAGE_SHIFT

    is_there = is_ram

    def word(self, gpa: int, length: int = 4) -> int:
        return int.from_bytes(self.read(gpa, length), "little")


class FakeUses:
    """Fits ``vmm.xen.gnttab.Uses``; two holders of one count are an AssertionError."""

    def __init__(self) -> None:
        self.counts: dict[int, tuple[int, int]] = {}
        self.held: set[int] = set()

    def hold(self, gref: int) -> tuple[int, int]:
        assert gref not in self.held
        self.held.add(gref)
        return self.counts.get(gref, (0, 0))

    def let_go(self, gref: int, maps: int, writable: int) -> None:
        self.held.remove(gref)
        assert maps >= writable >= 0
        self.counts[gref] = maps, writable

    def maps(self, gref: int) -> int:
        return self.counts.get(gref, (0, 0))[0]

    def active(self, grefs: int) -> int:
        assert not self.held
        return sum(maps > 0 for gref, (maps, _) in self.counts.items() if gref < grefs)


class PageTables:
    """Page tables in ``memory``, built page by page from frame ``first`` on; ``cr3`` names them.

    ``levels``: the lowest bit of each table's index; 4-level ones if nothing else is said.
    """

    LONG, PAE, LEGACY32 = (39, 30, 21, 12), (30, 21, 12), (22, 12)

    def __init__(self, memory: FakeMemory, first: int = 1, levels: tuple[int, ...] = LONG) -> None:
        self._memory = memory
        self._next = first
        self._levels = levels
        self._size = 4 if levels == self.LEGACY32 else 8
        self.cr3 = self._table()

    def _table(self) -> int:
        table = self._next << PAGE_SHIFT
        self._next += 1
        self._memory.write(table, bytes(PAGE_SIZE))
        return table

    def map(self, gva: int, gpa: int, *, shift: int = 12, flags: int = PRESENT | WRITE) -> None:
        """Map the page (4 KiB; a huge one by ``shift`` 21, 22 or 30) at ``gva`` to ``gpa``."""
        table = self.cr3
        for level in self._levels:
            slot = table + (gva >> level) % (PAGE_SIZE // self._size) * self._size
            if level == shift:
                entry = gpa | flags | (HUGE if shift > 12 else 0)
                self._memory.write(slot, entry.to_bytes(self._size, "little"))
                return
            entry = self._memory.word(slot, self._size)
            if not entry & PRESENT:
                # the four top entries of PAE have no write bit
                entry = self._table() | PRESENT | (0 if level == 30 == self._levels[0] else WRITE)
                self._memory.write(slot, entry.to_bytes(self._size, "little"))
            table = entry & ~0xFFF
