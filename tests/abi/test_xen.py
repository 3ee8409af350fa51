"""The layouts of Xen's public headers that hypercalls use, all in one table: sizes, offsets, numbers.

Values come from the headers (x86-64); a field is found by packing a mark into it alone.
"""

from __future__ import annotations

from struct import Struct

import pytest

from xenpvd.abi import cpuid, event_channel, grant_table, hvm_op, io_console, memory, sched, vcpu, xen
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE

#: (layout, size, offset of each field)
LAYOUTS = [
    (event_channel.evtchn_alloc_unbound, 8, (0, 2, 4)),
    (event_channel.evtchn_bind_interdomain, 12, (0, 4, 8)),
    (event_channel.evtchn_bind_ipi, 8, (0, 4)),
    (event_channel.evtchn_bind_vcpu, 8, (0, 4)),
    (event_channel.evtchn_port, 4, (0,)),
    (event_channel.evtchn_reset, 2, (0,)),
    (event_channel.evtchn_status, 24, (0, 4, 8, 12, 16, 20)),
    (grant_table.grant_entry_v1, 8, (0, 2, 4)),
    (grant_table.gnttab_query_size, 16, (0, 4, 8, 12)),
    (hvm_op.xen_hvm_param, 16, (0, 4, 8)),
    (hvm_op.xen_hvm_evtchn_upcall_vector, 8, (0, 4)),
    (memory.xen_add_to_physmap, 24, (0, 2, 4, 8, 16)),
    (memory.xen_memory_reservation, 32, (0, 8, 16, 20, 24)),
    (memory.xen_memory_map, 16, (0, 8)),
    (memory.e820entry, 20, (0, 8, 16)),
    (sched.sched_shutdown, 4, (0,)),
    (vcpu.vcpu_register_vcpu_info, 16, (0, 8, 12)),
    (xen.HVM_START_INFO, 56, (0, 4, 8, 12, 16, 24, 32, 40, 48, 52)),
    (xen.HVM_MODLIST_ENTRY, 32, (0, 8, 16, 24)),
    (xen.HVM_MEMMAP_ENTRY, 24, (0, 8, 16, 20)),
]


@pytest.mark.parametrize("layout, size, offsets", LAYOUTS)
def test_every_field_lies_where_the_header_puts_it(
    layout: Struct, size: int, offsets: tuple[int, ...]
) -> None:
    assert layout.size == size
    for field, offset in enumerate(offsets):
        values = [0] * len(offsets)
        values[field] = 0x5A
        assert layout.pack(*values).index(0x5A) == offset


@pytest.mark.parametrize(
    "mine, header",
    [
        # xen.h
        (xen.HYPERVISOR_memory_op, 12),
        (xen.HYPERVISOR_xen_version, 17),
        (xen.HYPERVISOR_console_io, 18),
        (xen.HYPERVISOR_grant_table_op, 20),
        (xen.HYPERVISOR_vcpu_op, 24),
        (xen.HYPERVISOR_sched_op, 29),
        (xen.HYPERVISOR_event_channel_op, 32),
        (xen.HYPERVISOR_hvm_op, 34),
        (xen.DOMID_SELF, 0x7FF0),
        (xen.SHARED_INFO_evtchn_pending, xen.XEN_LEGACY_MAX_VCPUS * xen.VCPU_INFO_SIZE),
        (xen.SHARED_INFO_evtchn_mask - xen.SHARED_INFO_evtchn_pending, xen.EVTCHN_2L_NR_CHANNELS // 8),
        # grant_table.h
        (grant_table.GRANTS_PER_FRAME * grant_table.grant_entry_v1.size, PAGE_SIZE),
        # io/console.h: in[1024], out[2048], then four indexes
        (io_console.XENCONS_OUT - io_console.XENCONS_IN, io_console.XENCONS_IN_SIZE),
        (io_console.XENCONS_in_cons - io_console.XENCONS_OUT, io_console.XENCONS_OUT_SIZE),
        (io_console.XENCONS_in_prod, io_console.XENCONS_in_cons + 4),
        (io_console.XENCONS_out_cons, io_console.XENCONS_in_cons + 8),
        (io_console.XENCONS_out_prod, io_console.XENCONS_in_cons + 12),
        (PAGE_SIZE, 1 << PAGE_SHIFT),
    ],
)
def test_numbers(mine: int, header: int) -> None:
    assert mine == header


def test_the_signature_reads_xenvmmxenvmm() -> None:
    registers = cpuid.XEN_CPUID_SIGNATURE_EBX, cpuid.XEN_CPUID_SIGNATURE_ECX, cpuid.XEN_CPUID_SIGNATURE_EDX
    assert b"".join(n.to_bytes(4, "little") for n in registers) == b"XenVMMXenVMM"


def test_every_shutdown_reason_has_its_name() -> None:
    constants = {
        value: name.removeprefix("SHUTDOWN_")
        for name, value in vars(sched).items()
        if name.startswith("SHUTDOWN_") and isinstance(value, int)
    }
    assert constants == sched.SHUTDOWN_NAMES
