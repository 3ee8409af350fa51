"""The guest's grant table, version 1 (include/public/grant_table.h): which of its pages domain 0 may use.

An entry's frame is the guest's own frame number; mapping is one table look-up and one compare-and-swap of
the entry's flags, which tells the guest that the page is in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from xenpvd.abi.grant_table import (
    GRANTS_PER_FRAME,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_permission_denied,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_type_mask,
    GTF_writing,
    grant_entry_v1,
)
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.abi.xen import EINVAL
from xenpvd.errors import GrantError, XenError

MAX_FRAMES = 64
#: A frame number that names nothing
INVALID_GFN = (1 << 64) - 1
#: A guest that keeps changing the entry while we claim it loses, not we (5 tries, as Xen does).
_TRIES = 5


class GrantMemory(Protocol):
    """Guest physical memory as the table needs it. All raise ``XenError`` EFAULT outside of it."""

    def read(self, gpa: int, length: int) -> bytes: ...

    def write(self, gpa: int, data: bytes) -> None: ...

    def cas16(self, gpa: int, expected: int, desired: int) -> bool:
        """Atomic compare-and-swap of a u16."""

    def is_there(self, gfn: int) -> bool:
        """Whether it is RAM that the guest has not given back."""


class Uses(Protocol):
    """How often each reference is mapped, by whoever does it: maps, and how many of them are writable."""

    def hold(self, gref: int) -> tuple[int, int]:
        """(maps, writable); nobody else changes them, or the entry's bits, until :meth:`let_go`."""

    def let_go(self, gref: int, maps: int, writable: int) -> None: ...

    def maps(self, gref: int) -> int:
        """As it is just now."""

    def active(self, grefs: int) -> int:
        """How many of the first ``grefs`` are mapped now."""


class GrantEntry(NamedTuple):
    """An entry as the guest has it; ``maps``: how often it is mapped now."""

    gref: int
    flags: int
    domid: int
    frame: int
    maps: int


class GrantTable:
    """Not thread-safe: its owner holds a lock around each call."""

    def __init__(self, memory: GrantMemory, uses: Uses) -> None:
        self._memory = memory
        self._uses = uses
        self._frames: dict[int, int] = {}

    @property
    def nr_frames(self) -> int:
        """The size of the table, from frame 0 on."""
        return max(self._frames, default=-1) + 1

    def frames(self) -> list[int]:
        """Where each of ``nr_frames`` lies; INVALID_GFN where the guest has placed none."""
        return [self._frames.get(idx, INVALID_GFN) for idx in range(self.nr_frames)]

    @property
    def active(self) -> int:
        """How many references are mapped now."""
        return self._uses.active(self.nr_frames * GRANTS_PER_FRAME)

    def set_frame(self, idx: int, gfn: int) -> None:
        """XENMAPSPACE_grant_table: frame ``idx`` now lies at ``gfn``; a moved frame keeps its entries."""
        if idx >= MAX_FRAMES:
            raise XenError(EINVAL, f"grant frame {idx} of at most {MAX_FRAMES}")
        old = self._frames.get(idx)
        content = bytes(PAGE_SIZE) if old is None else self._memory.read(old << PAGE_SHIFT, PAGE_SIZE)
        self._memory.write(gfn << PAGE_SHIFT, content)
        self._frames[idx] = gfn

    def claim(self, gref: int, *, readonly: bool, domid: int = 0) -> int:
        """Mark an entry, granted to ``domid``, as in use and return the frame. Raises :class:`GrantError`."""
        at = self._entry(gref)
        maps, writable = self._uses.hold(gref)
        try:
            frame = self._mark(gref, at, readonly, domid)
            maps, writable = maps + 1, writable + (not readonly)
        finally:
            self._uses.let_go(gref, maps, writable)
        return frame

    def _mark(self, gref: int, at: int, readonly: bool, domid: int) -> int:
        wanted = GTF_reading if readonly else GTF_reading | GTF_writing
        for _ in range(_TRIES):
            flags, grantee, frame = grant_entry_v1.unpack(self._memory.read(at, grant_entry_v1.size))
            if flags & GTF_type_mask != GTF_permit_access:
                raise GrantError(GNTST_bad_gntref, f"gref {gref} grants nothing (flags {flags:#x})")
            if grantee != domid:
                raise GrantError(GNTST_bad_domain, f"gref {gref} is granted to domain {grantee}, not {domid}")
            if flags & GTF_readonly and not readonly:
                raise GrantError(GNTST_permission_denied, f"gref {gref} is read-only")
            if not self._memory.is_there(frame):
                raise GrantError(GNTST_bad_page, f"gref {gref} names frame {frame:#x}, not RAM")
            if flags & wanted == wanted or self._memory.cas16(at, flags, flags | wanted):
                return int(frame)
        raise GrantError(GNTST_eagain, f"gref {gref} keeps changing")

    def release(self, gref: int, *, readonly: bool) -> None:
        """Undo one :meth:`claim`; the last one clears the bits that tell the guest."""
        at = self._entry(gref)
        maps, writable = self._uses.hold(gref)
        maps, writable = maps - 1, writable - (not readonly)
        try:
            self._unmark(at, (0 if writable else GTF_writing) | (0 if maps else GTF_reading))
        finally:
            self._uses.let_go(gref, maps, writable)

    def _unmark(self, at: int, unused: int) -> None:
        for _ in range(_TRIES if unused else 0):
            flags = int.from_bytes(self._memory.read(at, 2), "little")
            if not flags & unused or self._memory.cas16(at, flags, flags & ~unused):
                return

    def listing(self, limit: int) -> list[GrantEntry]:
        """The first ``limit`` entries that grant something, by their references."""
        return list(islice(self._granted(), limit))

    def _granted(self) -> Iterator[GrantEntry]:
        for idx, gfn in sorted(self._frames.items()):
            try:
                content = self._memory.read(gfn << PAGE_SHIFT, PAGE_SIZE)
            except XenError:
                continue
            for n, (flags, domid, frame) in enumerate(grant_entry_v1.iter_unpack(content)):
                if flags & GTF_type_mask:
                    gref = idx * GRANTS_PER_FRAME + n
                    yield GrantEntry(gref, flags, domid, frame, self._uses.maps(gref))

    def _entry(self, gref: int) -> int:
        frame = self._frames.get(gref // GRANTS_PER_FRAME)
        if frame is None:
            raise GrantError(GNTST_bad_gntref, f"gref {gref} is beyond the table")
        return (frame << PAGE_SHIFT) + gref % GRANTS_PER_FRAME * grant_entry_v1.size
