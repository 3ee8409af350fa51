"""xen/include/public/io/console.h: struct xencons_interface."""

from __future__ import annotations

XENCONS_IN = 0
XENCONS_IN_SIZE = 1024
XENCONS_OUT = 1024
XENCONS_OUT_SIZE = 2048
XENCONS_in_cons = 3072
XENCONS_in_prod = 3076
XENCONS_out_cons = 3080
XENCONS_out_prod = 3084
