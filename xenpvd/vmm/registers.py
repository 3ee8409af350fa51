"""A vCPU's registers as KVM leaves them in the run page at each exit (KVM_CAP_SYNC_REGS)."""

from __future__ import annotations

from struct import Struct

from xenpvd.abi import linux_kvm as k
from xenpvd.vmm.xen.gva import FLAT, LEGACY32, LONG, PAE, Mode

_CR = Struct("=QQQQQQ")  # cr0 cr2 cr3 cr4 cr8 efer
_DPL, _L = 16, 19  # in kvm_segment
_MASK32 = 0xFFFF_FFFF
_RAX = k.KVM_REGS_NAMES.index("rax")
#: where a hypercall's arguments are (xen/include/public/arch-x86/xen-x86_{64,32}.h)
_ARGS64 = tuple(map(k.KVM_REGS_NAMES.index, ("rdi", "rsi", "rdx", "r10", "r8", "r9")))
_ARGS32 = tuple(map(k.KVM_REGS_NAMES.index, ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")))

Buffer = memoryview | bytes | bytearray


def address_space(page: Buffer) -> tuple[int, Mode]:
    """(CR3, how the page tables that it names are to be walked)."""
    cr0, _, cr3, cr4, _, efer = _CR.unpack_from(page, k.KVM_RUN_sregs + k.KVM_SREGS_cr0)
    if not cr0 & k.X86_CR0_PG:
        return cr3, FLAT
    if efer & k.EFER_LMA:
        return cr3, LONG
    return cr3, PAE if cr4 & k.X86_CR4_PAE else LEGACY32


def longmode(page: Buffer) -> bool:
    """Whether 64-bit code runs (not 32-bit code under a 64-bit kernel)."""
    efer = _CR.unpack_from(page, k.KVM_RUN_sregs + k.KVM_SREGS_cr0)[5]
    return bool(efer & k.EFER_LMA and page[k.KVM_RUN_sregs + k.KVM_SREGS_SEGMENTS["cs"] + _L])


def cpl(page: Buffer) -> int:
    """The current privilege level, 0 to 3: the stack segment's."""
    return page[k.KVM_RUN_sregs + k.KVM_SREGS_SEGMENTS["ss"] + _DPL]


def hypercall(page: Buffer) -> tuple[bool, int, int, tuple[int, ...]]:
    """(longmode, cpl, number, six arguments) of a caller who has put them where Xen's ABI says."""
    regs = k.kvm_regs.unpack_from(page, k.KVM_RUN_regs)
    if longmode(page):
        return True, cpl(page), regs[_RAX], tuple(regs[n] for n in _ARGS64)
    return False, cpl(page), regs[_RAX] & _MASK32, tuple(regs[n] & _MASK32 for n in _ARGS32)


def set_rax(page: memoryview, value: int) -> None:
    """RAX as the guest finds it when it is entered next; ``value`` is signed."""
    raw = (value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
    page[k.KVM_RUN_regs + 8 * _RAX : k.KVM_RUN_regs + 8 * _RAX + 8] = raw
    page[k.KVM_RUN_dirty_regs] |= k.KVM_SYNC_X86_REGS


def named(regs: dict[str, int], sregs: Buffer) -> dict[str, int]:
    """What is shown of a vCPU: general registers, then cr0, cr2, cr3, cr4 and efer, then what debuggers ask
    of its segments."""
    cr0, cr2, cr3, cr4, _, efer = _CR.unpack_from(sregs, k.KVM_SREGS_cr0)
    segments = {
        name: k.kvm_segment.unpack_from(sregs, k.KVM_SREGS_SEGMENTS[name])
        for name in ("cs", "ss", "fs", "gs")
    }
    return regs | {
        "cr0": cr0, "cr2": cr2, "cr3": cr3, "cr4": cr4, "efer": efer,
        "cs": segments["cs"][2], "ss": segments["ss"][2],
        "fs_base": segments["fs"][0], "gs_base": segments["gs"][0],
    }  # fmt: skip
