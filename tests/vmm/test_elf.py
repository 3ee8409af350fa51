"""ELF images of both widths: what is read, and how each way of being wrong is refused."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.images import BASE, Elf, Load, note
from xenpvd.vmm import elf
from xenpvd.vmm.elf import BadImage, Segment, parse

GOOD = Elf()
WIDE = Elf(bits=64)


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_and_notes(bits: int) -> None:
    loads = (
        Load(),
        Load(paddr=BASE + 8192, code=b""),
        Load(memsz=0, code=b""),
        Load(BASE + 4096, 5, b"five!"),
    )
    image = parse(Elf(bits=bits, loads=loads).bytes())
    assert image.segments == (
        Segment(BASE, 4096, b"0123456789abcdef"),
        Segment(BASE + 8192, 4096, b""),
        Segment(BASE + 4096, 5, b"five!"),
    )
    assert image.notes == {5: struct.pack("<I", BASE + 4), 18: struct.pack("<I", BASE + 4)}


def test_addresses_beyond_4_gib() -> None:
    [segment] = parse(replace(WIDE, loads=(Load(1 << 40, 1 << 33),)).bytes()).segments
    assert (segment.paddr, segment.memsz, segment.end) == (1 << 40, 1 << 33, (1 << 40) + (1 << 33))


def test_headers_that_share_their_bytes_take_no_memory() -> None:
    """P11."""
    code = bytes(1 << 20)
    data = Elf(bits=64, loads=(Load(memsz=1 << 20, code=code),) * 8).bytes()
    tracemalloc.start()
    try:
        image = parse(data)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [segment.data for segment in image.segments] == [code] * 8
    assert held < 1 << 16


@pytest.mark.parametrize(
    "notes, types",
    [
        (b"", set[int]()),
        (note(), {18}),
        (note(7, desc=b""), {7}),
        (note(7, desc=b"odd!!"), {7}),
        (note(7, desc=b"odd!!") + note(), {7, 18}),
        (note(18, b"GNU\0") + note(1), {1}),
        (note(name=b"Xen") + note(1), {1}),
        (note(name=b"longer\0") + note(1), {1}),
        (bytes(12) + note(), {18}),
        (note(1) + struct.pack("<III", 2**32 - 1, 2**32 - 1, 18), {1}),
        (note(1) + struct.pack("<III4s", 4, 12, 9, b"Xen\0") + bytes(8), {1}),  # as GRUB's last one is
        (note(1) + bytes(11), {1}),
        (bytes(12 * 100_000) + note(), set()),  # we do not search for ever
    ],
)
def test_xens_notes_are_found_among_others(notes: bytes, types: set[int]) -> None:
    assert set(parse(replace(GOOD, notes=notes).bytes()).notes) == types


def test_the_first_of_two_notes_counts() -> None:
    assert parse(replace(GOOD, notes=note(desc=b"one ") + note(desc=b"two ")).bytes()).notes[18] == b"one "


@pytest.mark.parametrize(
    "image, why",
    [
        (replace(GOOD, ident=b"\x7fELF\x02\x01\x01"), "not for x86"),
        (replace(GOOD, ident=b"\x7fELF\x01\x02\x01"), "not an x86 ELF"),
        (replace(GOOD, ident=b"\x7fELF\x03\x01\x01"), "not an x86 ELF"),
        (replace(GOOD, ident=b"MZ"), "not an x86 ELF"),
        (replace(GOOD, machine=62), "not for x86"),
        (replace(WIDE, machine=183), "not for x86"),
        (replace(GOOD, phentsize=56), "program headers"),
        (replace(WIDE, phentsize=0), "program headers"),
        (replace(GOOD, phnum=65535), "program headers"),
        (replace(GOOD, phnum=elf.HEADERS_MAX + 1), "program headers"),
        (replace(GOOD, phoff=2**32 - 1), "cut short"),
        (replace(GOOD, phoff=2**31), "cut short"),
        (replace(WIDE, phoff=2**64 - 1), "cut short"),
        (replace(WIDE, phoff=2**63 - 1), "cut short"),
        (replace(GOOD, loads=(Load(offset=2**32 - 1),)), "past the end of the file"),
        (replace(WIDE, loads=(Load(offset=2**64 - 1),)), "past the end of the file"),
        (replace(GOOD, loads=(Load(filesz=2**32 - 1, memsz=2**32 - 1),)), "past the end of the file"),
        (replace(GOOD, loads=(Load(memsz=15),)), "past the end of the file"),
    ],
)
def test_an_image_that_cannot_be(image: Elf, why: str) -> None:
    """P11."""
    with pytest.raises(BadImage, match=why):
        parse(image.bytes())


@pytest.mark.parametrize(
    "image",
    [
        replace(GOOD, note_offset=2**32 - 1),
        replace(WIDE, note_offset=2**64 - 1),
        replace(WIDE, note_size=2**64 - 1, notes=b""),
        replace(GOOD, note_size=11),
    ],
)
def test_notes_that_are_elsewhere_are_none(image: Elf) -> None:
    assert parse(image.bytes()).notes == {}


@pytest.mark.parametrize("good", [GOOD, WIDE])
def test_an_image_cut_short_anywhere_is_refused_or_has_lost_its_notes(good: Elf) -> None:
    data = good.bytes()
    for length in range(len(data)):
        try:
            image = parse(data[:length])
        except BadImage:
            continue
        assert image.segments == parse(data).segments and 18 not in image.notes


@given(
    good=st.sampled_from([GOOD, WIDE]),
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_a_damaged_image_is_refused_or_within_its_file(good: Elf, changes: list[tuple[int, int]]) -> None:
    """P11."""
    data = bytearray(good.bytes())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        image = parse(bytes(data))
    except BadImage:
        return
    for segment in image.segments:
        assert len(segment.data) <= segment.memsz and segment.data in data
