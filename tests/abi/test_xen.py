"""The layouts of Xen's public headers that hypercalls use, all in one table: sizes, offsets, numbers.

Values come from the headers (x86-64 and x86-32); a field is found by packing a mark into it alone.
"""

from __future__ import annotations

from struct import Struct

import pytest

from xenpvd.abi import (
    cpuid,
    event_channel,
    grant_table,
    hvm_op,
    io_console,
    memory,
    sched,
    vcpu,
    version,
    xen,
)
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE

#: (layout, size, offset of each field)
LAYOUTS = [
    (event_channel.evtchn_alloc_unbound, 8, (0, 2, 4)),
    (event_channel.evtchn_bind_interdomain, 12, (0, 4, 8)),
    (event_channel.evtchn_bind_virq, 12, (0, 4, 8)),
    (event_channel.evtchn_bind_pirq, 12, (0, 4, 8)),
    (event_channel.evtchn_bind_ipi, 8, (0, 4)),
    (event_channel.evtchn_bind_vcpu, 8, (0, 4)),
    (event_channel.evtchn_port, 4, (0,)),
    (event_channel.evtchn_reset, 2, (0,)),
    (event_channel.evtchn_status, 24, (0, 4, 8, 12, 16, 20)),
    (grant_table.grant_entry_v1, 8, (0, 2, 4)),
    (grant_table.gnttab_map_grant_ref, 32, (0, 8, 12, 16, 18, 20, 24)),
    (grant_table.gnttab_unmap_grant_ref, 24, (0, 8, 16, 20)),
    (grant_table.gnttab_setup_table.native, 24, (0, 4, 8, 16)),
    (grant_table.gnttab_setup_table.compat, 16, (0, 4, 8, 12)),
    (grant_table.gnttab_copy.native, 40, (0, 8, 10, 16, 24, 26, 32, 34, 36)),
    (grant_table.gnttab_copy.compat, 24, (0, 4, 6, 8, 12, 14, 16, 18, 20)),
    (grant_table.gnttab_query_size, 16, (0, 4, 8, 12)),
    (grant_table.gnttab_set_version, 4, (0,)),
    (grant_table.gnttab_get_version, 8, (0, 4)),
    (hvm_op.xen_hvm_param, 16, (0, 4, 8)),
    (hvm_op.xen_hvm_get_time, 8, (0,)),
    (hvm_op.xen_hvm_evtchn_upcall_vector, 8, (0, 4)),
    (memory.xen_add_to_physmap.native, 24, (0, 2, 4, 8, 16)),
    (memory.xen_add_to_physmap.compat, 16, (0, 2, 4, 8, 12)),
    (memory.xen_add_to_physmap_batch.native, 32, (0, 2, 4, 6, 8, 16, 24)),
    (memory.xen_add_to_physmap_batch.compat, 20, (0, 2, 4, 6, 8, 12, 16)),
    (memory.xen_remove_from_physmap.native, 16, (0, 8)),
    (memory.xen_remove_from_physmap.compat, 8, (0, 4)),
    (memory.xen_memory_reservation.native, 32, (0, 8, 16, 20, 24)),
    (memory.xen_memory_reservation.compat, 20, (0, 4, 8, 12, 16)),
    (memory.xen_memory_domain, 2, (0,)),
    (memory.xen_memory_map.native, 16, (0, 8)),
    (memory.xen_memory_map.compat, 8, (0, 4)),
    (memory.e820entry, 20, (0, 8, 16)),
    (sched.sched_shutdown, 4, (0,)),
    (sched.sched_poll.native, 24, (0, 8, 16)),
    (sched.sched_poll.compat, 16, (0, 4, 8)),
    (sched.sched_remote_shutdown, 8, (0, 4)),
    (sched.sched_watchdog, 8, (0, 4)),
    (vcpu.vcpu_runstate_info.native, 48, (0, 8, 16, 24, 32, 40)),
    (vcpu.vcpu_runstate_info.compat, 44, (0, 4, 12, 20, 28, 36)),
    (vcpu.vcpu_register_memory_area, 8, (0,)),
    (vcpu.vcpu_set_periodic_timer, 8, (0,)),
    (vcpu.vcpu_set_singleshot_timer, 12, (0, 8)),
    (vcpu.vcpu_register_vcpu_info, 16, (0, 8, 12)),
    (version.xen_platform_parameters.native, 8, (0,)),
    (version.xen_platform_parameters.compat, 4, (0,)),
    (version.xen_feature_info, 8, (0, 4)),
    (xen.multicall_entry.native, 64, tuple(range(0, 64, 8))),
    (xen.multicall_entry.compat, 32, tuple(range(0, 32, 4))),
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
        (xen.HYPERVISOR_multicall, 13),
        (xen.HYPERVISOR_set_timer_op, 15),
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
        # arch-x86/xen.h: a bit for each port, in as many words as a word has bits
        (xen.EVTCHN_2L_NR_CHANNELS, 64 * 64),
        (xen.EVTCHN_2L_NR_CHANNELS_compat, 32 * 32),
        # version.h
        (version.xen_extraversion.size, 16),
        (version.xen_compile_info.size, 64 + 16 + 32 + 32),
        (version.xen_capabilities_info.size, 1024),
        (version.xen_changeset_info.size, 64),
        (version.xen_domain_handle.size, 16),
        (version.xen_commandline.size, 1024),
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
