"""xen/include/public/version.h: xen_version; features.h: the feature bits."""

from __future__ import annotations

from struct import Struct

from xenpvd.abi.xen import Layouts

XENVER_version = 0
XENVER_extraversion = 1
XENVER_compile_info = 2
XENVER_capabilities = 3
XENVER_changeset = 4
XENVER_platform_parameters = 5
XENVER_get_features = 6
XENVER_pagesize = 7
XENVER_guest_handle = 8
XENVER_commandline = 9
XENVER_build_id = 10

xen_extraversion = Struct("<16s")
xen_compile_info = Struct("<64s16s32s32s")  # compiler compile_by compile_domain compile_date
xen_capabilities_info = Struct("<1024s")
xen_changeset_info = Struct("<64s")
xen_platform_parameters = Layouts(Struct("<Q"), Struct("<I"))  # virt_start
xen_feature_info = Struct("<II")  # submap_idx submap(OUT)
xen_domain_handle = Struct("<16s")
xen_commandline = Struct("<1024s")

#: where Xen's own part of a guest's address space begins, for 64-bit and for 32-bit guests
HYPERVISOR_VIRT_START = 0xFFFF_8000_0000_0000
HYPERVISOR_COMPAT_VIRT_START = 0xF580_0000

XENFEAT_writable_page_tables = 0
XENFEAT_auto_translated_physmap = 2
XENFEAT_hvm_callback_vector = 8
XENFEAT_hvm_safe_pvclock = 9
XENFEAT_memory_op_vnode_supported = 13
XENFEAT_not_direct_mapped = 16
