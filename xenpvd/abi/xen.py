"""include/public/xen.h: hypercall numbers, domain ids, shared_info; errno.h: Xen's numbers (= Linux's)."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple


class Layouts(NamedTuple):
    """A struct with ulongs or pointers in it: its layout depends on the width of who calls."""

    native: Struct  # 64-bit callers
    compat: Struct  # 32-bit callers


# __HYPERVISOR_* in C; two leading underscores would be mangled inside a class here
HYPERVISOR_memory_op = 12
HYPERVISOR_multicall = 13
HYPERVISOR_set_timer_op = 15
HYPERVISOR_xen_version = 17
HYPERVISOR_console_io = 18
HYPERVISOR_grant_table_op = 20
HYPERVISOR_vcpu_op = 24
HYPERVISOR_sched_op = 29
HYPERVISOR_event_channel_op = 32
HYPERVISOR_hvm_op = 34

multicall_entry = Layouts(Struct("<8Q"), Struct("<8I"))  # op result(OUT) args[6]

CONSOLEIO_write = 0
CONSOLEIO_read = 1

DOMID_SELF = 0x7FF0
DOMID_FIRST_RESERVED = 0x7FF0

EPERM = 1
ENOENT = 2
ESRCH = 3
ENXIO = 6
E2BIG = 7
ENOMEM = 12
EACCES = 13
EFAULT = 14
EEXIST = 17
EINVAL = 22
ENOSPC = 28
ENOSYS = 38
ENODATA = 61
ETIME = 62
EOPNOTSUPP = 95

VIRQ_TIMER = 0  # per vCPU, as are these three; the others exist once, on vCPU 0
VIRQ_DEBUG = 1
VIRQ_XENOPROF = 7
VIRQ_XENPMU = 13
NR_VIRQS = 24

#: struct shared_info, 64-bit layout (also what KVM uses once KVM_XEN_ATTR_TYPE_LONG_MODE is set).
XEN_LEGACY_MAX_VCPUS = 32
VCPU_INFO_SIZE = 64
SHARED_INFO_evtchn_pending = 0x800
SHARED_INFO_evtchn_mask = 0xA00
EVTCHN_2L_NR_CHANNELS = 4096
#: the same for a 32-bit guest, whose words are 32 bits
EVTCHN_2L_NR_CHANNELS_compat = 1024

#: struct hvm/start_info.h: hvm_start_info, version 1, and its module and memory map entries.
XEN_HVM_START_MAGIC_VALUE = 0x336EC578
HVM_START_INFO = Struct(
    "<IIIIQQQQII"
)  # magic version flags nr_modules modlist cmdline rsdp memmap n reserved
HVM_MODLIST_ENTRY = Struct("<QQQQ")  # paddr size cmdline_paddr reserved
HVM_MEMMAP_ENTRY = Struct("<QQII")  # addr size type reserved

#: include/public/elfnote.h
XEN_ELFNOTE_PHYS32_ENTRY = 18
