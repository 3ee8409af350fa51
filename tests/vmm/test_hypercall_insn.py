"""Hypercalls without VMCALL: what is changed in a shim, and when we do not dare to."""

from __future__ import annotations

import random

import pytest

from xenpvd.errors import Unsupported
from xenpvd.vmm import hypercall_insn as insn

AMD, INTEL = b"\x0f\x01\xd9", b"\x0f\x01\xc1"
OUT = b"\xe6\xe4\x90"
RET = b"\xc3"


def shim(
    table: bytes = (AMD + INTEL) * 51, early: bytes = AMD + RET + INTEL + RET, gap: int = 100_000
) -> bytes:
    return b"\x55" * 64 + early + b"\x66" * gap + table + b"\x77" * 64


def test_every_instruction_is_replaced_in_place() -> None:
    changed = insn.patch(shim())
    assert changed == shim((OUT + OUT) * 51, OUT + RET + OUT + RET)
    assert changed.count(OUT) == 104 and len(changed) == len(shim())


def test_an_old_shim_has_none_and_takes_a_page() -> None:
    assert insn.patch(b"\x90" * 4096) == b"\x90" * 4096


def test_gaps_in_the_table_are_other_alternatives() -> None:
    assert insn.patch(shim((AMD + INTEL + bytes(1421)) * 5)).count(OUT) == 12


@pytest.mark.parametrize(
    "segment",
    [
        shim() + AMD,
        shim() + bytes(1 << 15) + AMD + INTEL,
        AMD + shim(),
        AMD + INTEL + bytes(50_000) + shim(),
        shim((INTEL + AMD) * 51),
        shim((AMD + AMD) * 51),
        shim(early=AMD),
        shim(early=AMD + bytes(10) + INTEL),
    ],
)
def test_what_cannot_be_told_from_data_is_not_touched(segment: bytes) -> None:
    with pytest.raises(Unsupported, match=r"cannot run this shim .* VMMCALL, \d+ VMCALL.*kvm-xen"):
        insn.patch(segment)


def test_random_bytes_are_refused_or_left_alone() -> None:
    data = random.Random(1).randbytes(1 << 20) + AMD
    with pytest.raises(Unsupported):
        insn.patch(data)


def test_the_page_of_stubs() -> None:
    page = insn.page()
    assert len(page) == 4096
    for n in (0, 12, 34, 127):
        stub = page[32 * n : 32 * n + 32]
        assert stub == b"\xb8" + bytes([n, 0, 0, 0]) + b"\xe6\xe4" + RET + b"\xcc" * 24


@pytest.mark.parametrize(
    "notes, msr_exits, refused",
    [
        ({6: b"linux\0", 2: bytes(8)}, True, None),
        ({6: b"linux\0"}, True, "a host whose KVM has Xen"),
        ({6: b"linux\0"}, False, "a host whose KVM has Xen"),
        ({6: b"linux\0", 2: bytes(8)}, False, "hypercall MSR"),
        ({18: bytes(4)}, True, None),  # GRUB
        ({18: bytes(4)}, False, "hypercall MSR"),
    ],
)
def test_pvh_kernels(notes: dict[int, bytes], msr_exits: bool, refused: str | None) -> None:
    if refused is None:
        insn.check_kernel(notes, msr_exits)
    else:
        with pytest.raises(Unsupported, match=refused):
            insn.check_kernel(notes, msr_exits)
