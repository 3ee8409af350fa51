"""The CPUID leaves a vCPU shows: what KVM supports, made to look like a CPU under Xen.

Each vCPU is a package of its own with one core and one thread, whatever the host's topology, which older
KVMs hand through.
"""

from __future__ import annotations

from collections.abc import Iterable

from xenpvd.abi import cpuid as x
from xenpvd.abi.linux_kvm import KVM_CPUID_FLAG_SIGNIFCANT_INDEX as INDEXED

Entry = tuple[int, ...]  # function index flags eax ebx ecx edx

#: The MSR that gives a guest its hypercall page: PVH kernels, and shims older than XSA-469's mending
HYPERCALL_MSR = 0x4000_0000
HYPERVISOR_BIT = 1 << 31  # leaf 1 ECX; without it the shim does not look for Xen at all
TSC_DEADLINE_BIT = 1 << 24
HTT_BIT = 1 << 28  # leaf 1 EDX
LA57_BIT = 1 << 16  # leaf 7 ECX; hypercall arguments are found by a 4-level walk
CMP_LEGACY_BIT = 1 << 1  # leaf 0x80000001 ECX
_SHARING = 0xFFF << 14  # leaves 4 and 0x8000001d EAX: CPUs that share a cache, less one
_CORES = 0x3F << 26  # leaf 4 EAX: cores of the package, less one
_SIZES = 0xF0FF  # leaf 0x80000008 ECX: cores of the package, bits for them in an APIC id
#: more of the host's topology; leaf 0xb tells all that there is
_DROPPED = (0x1F, 0x8000_0026)


def xen_leaves(version: tuple[int, int], vcpu_id: int, domid: int) -> list[Entry]:
    """Leaves 0x40000000-0x40000005; ``vcpu_id`` is Xen's (and KVM's, and the APIC's)."""
    base = x.XEN_CPUID_FIRST_LEAF
    flags = x.XEN_HVM_CPUID_VCPU_ID_PRESENT | x.XEN_HVM_CPUID_DOMID_PRESENT | x.XEN_HVM_CPUID_UPCALL_VECTOR
    signature = x.XEN_CPUID_SIGNATURE_EBX, x.XEN_CPUID_SIGNATURE_ECX, x.XEN_CPUID_SIGNATURE_EDX
    return [
        (base, 0, 0, base + 5, *signature),
        (base + 1, 0, 0, version[0] << 16 | version[1], 0, 0, 0),
        (base + 2, 0, 0, 1, HYPERCALL_MSR, 0, 0),
        # KVM fills in the clock's numbers (1) and the host's frequency (2), where the entries are there
        *((base + 3, sub, INDEXED, 0, 0, 0, 0) for sub in range(3)),
        (base + 4, 0, 0, flags, vcpu_id, domid, 0),
        (base + 5, 0, 0, 0, 0, 0, 0),
    ]


def build(
    supported: Iterable[Entry], *, vcpu_id: int, domid: int, version: tuple[int, int], tsc_deadline: bool
) -> list[Entry]:
    """``supported`` (KVM_GET_SUPPORTED_CPUID) with Xen's leaves for KVM's own, this vCPU's APIC id, and no
    other CPU in its package."""
    entries = []
    for function, index, flags, eax, ebx, ecx, edx in supported:
        if 0x4000_0000 <= function < 0x4001_0000 or function in _DROPPED:
            continue
        match function:
            case 1:
                ebx = ebx & 0x0000_FFFF | 1 << 16 | vcpu_id << 24
                ecx |= HYPERVISOR_BIT
                ecx = ecx | TSC_DEADLINE_BIT if tsc_deadline else ecx & ~TSC_DEADLINE_BIT
                edx &= ~HTT_BIT
            case 4:
                eax &= ~(_SHARING | _CORES)
            case 7 if index == 0:
                ecx &= ~LA57_BIT
            case 0xB:
                if index == 0:
                    entries += _extended_topology(vcpu_id)
                continue
            case 0x8000_0001:
                ecx &= ~CMP_LEGACY_BIT
            case 0x8000_0008:
                ecx &= ~_SIZES
            case 0x8000_001D:
                eax &= ~_SHARING
            case 0x8000_001E:  # APIC id; core 0, one thread; a node of its own
                eax, ebx, ecx, edx = vcpu_id, 0, vcpu_id, 0
        entries.append((function, index, flags, eax, ebx, ecx, edx))
    return entries + xen_leaves(version, vcpu_id, domid)


def _extended_topology(vcpu_id: int) -> list[Entry]:
    """Leaf 0xb: one thread a core, one core a package, neither of which takes a bit of the APIC id."""
    return [(0xB, sub, INDEXED, 0, 1, kind << 8 | sub, vcpu_id) for sub, kind in ((0, 1), (1, 2))]
