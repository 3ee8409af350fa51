"""Guest memory: regions of anonymous host memory behind KVM's slots, and pages of it as SharedPage.

Huge pages are nearly the whole difference between a fast and a slow boot, so the RAM is aligned to 2 MiB
and advised; introspection says what the host made of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from dataclasses import dataclass
from pathlib import Path

from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.abi.xen import EFAULT
from xenpvd.errors import HostError, XenError
from xenpvd.vmm import atomic
from xenpvd.vmm.layout import HUGE_PAGE

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Page:
    """A 4096-byte page: :class:`xenpvd.abi.page.SharedPage` over any writable buffer of that size."""

    __slots__ = ("_u32", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._u32 = view.cast("I")

    def load32(self, offset: int) -> int:
        return self._u32[offset >> 2]

    def store32(self, offset: int, value: int) -> None:
        self._u32[offset >> 2] = value & 0xFFFF_FFFF

    def read(self, offset: int, length: int) -> bytes:
        return self.view[offset : offset + length].tobytes()

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.view[offset : offset + len(data)] = data

    def fence(self) -> None:
        atomic.fence()


@dataclass(slots=True)
class Region:
    """``size`` bytes of guest memory from ``gpa`` on, at ``address`` in this process."""

    name: str
    gpa: int
    size: int
    address: int
    view: memoryview
    ram: bool
    _map: mmap.mmap
    _skip: int  # bytes of the mapping before the region, lost to alignment


def allocate(name: str, gpa: int, size: int, *, ram: bool) -> Region:
    """Anonymous memory for a region; raises :class:`HostError` if the host has too little."""
    align = HUGE_PAGE if size >= HUGE_PAGE else PAGE_SIZE
    try:
        area = mmap.mmap(-1, size + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as fault:
        raise HostError(
            f"cannot allocate {size >> 20} MiB of guest memory: {fault.strerror}. Give the guest less.",
            fault.errno or 0,
            name,
        ) from None
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    skip = -start % align
    if size >= HUGE_PAGE:
        with contextlib.suppress(OSError):  # a kernel without huge pages; page_kind() tells
            area.madvise(mmap.MADV_HUGEPAGE)
    # a core of ours shall not carry the guest's memory. The page after it has no such advice, which keeps
    # the kernel from joining regions: resident.py tells them apart by that
    area.madvise(mmap.MADV_DONTDUMP, skip, size)
    return Region(name, gpa, size, start + skip, memoryview(area)[skip : skip + size], ram, area, skip)


def page_kind() -> tuple[str, str]:
    """What guest RAM is made of, and why: ("huge", ...) or ("4k", ...)."""
    try:
        modes = THP.read_text()
    except OSError:
        return "4k", f"{THP} is missing: this kernel has no transparent huge pages"
    if "[never]" in modes:
        return "4k", f"{THP} says never; for speed: echo madvise > {THP}"
    return "huge", f"transparent 2 MiB pages ({THP.name}: {modes.strip()})"


class GuestMemory:
    """All regions of one VM. Addresses are guest physical; ``XenError`` EFAULT outside of them.

    Regions are only ever added (under the machine's lock), so any thread may look things up. A backend may
    hold a view of a page for as long as it likes.
    """

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self._pages: dict[int, Region] = {}  # of one page each, by address: they may be many
        self._gone: dict[int, bytearray] = {}  # a bit per page of RAM that the guest has given back
        #: how many such pages there are
        self.ballooned = 0

    def add(self, name: str, gpa: int, size: int, *, ram: bool = False) -> Region:
        """Raises :class:`HostError`."""
        region = allocate(name, gpa, size, ram=ram)
        if ram:
            self._gone[gpa] = bytearray((size >> PAGE_SHIFT) + 7 >> 3)
        self.regions.append(region)
        return region

    def add_page(self, page: Region) -> None:
        """A region of one page outside of RAM, as :func:`allocate` makes it."""
        self._pages[page.gpa] = page

    @property
    def claimed(self) -> int:
        return len(self._pages)

    def is_claimed(self, gfn: int) -> bool:
        return gfn << PAGE_SHIFT in self._pages

    def all_regions(self) -> list[Region]:
        return [*self.regions, *self._pages.copy().values()]

    def _find(self, gpa: int, length: int) -> tuple[Region, int]:
        for region in self.regions:
            offset = gpa - region.gpa
            if offset >= 0 and offset + length <= region.size:
                return region, offset
        page = self._pages.get(gpa & -PAGE_SIZE)
        if page is not None and gpa + length <= page.gpa + PAGE_SIZE:
            return page, gpa - page.gpa
        raise XenError(EFAULT, f"no guest memory at {gpa:#x}+{length:#x}")

    def ram_regions(self) -> tuple[tuple[int, int, int, int], ...]:
        """(first gfn, pages, address, address of the bits of those given back) of each."""
        return tuple(
            (
                region.gpa >> PAGE_SHIFT,
                region.size >> PAGE_SHIFT,
                region.address,
                ctypes.addressof(ctypes.c_char.from_buffer(self._gone[region.gpa])),
            )
            for region in self.regions
            if region.ram
        )

    def view(self, gpa: int, length: int) -> memoryview:
        """The bytes themselves; the guest may change them at any time."""
        region, offset = self._find(gpa, length)
        return region.view[offset : offset + length]

    def read(self, gpa: int, length: int) -> bytes:
        return self.view(gpa, length).tobytes()

    def write(self, gpa: int, data: bytes) -> None:
        self.view(gpa, len(data))[:] = data

    def zero(self, gfn: int) -> None:
        self.write(gfn << PAGE_SHIFT, bytes(PAGE_SIZE))

    def page(self, gfn: int) -> Page:
        return Page(self.view(gfn << PAGE_SHIFT, PAGE_SIZE))

    def address(self, gpa: int, length: int) -> int:
        """The host address, for atomics. Valid while this object lives."""
        region, offset = self._find(gpa, length)
        return region.address + offset

    def cas16(self, gpa: int, expected: int, desired: int) -> bool:
        return atomic.cas16(self.address(gpa, 2), expected, desired)

    def region_of(self, gfn: int) -> str | None:
        """The name of the region that holds the page, None outside of all."""
        try:
            return self._find(gfn << PAGE_SHIFT, PAGE_SIZE)[0].name
        except XenError:
            return None

    def is_ram(self, gfn: int) -> bool:
        try:
            return self._find(gfn << PAGE_SHIFT, PAGE_SIZE)[0].ram
        except XenError:
            return False

    def is_there(self, gfn: int) -> bool:
        """Whether it is RAM that the guest has not given back."""
        try:
            region, offset = self._find(gfn << PAGE_SHIFT, PAGE_SIZE)
        except XenError:
            return False
        page, bits = offset >> PAGE_SHIFT, self._gone.get(region.gpa)
        return region.ram and not (bits and bits[page >> 3] >> (page & 7) & 1)

    def discard(self, gfn: int) -> None:
        """The guest gives a page of RAM back: it goes to the host and reads as zeros from now on."""
        region, offset = self._find(gfn << PAGE_SHIFT, PAGE_SIZE)
        region._map.madvise(mmap.MADV_DONTNEED, region._skip + offset, PAGE_SIZE)
        self._set_gone(region, offset >> PAGE_SHIFT, True)

    def populate(self, gfn: int) -> None:
        """The guest takes it again: the host gives memory at the first touch."""
        region, offset = self._find(gfn << PAGE_SHIFT, PAGE_SIZE)
        self._set_gone(region, offset >> PAGE_SHIFT, False)

    def _set_gone(self, region: Region, page: int, gone: bool) -> None:
        bits = self._gone.get(region.gpa)
        if bits is not None and bool(bits[page >> 3] >> (page & 7) & 1) != gone:
            bits[page >> 3] ^= 1 << (page & 7)
            self.ballooned += 1 if gone else -1

    def release(self) -> None:
        """Give everything back to the host at once. Views that linger stay valid and read zeros."""
        for region in self.all_regions():
            region._map.madvise(mmap.MADV_DONTNEED)
