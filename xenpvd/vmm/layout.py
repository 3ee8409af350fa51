"""Where everything lies in guest physical memory. Addresses and sizes in bytes.

The shim takes 0x1000-0x11000 for its trampoline and early heap, and 2 MiB-10 MiB for itself.
"""

from __future__ import annotations

from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE

MIB = 1 << 20
GIB = 1 << 30
HUGE_PAGE = 2 * MIB

#: hvm_start_info, module list and command lines; outside what the shim takes, below 1 MiB
START_INFO = 0x20000
START_INFO_END = 0x30000
#: PT_LOAD of the shim goes where its ELF header says: 2 MiB
SHIM_MIN = 1 * MIB
#: the guest kernel, then the initrd; each page aligned
MODULES = 16 * MIB

#: RAM below this, the rest from 4 GiB on
LOW_RAM_MAX = 0xF000_0000
#: ACPI tables, libxl's place (e820 type 3)
ACPI = 0xFC00_0000
ACPI_SIZE = 16 * PAGE_SIZE
#: libxl's special pages (tools/include/xenguest.h): pfn 0xfeff8 + n, reserved in the e820
SPECIAL = 0xFEFF_8000
SPECIAL_SIZE = 8 * PAGE_SIZE
STORE_PFN = (SPECIAL >> PAGE_SHIFT) + 4
CONSOLE_PFN = (SPECIAL >> PAGE_SHIFT) + 7
HIGH_RAM = 4 * GIB
#: a slot above all RAM and not in the e820: the shim maps shared_info and grant frames there
HOLE_SIZE = 2 * MIB
#: Intel needs these even without real mode; clear of everything above
IDENTITY_MAP = 0xFFFB_C000
TSS = 0xFFFB_D000


def split_ram(size: int) -> tuple[int, int]:
    """(bytes below 4 GiB, bytes from 4 GiB on) for ``size`` bytes of RAM."""
    low = min(size, LOW_RAM_MAX)
    return low, size - low


def hole(size: int) -> int:
    """Where the hole begins for ``size`` bytes of RAM: the first address above all that the e820 names."""
    return HIGH_RAM + split_ram(size)[1]
