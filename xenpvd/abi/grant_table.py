"""xen/include/public/grant_table.h: grant entries, version 1, and grant_table_op."""

from __future__ import annotations

from struct import Struct

from xenpvd.abi.xen import Layouts

GTF_type_mask = 3
GTF_permit_access = 1
GTF_readonly = 1 << 2
GTF_reading = 1 << 3
GTF_writing = 1 << 4

grant_entry_v1 = Struct("<HHI")  # flags domid frame
GRANTS_PER_FRAME = 512

GNTTABOP_map_grant_ref = 0
GNTTABOP_unmap_grant_ref = 1
GNTTABOP_setup_table = 2
GNTTABOP_copy = 5
GNTTABOP_query_size = 6
GNTTABOP_set_version = 8
GNTTABOP_get_version = 10

gnttab_map_grant_ref = Struct("<QIIHhIQ")  # host_addr flags ref dom status(OUT) handle(OUT) dev_bus_addr(OUT)
gnttab_unmap_grant_ref = Struct("<QQIh2x")  # host_addr dev_bus_addr handle status(OUT)
gnttab_setup_table = Layouts(Struct("<H2xIh6xQ"), Struct("<H2xIh2xI"))  # dom nr_frames status(OUT) frame_list
#: source.{u.ref|u.gmfn} source.domid source.offset dest.(the same three) len flags status(OUT)
gnttab_copy = Layouts(Struct("<QHH4xQHH4xHHh2x"), Struct("<IHHIHHHHh2x"))
gnttab_query_size = Struct("<H2xIIh2x")  # dom nr_frames(OUT) max_nr_frames(OUT) status(OUT)
gnttab_set_version = Struct("<I")  # version(IN OUT)
gnttab_get_version = Struct("<H2xI")  # dom version(OUT)

GNTCOPY_source_gref = 1
GNTCOPY_dest_gref = 2

GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
GNTST_bad_gntref = -3
GNTST_bad_handle = -4
GNTST_bad_virt_addr = -5
GNTST_permission_denied = -8
GNTST_bad_page = -9
GNTST_bad_copy_arg = -10
GNTST_eagain = -12
