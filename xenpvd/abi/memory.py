"""xen/include/public/memory.h: memory_op."""

from __future__ import annotations

from struct import Struct

XENMEM_decrease_reservation = 1
XENMEM_populate_physmap = 6
XENMEM_add_to_physmap = 7
XENMEM_memory_map = 9

XENMAPSPACE_shared_info = 0
XENMAPSPACE_grant_table = 1

xen_add_to_physmap = Struct("<HHIQQ")  # domid size space idx gpfn
xen_memory_reservation = Struct("<QQIIH6x")  # extent_start nr_extents extent_order mem_flags domid
xen_memory_map = Struct("<I4xQ")  # nr_entries buffer

#: One entry of the map: the BIOS e820 layout, packed.
e820entry = Struct("<QQI")
E820_RAM = 1
E820_RESERVED = 2
E820_ACPI = 3
