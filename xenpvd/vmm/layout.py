"""Where everything lies in guest physical memory. Addresses and sizes in bytes.

The kernel that is entered lies where its ELF headers say: the shim at 2 MiB (and it takes 0x1000-0x11000 for
its trampoline and early heap), Linux at 16 MiB, GRUB at 1 MiB.
"""

from __future__ import annotations

from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE

MIB = 1 << 20
GIB = 1 << 30
HUGE_PAGE = 2 * MIB

#: hvm_start_info, module list and command lines; outside what the shim takes, below 1 MiB
START_INFO = 0x20000
START_INFO_END = 0x30000
#: ACPI's root pointer once more, for a Linux (before 5.0) that does not take the start info's word for it
BIOS_RSDP = 0xF_FFC0
#: a kernel's segments lie from here on
KERNEL_MIN = 1 * MIB
#: modules lie from here on, or after the kernel if that ends later; each page aligned
MODULES_MIN = 16 * MIB

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
#: Intel needs these even without real mode, one page and three; clear of everything above
IDENTITY_MAP = 0xFFFB_C000
TSS = 0xFFFB_D000
KVM_SIZE = 4 * PAGE_SIZE


def split_ram(size: int) -> tuple[int, int]:
    """(bytes below 4 GiB, bytes from 4 GiB on) for ``size`` bytes of RAM."""
    low = min(size, LOW_RAM_MAX)
    return low, size - low


def page_up(address: int) -> int:
    return address + PAGE_SIZE - 1 & -PAGE_SIZE
