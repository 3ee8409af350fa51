"""What a file is as a kernel: small ones made here, and the real ones where the lab has fetched them."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.paths import cache
from tests.fakes.images import BASE, PV_ENTRY, Elf, Load, bzimage, note
from xenpvd.vmm import layout
from xenpvd.vmm.elf import BadImage, Segment
from xenpvd.vmm.kernel import PvhImage, check_pv, parse_pvh

GOOD = Elf()
CODE = b"0123456789abcdef"
NO_NOTES = replace(GOOD, notes=b"")


def packed(image: Elf) -> bytes:
    return bzimage(gzip.compress(image.bytes()))


@pytest.mark.parametrize("data", [GOOD.bytes(), Elf(bits=64).bytes(), packed(Elf(bits=64))])
def test_a_good_image(data: bytes) -> None:
    entry = struct.pack("<I", BASE + 4)
    assert parse_pvh(data) == PvhImage(BASE + 4, (Segment(BASE, 4096, CODE),), {5: entry, 18: entry})


def test_linux_has_an_entry_of_eight_bytes_and_several_segments() -> None:
    loads = (Load(BASE + 4096, 8192), Load(), Load(BASE + 3 * 4096, 1))
    notes = note(desc=struct.pack("<Q", BASE + 4096))
    image = parse_pvh(Elf(bits=64, loads=(*loads[:2], replace(loads[2], code=b"x")), notes=notes).bytes())
    assert image.entry == BASE + 4096 and image.end == BASE + 3 * 4096 + 1


def at(paddr: int, memsz: int = 4096) -> Elf:
    return replace(GOOD, loads=(Load(paddr, memsz),))


@pytest.mark.parametrize(
    "image, why",
    [
        (NO_NOTES, "no PVH entry"),
        (replace(GOOD, notes=note(17) + PV_ENTRY), "no PVH entry"),
        (replace(GOOD, notes=note(desc=b"\0\0")), "no PVH entry"),
        (replace(GOOD, loads=()), "outside its segments"),
        (replace(GOOD, notes=note(desc=struct.pack("<I", BASE - 1))), "outside its segments"),
        (replace(GOOD, notes=note(desc=struct.pack("<I", BASE + 16))), "outside its segments"),
        (replace(GOOD, notes=note(desc=struct.pack("<I", 2**32 - 1))), "outside its segments"),
        (at(BASE, 2**32 - 1), "does not fit"),
        (at(2**32 - 4096), "does not fit"),
        (at(layout.LOW_RAM_MAX - 4095), "does not fit"),
        (at(layout.KERNEL_MIN - 1), "does not fit"),
        (at(0), "does not fit"),
        (replace(GOOD, loads=(Load(), Load(BASE + 4095))), "overlap"),
        (replace(GOOD, loads=(Load(BASE + 8192), Load(), Load(BASE + 9000, 10_000))), "overlap"),
        (replace(GOOD, bits=64, loads=(Load(1 << 40),)), "does not fit"),
    ],
)
def test_an_image_that_a_vcpu_cannot_start_in(image: Elf, why: str) -> None:
    for data in (image.bytes(), packed(image)):
        with pytest.raises(BadImage, match=why):
            parse_pvh(data)


@pytest.mark.parametrize("data", [b"", b"MZ" * 5000, b"\x7fELF", gzip.compress(GOOD.bytes())])
def test_what_is_no_image_at_all(data: bytes) -> None:
    with pytest.raises(BadImage, match="ELF file"):
        parse_pvh(data)


@given(changes=st.lists(st.tuples(st.integers(0, 180), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_damaged_image_is_refused_or_within_bounds(changes: list[tuple[int, int]]) -> None:
    """P11."""
    data = bytearray(GOOD.bytes())
    for place, value in changes:
        data[place % len(data)] = value
    try:
        image = parse_pvh(bytes(data))
    except BadImage:
        return
    assert all(segment.paddr >= layout.KERNEL_MIN for segment in image.segments)
    assert image.entry < image.end <= layout.LOW_RAM_MAX


# -- for the shim


@pytest.mark.parametrize(
    "data",
    [
        packed(replace(GOOD, bits=64, notes=PV_ENTRY)),
        packed(replace(GOOD, bits=64, notes=PV_ENTRY + note())),
        packed(replace(GOOD, notes=PV_ENTRY)),  # 32 bits: the shim decides
        replace(GOOD, notes=PV_ENTRY).bytes(),
        NO_NOTES.bytes(),  # of the time before notes
        replace(at(0), notes=PV_ENTRY).bytes(),  # a PV kernel lies where it wants to
        gzip.compress(NO_NOTES.bytes()),
        b"\x89LZO packed by something else",
        bzimage(b"\x89LZO packed by something else"),
    ],
)
def test_what_the_shim_may_be_able_to_run(data: bytes) -> None:
    check_pv(data)


@pytest.mark.parametrize(
    "data, why",
    [
        (b"kernel", "no kernel: neither a bzImage nor an ELF image"),
        (b"", "no kernel"),
        (packed(NO_NOTES), "no entry for Xen PV"),
        (packed(GOOD), "no entry for Xen PV"),
        (GOOD.bytes(), "for PVH only"),
        (GOOD.bytes()[:60], "cut short"),
        (replace(GOOD, bits=64, machine=183).bytes(), "not for x86"),
        (bzimage(b"\x1f\x8bnothing at all"), "gzip payload is damaged|bytes unpacked"),
        (bzimage(bytes(range(20, 60)))[:1060], "a bzImage cut short"),
    ],
)
def test_what_the_shim_can_make_nothing_of(data: bytes, why: str) -> None:
    with pytest.raises(BadImage, match=why):
        check_pv(data)


# -- the real ones

#: where the lab keeps them: can it be entered by PVH, can the shim run it
REAL = {
    "xen-shim-4.*/usr/lib/xen-*/boot/xen-shim": (True, False),
    "guest-kernel-*/boot/vmlinuz-*": (True, True),
    "lab-kernel-*/boot/vmlinuz-*": (True, True),
    "grub-xen/usr/lib/grub-xen/grub-i386-xen_pvh.bin": (True, False),
    "grub-xen/usr/lib/grub-xen/grub-x86_64-xen.bin": (False, True),
    "grub-xen/usr/lib/grub-xen/grub-i386-xen.bin": (False, True),
}


@pytest.mark.parametrize("pattern", REAL)
def test_a_real_one(pattern: str) -> None:
    found = sorted((cache() / "assets").glob(pattern))
    if not found:
        pytest.skip(f"the lab has not fetched {pattern}: make setup")
    pvh, pv = REAL[pattern]
    for path in found:
        data = path.read_bytes()
        assert is_pvh(data) == pvh and is_pv(data) == pv, path


def is_pvh(data: bytes) -> bool:
    try:
        image = parse_pvh(data)
    except BadImage as fault:
        assert str(fault) == "it has no PVH entry"
        return False
    assert image.end < 128 * layout.MIB and 18 in image.notes
    return True


def is_pv(data: bytes) -> bool:
    try:
        check_pv(data)
    except BadImage as fault:
        assert str(fault) == "it has an entry for PVH only"
        return False
    return True
