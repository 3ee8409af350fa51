"""KVM's layouts against what the kernel itself checks: the size in each ioctl's number."""

from __future__ import annotations

from struct import Struct

import pytest

from xenpvd.abi import linux_kvm as k

#: ioctl: what it passes. Variable-length ones count their header only (kvm.h: flexible array members).
PASSED = {
    "KVM_GET_SUPPORTED_CPUID": k.kvm_cpuid2.size,
    "KVM_SET_CPUID2": k.kvm_cpuid2.size,
    "KVM_SET_IDENTITY_MAP_ADDR": 8,
    "KVM_SET_USER_MEMORY_REGION": k.kvm_userspace_memory_region.size,
    "KVM_SET_GSI_ROUTING": k.kvm_irq_routing.size,
    "KVM_IRQFD": k.kvm_irqfd.size,
    "KVM_ENABLE_CAP": k.kvm_enable_cap.size,
    "KVM_XEN_HVM_CONFIG": k.kvm_xen_hvm_config.size,
    "KVM_XEN_HVM_GET_ATTR": k.KVM_XEN_ATTR_SIZE,
    "KVM_XEN_HVM_SET_ATTR": k.KVM_XEN_ATTR_SIZE,
    "KVM_GET_CLOCK": k.kvm_clock_data.size,
    "KVM_SET_CLOCK": k.kvm_clock_data.size,
    "KVM_SIGNAL_MSI": k.kvm_msi.size,
    "KVM_X86_SET_MSR_FILTER": k.kvm_msr_filter.size
    + k.KVM_MSR_FILTER_MAX_RANGES * k.kvm_msr_filter_range.size,
    "KVM_INTERRUPT": 4,
    "KVM_SET_MSRS": k.kvm_msrs.size,
    "KVM_GET_LAPIC": k.KVM_LAPIC_STATE_SIZE,
    "KVM_SET_LAPIC": k.KVM_LAPIC_STATE_SIZE,
    "KVM_XEN_HVM_EVTCHN_SEND": 12,
    "KVM_GET_REGS": k.kvm_regs.size,
    "KVM_SET_REGS": k.kvm_regs.size,
    "KVM_GET_SREGS": k.KVM_SREGS_SIZE,
    "KVM_SET_SREGS": k.KVM_SREGS_SIZE,
    "KVM_XEN_VCPU_SET_ATTR": k.KVM_XEN_ATTR_SIZE,
}
READS, WRITES = 2, 1


def ioctls() -> dict[str, int]:
    """Every constant with KVM's magic 0xAE in the type bits: the request numbers."""
    return {
        name: value
        for name, value in vars(k).items()
        if isinstance(value, int) and name.startswith("KVM_") and value >> 8 & 0xFF == 0xAE
    }


def test_every_request_is_known() -> None:
    plain = {name for name, value in ioctls().items() if value >> 16 == 0}
    assert ioctls().keys() - plain == PASSED.keys()


@pytest.mark.parametrize("name", PASSED)
def test_the_size_is_that_of_the_number(name: str) -> None:
    assert ioctls()[name] >> 16 & 0x3FFF == PASSED[name]


@pytest.mark.parametrize("name", PASSED)
def test_the_direction_is_that_of_the_verb(name: str) -> None:
    direction = ioctls()[name] >> 30
    if name in ("KVM_GET_SUPPORTED_CPUID", "KVM_XEN_HVM_GET_ATTR"):
        assert direction == READS | WRITES
    else:
        assert direction == (READS if "_GET_" in name else WRITES)


@pytest.mark.parametrize(
    "layout, size",
    [
        (k.kvm_irq_routing_entry_xen_evtchn, 48),
        (k.kvm_cpuid_entry2, 40),
        (k.kvm_segment, 24),
        (k.KVM_RUN_xen_hcall, 80),
        (k.KVM_RUN_io, 16),
        (k.KVM_RUN_mmio, 21),
        (k.kvm_xen_evtchn_attr, 24),
        (k.kvm_xen_timer_attr, 16),
        (k.kvm_msr_entry, 16),
        (k.kvm_msr_filter_range, 24),
        (k.KVM_RUN_msr, 24),
    ],
)
def test_parts_have_the_kernels_size(layout: Struct, size: int) -> None:
    assert layout.size == size


def test_offsets_in_kvm_run_and_sregs() -> None:
    at = k.KVM_RUN_union
    raw = bytearray(at + k.KVM_RUN_xen_hcall.size)
    k.KVM_RUN_xen_hcall.pack_into(raw, at, 1, 2, 3, 4, 5, *range(6, 12))
    assert [raw[n] for n in (32, 40, 44, 48, k.KVM_RUN_xen_result, 64, 104)] == [1, 2, 3, 4, 5, 6, 11]
    raw = bytearray(at + k.KVM_RUN_mmio.size)
    k.KVM_RUN_mmio.pack_into(raw, at, 1, b"\2", 3, 4)
    assert [raw[n] for n in (32, k.KVM_RUN_mmio_data, 48, 52)] == [1, 2, 3, 4]
    raw = bytearray(at + k.KVM_RUN_msr.size)
    k.KVM_RUN_msr.pack_into(raw, at, 1, 2, 3, 4)
    assert [raw[n] for n in (k.KVM_RUN_msr_error, 40, 44, k.KVM_RUN_msr_data)] == [1, 2, 3, 4]
    assert k.KVM_RUN_union + 256 == k.KVM_RUN_valid_regs == k.KVM_RUN_dirty_regs - 8
    assert k.KVM_RUN_dirty_regs + 8 == k.KVM_RUN_regs == k.KVM_RUN_sregs - k.kvm_regs.size
    assert k.KVM_SREGS_SEGMENTS["ldt"] + k.kvm_segment.size + 2 * 16 == k.KVM_SREGS_cr0
    assert len(k.KVM_REGS_NAMES) * 8 == k.kvm_regs.size
