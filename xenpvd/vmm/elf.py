"""ELF images, 32- and 64-bit, as Xen loads them: segments by physical address, and Xen's notes.

System V ABI, chapters 4 and 5; the notes: include/public/elfnote.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from struct import error as StructError

MAGIC = b"\x7fELF"
XEN_ELFNOTE_ENTRY = 1
#: Bytes of ELF notes that are looked at
NOTES_MAX = 1 << 16
HEADERS_MAX = 32

_PT_LOAD, _PT_NOTE = 1, 4
_NHDR = Struct("<III")  # namesz descsz type


class BadImage(ValueError):
    """Why a file cannot be what it should be: half a sentence, for a message."""


@dataclass(frozen=True, slots=True)
class Segment:
    """``data``, a part of the file, goes to guest physical ``paddr``; the rest up to ``memsz`` is zeros."""

    paddr: int
    memsz: int
    data: bytes | memoryview

    @property
    def end(self) -> int:
        return self.paddr + self.memsz


@dataclass(frozen=True, slots=True)
class Elf:
    """``notes`` are Xen's, by type; of several of one type the first."""

    segments: tuple[Segment, ...]
    notes: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class _Class:
    machine: int
    ehdr: Struct  # ident type machine version entry phoff shoff flags ehsize phentsize phnum
    phdr: Struct
    fields: tuple[int, ...]  # where a phdr has: type offset paddr filesz memsz


_CLASSES = {
    b"\1\1": _Class(3, Struct("<16sHHIIIIIHHH"), Struct("<IIIIIIII"), (0, 1, 3, 4, 5)),
    b"\2\1": _Class(62, Struct("<16sHHIQQQIHHH"), Struct("<IIQQQQQQ"), (0, 2, 4, 5, 6)),
}


def parse(data: bytes) -> Elf:
    """Raises :class:`BadImage` for anything but an x86 image, and for one that is cut short."""
    kind = _CLASSES.get(data[4:6]) if data.startswith(MAGIC) else None
    if kind is None:
        raise BadImage("it is not an x86 ELF file")
    try:
        _, _, machine, _, _, phoff, _, _, _, phentsize, phnum = kind.ehdr.unpack_from(data)
        if machine != kind.machine:
            raise BadImage("it is an ELF file, but not for x86")
        if phentsize != kind.phdr.size or phnum > HEADERS_MAX:
            raise BadImage("its program headers make no sense")
        rows = [kind.phdr.unpack_from(data, phoff + n * phentsize) for n in range(phnum)]
    except (StructError, OverflowError):  # OverflowError: an offset beyond what an index can be
        raise BadImage("it is an ELF file cut short") from None
    headers = [tuple(row[field] for field in kind.fields) for row in rows]
    segments, notes = [], dict[int, bytes]()
    view = memoryview(data)  # no copies: headers may name the same bytes many times over
    for type_, offset, paddr, filesz, memsz in headers:
        if type_ == _PT_LOAD and memsz:
            if filesz > memsz or offset + filesz > len(data):
                raise BadImage("a segment of it reaches past the end of the file")
            segments.append(Segment(paddr, memsz, view[offset : offset + filesz]))
        elif type_ == _PT_NOTE:
            _read_notes(data, offset, min(offset + filesz, offset + NOTES_MAX, len(data)), notes)
    return Elf(tuple(segments), notes)


def _read_notes(data: bytes, at: int, end: int, notes: dict[int, bytes]) -> None:
    while at + _NHDR.size <= end:
        namesz, descsz, type_ = _NHDR.unpack_from(data, at)
        name_at = at + _NHDR.size
        desc_at = name_at + (namesz + 3 & ~3)
        at = desc_at + (descsz + 3 & ~3)
        if desc_at + descsz > end:
            return
        if data[name_at : name_at + namesz] == b"Xen\0":
            notes.setdefault(type_, data[desc_at : desc_at + descsz])
