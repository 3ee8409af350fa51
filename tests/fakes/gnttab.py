"""A grant table without Xen: the guest grants FakePages, backends map them; every map is counted."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass

from tests.fakes.page import FakePage
from xenpvd.backends.ops import GrantError

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
    """Fits ``backends.ops.GnttabOps``; ``grant`` and ``end_access`` are the guest's end.

    ``mapped`` says how often each gref is mapped now (none: the balance is even); ``maps`` counts all maps.
    """

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.mapped: Counter[int] = Counter()
        self.maps = 0
        self._lock = threading.Lock()
        self._next = 8  # the first that Linux hands out

    def grant(self, page: FakePage, *, readonly: bool = False, domid: int = 0) -> int:
        gref, self._next = self._next, self._next + 1
        self.entries[gref] = Entry(page, readonly, domid)
        return gref

    def end_access(self, gref: int) -> None:
        del self.entries[gref]

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
            self.mapped[gref] += by
            self.maps += by > 0
            if not self.mapped[gref]:
                del self.mapped[gref]
