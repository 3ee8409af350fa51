"""KVM's memory slots: those a VM begins with, and a page wherever the guest wants one of Xen's.

The shim maps shared_info and grant frames at the first frame above all that it knows, others elsewhere; a
slot of one page is made where add_to_physmap points, within bounds.
"""

from __future__ import annotations

import errno

from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.abi.xen import EINVAL
from xenpvd.errors import HostError, XenError
from xenpvd.vmm import layout
from xenpvd.vmm.kvm import Vm
from xenpvd.vmm.memory import GuestMemory, Region, allocate
from xenpvd.vmm.xen.gnttab import MAX_FRAMES

#: shared_info, the grant frames, and as much again for a guest that begins anew (kexec)
CLAIMS_MAX = 2 * (1 + MAX_FRAMES)
#: IOAPIC, LAPIC, Xen's special pages, the TSS that Intel CPUs need
DEVICES = range(0xFEC0_0000, 1 << 32)


class Slots:
    """Machine's lock held. ``phys_bits``: how wide the guest's physical addresses are."""

    def __init__(self, vm: Vm, memory: GuestMemory, phys_bits: int) -> None:
        self._vm = vm
        self._memory = memory
        self._limit = 1 << phys_bits
        self._next = 0

    def add(self, name: str, gpa: int, size: int, *, ram: bool = False) -> None:
        """Raises :class:`HostError`, :class:`KvmError`."""
        self._back(self._memory.add(name, gpa, size, ram=ram))

    def claim(self, gfn: int) -> None:
        """Have memory at ``gfn`` if there is none. Raises ``XenError``: EINVAL where no page of the guest's
        can be, ENOMEM if it has claimed too many or the host has none."""
        if self.is_backed(gfn):
            return
        gpa = gfn << PAGE_SHIFT
        acpi = range(layout.ACPI, layout.ACPI + layout.ACPI_SIZE)
        if not 0 <= gpa < self._limit or gpa in DEVICES or gpa in acpi:
            raise XenError(EINVAL, f"there can be no memory of the guest at frame {gfn:#x}")
        if self._memory.claimed >= CLAIMS_MAX:
            raise XenError(errno.ENOMEM, f"the guest has {CLAIMS_MAX} pages outside of its RAM already")
        try:
            page = allocate("claimed", gpa, PAGE_SIZE, ram=False)
        except HostError as fault:
            raise XenError(errno.ENOMEM, str(fault)) from None
        self._back(page)
        self._memory.add_page(page)

    def is_backed(self, gfn: int) -> bool:
        """Whether the guest has memory there that is its own: RAM or claimed."""
        return self._memory.is_ram(gfn) or self._memory.is_claimed(gfn)

    def _back(self, region: Region) -> None:
        self._vm.set_memory_region(self._next, region.gpa, region.size, region.address)
        self._next += 1
