"""The CPUID leaves a vCPU shows: what KVM supports, made to look like a CPU under Xen."""

from __future__ import annotations

from collections.abc import Iterable

from xenpvd.abi import cpuid as x
from xenpvd.abi.linux_kvm import KVM_CPUID_FLAG_SIGNIFCANT_INDEX

Entry = tuple[int, ...]  # function index flags eax ebx ecx edx

#: Xen wants this MSR written by shims older than XSA-469's mending; newer ones call VMCALL/VMMCALL directly
HYPERCALL_MSR = 0x4000_0000
HYPERVISOR_BIT = 1 << 31  # leaf 1 ECX; without it the shim does not look for Xen at all
TSC_DEADLINE_BIT = 1 << 24
LA57_BIT = 1 << 16  # leaf 7 ECX; hypercall arguments are found by a 4-level walk


def xen_leaves(version: tuple[int, int], vcpu_id: int, domid: int) -> list[Entry]:
    """Leaves 0x40000000-0x40000005; ``vcpu_id`` is Xen's (and KVM's, and the APIC's)."""
    base = x.XEN_CPUID_FIRST_LEAF
    flags = x.XEN_HVM_CPUID_VCPU_ID_PRESENT | x.XEN_HVM_CPUID_DOMID_PRESENT | x.XEN_HVM_CPUID_UPCALL_VECTOR
    index = KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    return [
        (
            base,
            0,
            0,
            base + 5,
            x.XEN_CPUID_SIGNATURE_EBX,
            x.XEN_CPUID_SIGNATURE_ECX,
            x.XEN_CPUID_SIGNATURE_EDX,
        ),
        (base + 1, 0, 0, version[0] << 16 | version[1], 0, 0, 0),
        (base + 2, 0, 0, 1, HYPERCALL_MSR, 0, 0),
        *((base + 3, sub, index, 0, 0, 0, 0) for sub in range(3)),
        (base + 4, 0, 0, flags, vcpu_id, domid, 0),
        (base + 5, 0, 0, 0, 0, 0, 0),
    ]


def build(
    supported: Iterable[Entry], *, vcpu_id: int, domid: int, version: tuple[int, int], tsc_deadline: bool
) -> list[Entry]:
    """``supported`` (KVM_GET_SUPPORTED_CPUID) with Xen's leaves for KVM's own and this vCPU's APIC id."""
    entries = []
    for function, index, flags, eax, ebx, ecx, edx in supported:
        if 0x4000_0000 <= function < 0x4001_0000:
            continue
        if function == 1:
            ebx = ebx & 0x00FF_FFFF | vcpu_id << 24
            ecx |= HYPERVISOR_BIT
            ecx = ecx | TSC_DEADLINE_BIT if tsc_deadline else ecx & ~TSC_DEADLINE_BIT
        elif function == 7 and index == 0:
            ecx &= ~LA57_BIT
        elif function in (0xB, 0x1F):
            edx = vcpu_id
        elif function == 0x8000_001E:
            eax = vcpu_id
        entries.append((function, index, flags, eax, ebx, ecx, edx))
    return entries + xen_leaves(version, vcpu_id, domid)
