"""xen/include/public/memory.h: memory_op."""

from __future__ import annotations

from struct import Struct

from xenpvd.abi.xen import Layouts

XENMEM_increase_reservation = 0
XENMEM_decrease_reservation = 1
XENMEM_maximum_ram_page = 2
XENMEM_current_reservation = 3
XENMEM_maximum_reservation = 4
XENMEM_populate_physmap = 6
XENMEM_add_to_physmap = 7
XENMEM_memory_map = 9
XENMEM_exchange = 11
XENMEM_maximum_gpfn = 14
XENMEM_remove_from_physmap = 15
XENMEM_add_to_physmap_batch = 23

XENMAPSPACE_shared_info = 0
XENMAPSPACE_grant_table = 1
XENMAPSPACE_gmfn = 2
XENMAPSPACE_gmfn_range = 3
XENMAPSPACE_gmfn_foreign = 4
XENMAPSPACE_dev_mmio = 5

xen_add_to_physmap = Layouts(Struct("<HHIQQ"), Struct("<HHIII"))  # domid size space idx gpfn
#: domid space size foreign_domid idxs gpfns errs (pointers to arrays of ulong, ulong and int)
xen_add_to_physmap_batch = Layouts(Struct("<HHHHQQQ"), Struct("<HHHHIII"))
xen_remove_from_physmap = Layouts(Struct("<H6xQ"), Struct("<H2xI"))  # domid gpfn
#: extent_start (pointer to an array of ulong) nr_extents extent_order mem_flags domid
xen_memory_reservation = Layouts(Struct("<QQIIH6x"), Struct("<IIIIH2x"))
xen_memory_domain = Struct("<H")  # domid
xen_memory_map = Layouts(Struct("<I4xQ"), Struct("<II"))  # nr_entries buffer

#: One entry of the map: the BIOS e820 layout, packed.
e820entry = Struct("<QQI")
E820_RAM = 1
E820_RESERVED = 2
E820_ACPI = 3
