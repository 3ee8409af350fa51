"""Mapping the guest's grants for backends, from any thread.

A lock of its own, not the machine's: disks do not wait for hypercalls. Hypercalls that change the table come
through here, too.
"""

from __future__ import annotations

import ctypes
import threading

from xenpvd.abi.grant_table import GRANTS_PER_FRAME, GTF_reading, GTF_readonly, GTF_writing
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE, GrantMemory
from xenpvd.views import GrantInfo
from xenpvd.vmm.grant_uses import GrantUses
from xenpvd.vmm.memory import GuestMemory, Page
from xenpvd.vmm.xen.gnttab import MAX_FRAMES, GrantTable

#: entries that are told of at most
LISTING_MAX = 4096


class Grant:
    """:class:`xenpvd.backends.ops.Grant`."""

    __slots__ = ("_grants", "gref", "mapped", "page", "readonly")

    def __init__(self, grants: Grants, gref: int, readonly: bool, page: Page) -> None:
        self._grants = grants
        self.gref = gref
        self.readonly = readonly
        self.mapped = True
        self.page = page

    def unmap(self) -> None:
        self._grants.unmap(self)


class Grants:
    """:class:`xenpvd.backends.ops.GnttabOps` and :class:`xenpvd.vmm.xen.doors.GrantFrames`."""

    def __init__(self, memory: GuestMemory) -> None:
        self._uses = GrantUses(MAX_FRAMES * GRANTS_PER_FRAME)
        self._table = GrantTable(memory, self._uses)
        self._memory = memory
        self._lock = threading.Lock()
        self._addresses = (ctypes.c_uint64 * MAX_FRAMES)()

    def memory(self) -> GrantMemory:
        regions = self._memory.ram_regions()
        return GrantMemory(regions, ctypes.addressof(self._addresses), self._uses.address)

    def map(self, gref: int, *, readonly: bool = False) -> Grant:
        with self._lock:
            gfn = self._table.claim(gref, readonly=readonly)
        return Grant(self, gref, readonly, self._memory.page(gfn))

    def unmap(self, grant: Grant) -> None:
        with self._lock:
            if grant.mapped:
                grant.mapped = False
                self._table.release(grant.gref, readonly=grant.readonly)

    @property
    def active(self) -> int:
        """How many references are mapped now."""
        return self._table.active

    def listing(self) -> list[GrantInfo]:
        """The entries that grant something, as the guest has them now."""
        with self._lock:
            entries = self._table.listing(LISTING_MAX)
        return [
            GrantInfo(
                entry.gref,
                entry.frame,
                entry.domid,
                bool(entry.flags & GTF_readonly),
                bool(entry.flags & GTF_reading),
                bool(entry.flags & GTF_writing),
                entry.maps,
            )
            for entry in entries
        ]

    # -- for hypercalls

    @property
    def nr_frames(self) -> int:
        return self._table.nr_frames

    def frames(self) -> list[int]:
        with self._lock:
            return self._table.frames()

    def claim(self, gref: int, *, readonly: bool, domid: int) -> int:
        with self._lock:
            return self._table.claim(gref, readonly=readonly, domid=domid)

    def release(self, gref: int, *, readonly: bool) -> None:
        with self._lock:
            self._table.release(gref, readonly=readonly)

    def set_frame(self, idx: int, gfn: int) -> None:
        with self._lock:
            self._table.set_frame(idx, gfn)
            self._addresses[idx] = self._memory.address(gfn << PAGE_SHIFT, PAGE_SIZE)
