"""A grant table without Xen: the guest grants FakePages, backends map them; every map is counted."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections import Counter
from dataclasses import dataclass

from tests.fakes.page import REGION, FakePage
from xenpvd.abi.grant_table import (
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
    grant_entry_v1,
)
from xenpvd.abi.page import PAGE_SIZE, GrantMemory
from xenpvd.backends.ops import GrantError

#: of the grant table: room for 4096 references
FRAMES = 8

GNTST_general_error = -1
GNTST_bad_gntref = -3
GNTST_permission_denied = -8


@dataclass
class Entry:
    page: FakePage
    readonly: bool
    domid: int


class FakeGrant:
    """Fits ``backends.ops.Grant``; using the page after :meth:`unmap` is an AssertionError."""

    def __init__(self, table: FakeGnttab, gref: int, page: FakePage) -> None:
        self._table = table
        self._gref = gref
        self._page = page
        self._mapped = True

    @property
    def page(self) -> FakePage:
        assert self._mapped, "used after unmap"
        return self._page

    def unmap(self) -> None:
        if self._mapped:
            self._mapped = False
            self._table.count(self._gref, -1)


class FakeGnttab:
    """Fits ``backends.ops.GnttabOps``; ``grant`` and ``end_access`` are the guest's end. There is a real
    table as well, for a plane that reads it.

    ``mapped`` says how often each gref is mapped now (none: the balance is even); ``maps`` counts all maps.
    """

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.maps = 0
        self._mapped: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._next = 8  # the first that Linux hands out
        self.table = memoryview(mmap.mmap(-1, FRAMES * PAGE_SIZE))
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self.table))
        self._frames = (ctypes.c_uint64 * 64)(*(begin + n * PAGE_SIZE for n in range(FRAMES)))
        self._uses = (ctypes.c_uint64 * (FRAMES * 512))()

    def memory(self) -> GrantMemory:
        return GrantMemory((REGION,), ctypes.addressof(self._frames), ctypes.addressof(self._uses))

    @property
    def mapped(self) -> Counter[int]:
        in_use = GTF_reading | GTF_writing
        marked = [gref for gref in self.entries if self.table[gref * 8] & in_use or self._uses[gref]]
        return self._mapped + Counter(marked)

    def page(self) -> FakePage:
        return FakePage()

    def grant(self, page: FakePage, *, readonly: bool = False, domid: int = 0) -> int:
        gref, self._next = self._next, self._next + 1
        self.entries[gref] = Entry(page, readonly, domid)
        flags = GTF_permit_access | (GTF_readonly if readonly else 0)
        grant_entry_v1.pack_into(self.table, gref * 8, flags, domid, page.gfn)
        return gref

    def end_access(self, gref: int) -> None:
        del self.entries[gref]
        grant_entry_v1.pack_into(self.table, gref * 8, 0, 0, 0)

    def map(self, gref: int, *, readonly: bool = False) -> FakeGrant:
        entry = self.entries.get(gref)
        if entry is None:
            raise GrantError(GNTST_bad_gntref, f"gref {gref} is not granted")
        if entry.domid != 0:
            raise GrantError(GNTST_permission_denied, f"gref {gref} is granted to domain {entry.domid}")
        if entry.readonly and not readonly:
            raise GrantError(GNTST_general_error, f"gref {gref} is granted for reading only")
        self.count(gref, 1)
        return FakeGrant(self, gref, entry.page)

    def count(self, gref: int, by: int) -> None:
        with self._lock:
            self._mapped[gref] += by
            self.maps += by > 0
            if not self._mapped[gref]:
                del self._mapped[gref]
