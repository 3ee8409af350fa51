"""Registers out of the page that KVM leaves them in: who called, what for, in which address space."""

from __future__ import annotations

import pytest

from xenpvd.abi import linux_kvm as k
from xenpvd.vmm import registers
from xenpvd.vmm.xen.gva import FLAT, LEGACY32, LONG, PAE, Mode


def page(
    *, cr0: int = 0, cr3: int = 0, cr4: int = 0, efer: int = 0, cs_l: int = 0, cpl: int = 0
) -> bytearray:
    raw = bytearray(4096)
    raw[k.KVM_RUN_regs : k.KVM_RUN_regs + k.kvm_regs.size] = k.kvm_regs.pack(
        *(0xAAAA_AAAA_0000_0000 + n for n in range(18))
    )
    at = k.KVM_RUN_sregs
    for offset, value in (
        (k.KVM_SREGS_cr0, cr0),
        (k.KVM_SREGS_cr2, 0x2222),
        (k.KVM_SREGS_cr3, cr3),
        (k.KVM_SREGS_cr4, cr4),
        (k.KVM_SREGS_efer, efer),
    ):
        raw[at + offset : at + offset + 8] = value.to_bytes(8, "little")
    k.kvm_segment.pack_into(raw, at, 0, 0, 8, 11, 1, 0, 1 - cs_l, 1, cs_l, 1, 0, 0, 0)
    ss = at + k.KVM_SREGS_SEGMENTS["ss"]
    k.kvm_segment.pack_into(raw, ss, 0, 0, 16, 3, 1, cpl, 1, 1, 0, 1, 0, 0, 0)
    return raw


@pytest.mark.parametrize(
    "cr0, cr4, efer, mode",
    [
        (0x11, 0, 0, FLAT),
        (0x11, 1 << 5, 1 << 8, FLAT),
        (1 << 31, 0, 0, LEGACY32),
        (1 << 31, 1 << 4, 0, LEGACY32),
        (1 << 31, 1 << 5, 0, PAE),
        (1 << 31, 1 << 5, 1 << 8, PAE),  # LME without LMA cannot be with paging, and is not long mode
        (1 << 31, 1 << 5, 1 << 10 | 1 << 8, LONG),
    ],
)
def test_the_address_space(cr0: int, cr4: int, efer: int, mode: Mode) -> None:
    assert registers.address_space(page(cr0=cr0, cr3=0x5000, cr4=cr4, efer=efer)) == (0x5000, mode)


def test_a_64_bit_caller() -> None:
    high = 0xAAAA_AAAA_0000_0000
    order = ["rdi", "rsi", "rdx", "r10", "r8", "r9"]
    args = tuple(high + k.KVM_REGS_NAMES.index(name) for name in order)
    assert registers.hypercall(page(efer=1 << 10, cs_l=1, cpl=3)) == (True, 3, high, args)


@pytest.mark.parametrize("efer, cs_l", [(0, 0), (1 << 10, 0)])
def test_a_32_bit_caller_has_nothing_above(efer: int, cs_l: int) -> None:
    """Also in a 64-bit kernel's compatibility mode."""
    order = ["rbx", "rcx", "rdx", "rsi", "rdi", "rbp"]
    args = tuple(k.KVM_REGS_NAMES.index(name) for name in order)
    assert registers.hypercall(page(efer=efer, cs_l=cs_l)) == (False, 0, 0, args)


@pytest.mark.parametrize("value", [0, 1, -38, 2**63 - 1])
def test_the_answer_is_for_the_next_entry(value: int) -> None:
    raw = page()
    registers.set_rax(memoryview(raw), value)
    rax, *others = k.kvm_regs.unpack_from(raw, k.KVM_RUN_regs)
    assert rax == value % 2**64 and others == [0xAAAA_AAAA_0000_0000 + n for n in range(1, 18)]
    assert raw[k.KVM_RUN_dirty_regs] == k.KVM_SYNC_X86_REGS


def test_what_is_shown() -> None:
    raw = page(cr0=1, cr3=3, cr4=4, efer=5)
    gs = k.KVM_RUN_sregs + k.KVM_SREGS_SEGMENTS["gs"]
    raw[gs : gs + 8] = 0x7000_0000_1000.to_bytes(8, "little")
    sregs = raw[k.KVM_RUN_sregs : k.KVM_RUN_sregs + k.KVM_SREGS_SIZE]
    assert registers.named({"rip": 9}, sregs) == {
        "rip": 9, "cr0": 1, "cr2": 0x2222, "cr3": 3, "cr4": 4, "efer": 5,
        "cs": 8, "ss": 16, "fs_base": 0, "gs_base": 0x7000_0000_1000,
    }  # fmt: skip
