"""A guest's memory and grant table as the daemon really has them, with the guest's end of both."""

from __future__ import annotations

import struct
from collections import Counter

from xenpvd.abi.grant_table import (
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
    grant_entry_v1,
)
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE, GrantMemory
from xenpvd.vmm.atomic import cas16
from xenpvd.vmm.grants import Grant, Grants
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.memory import GuestMemory, Page

RAM = 16 * MIB
IN_USE = GTF_reading | GTF_writing


class GuestPage(Page):
    __slots__ = ("gfn",)

    def __init__(self, view: memoryview, gfn: int) -> None:
        super().__init__(view)
        self.gfn = gfn


class Guest:
    """Fits :class:`tests.fakes.gnttab.FakeGnttab`'s users. The table is in the first pages."""

    FRAMES = 8

    def __init__(self) -> None:
        self.ram = GuestMemory()
        self.ram.add("ram", 0, RAM, ram=True)
        self.grants = Grants(self.ram)
        for frame in range(self.FRAMES):
            self.grants.set_frame(frame, frame)
        self._next_gfn, self._next_gref = self.FRAMES, 8

    def page(self) -> GuestPage:
        gfn, self._next_gfn = self._next_gfn, self._next_gfn + 1
        return GuestPage(self.ram.view(gfn << PAGE_SHIFT, PAGE_SIZE), gfn)

    def grant(self, page: GuestPage, *, readonly: bool = False, domid: int = 0) -> int:
        gref, self._next_gref = self._next_gref, self._next_gref + 1
        self.regrant(gref, page, readonly=readonly, domid=domid)
        return gref

    def regrant(self, gref: int, page: GuestPage, *, readonly: bool = False, domid: int = 0) -> None:
        flags = GTF_permit_access | (GTF_readonly if readonly else 0)
        self.write_entry(gref, flags, domid, page.gfn)

    def write_entry(self, gref: int, flags: int, domid: int, frame: int) -> None:
        self.ram.write(gref * grant_entry_v1.size, struct.pack("<HHI", flags, domid, frame))

    def entry(self, gref: int) -> tuple[int, int, int]:
        """flags, domid, frame"""
        flags, domid, frame = struct.unpack("<HHI", self.ram.read(gref * grant_entry_v1.size, 8))
        return flags, domid, frame

    def flags(self, gref: int) -> int:
        return self.entry(gref)[0]

    def end_access(self, gref: int) -> bool:
        """As Linux: not while the backend says that it uses it."""
        while not (flags := self.flags(gref)) & IN_USE:
            if cas16(self.ram.address(gref * grant_entry_v1.size, 2), flags, 0):
                return True
        return False

    def map(self, gref: int, *, readonly: bool = False) -> Grant:
        return self.grants.map(gref, readonly=readonly)

    def memory(self) -> GrantMemory:
        return self.grants.memory()

    @property
    def mapped(self) -> Counter[int]:
        """As it is counted and, for what is marked without being counted, 1."""
        found = self.grants.listing()
        return +Counter({each.gref: each.maps or each.reading or each.writing for each in found})
