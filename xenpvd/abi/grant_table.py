"""xen/include/public/grant_table.h: grant entries, version 1, and grant_table_op."""

from __future__ import annotations

from struct import Struct

GTF_type_mask = 3
GTF_permit_access = 1
GTF_readonly = 1 << 2
GTF_reading = 1 << 3
GTF_writing = 1 << 4

grant_entry_v1 = Struct("<HHI")  # flags domid frame
GRANTS_PER_FRAME = 512

GNTTABOP_query_size = 6
gnttab_query_size = Struct("<H2xIIh2x")  # dom nr_frames(OUT) max_nr_frames(OUT) status(OUT)

GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
GNTST_bad_gntref = -3
GNTST_permission_denied = -8
GNTST_bad_page = -9
GNTST_eagain = -12
