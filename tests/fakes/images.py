"""Kernels in miniature, of which everything can be made wrong: ELF images and bzImages."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

LOAD, NOTE = 1, 4
BASE = 0x20_0000


def note(kind: int = 18, name: bytes = b"Xen\0", desc: bytes = struct.pack("<I", BASE + 4)) -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(desc), kind) + padded(name) + padded(desc)


PV_ENTRY = note(1, desc=bytes(8))


@dataclass(frozen=True)
class Load:
    """A PT_LOAD; ``offset`` and ``filesz`` are right if they are not given."""

    paddr: int = BASE
    memsz: int = 4096
    code: bytes = b"0123456789abcdef"
    offset: int | None = None
    filesz: int | None = None


@dataclass(frozen=True)
class Elf:
    bits: int = 32
    ident: bytes | None = None
    machine: int | None = None
    phentsize: int | None = None
    phoff: int | None = None
    phnum: int | None = None
    loads: tuple[Load, ...] = (Load(),)
    notes: bytes = field(default_factory=lambda: note(5) + note())
    note_offset: int | None = None
    note_size: int | None = None

    def bytes(self) -> bytes:
        def or_else(value: int | None, default: int) -> int:
            return default if value is None else value

        wide = self.bits == 64
        ehdr, phdr = (64, 56) if wide else (52, 32)
        at = ehdr + phdr * (len(self.loads) + 1)
        headers = body = b""

        def header(kind: int, offset: int, addr: int, filesz: int, memsz: int, align: int) -> bytes:
            if wide:
                return struct.pack("<IIQQQQQQ", kind, 7, offset, addr, addr, filesz, memsz, align)
            return struct.pack("<8I", kind, offset, addr, addr, filesz, memsz, 7, align)

        for load in self.loads:
            offset, filesz = or_else(load.offset, at + len(body)), or_else(load.filesz, len(load.code))
            headers += header(LOAD, offset, load.paddr, filesz, load.memsz, 64)
            body += load.code + bytes(-len(load.code) % 4)
        offset, filesz = or_else(self.note_offset, at + len(body)), or_else(self.note_size, len(self.notes))
        headers += header(NOTE, offset, 0, filesz, len(self.notes), 4)
        head = struct.pack(
            "<16sHHIQQQIHHHHHH" if wide else "<16sHHIIIIIHHHHHH",
            self.ident if self.ident is not None else b"\x7fELF" + bytes([2 if wide else 1, 1, 1]),
            2, or_else(self.machine, 62 if wide else 3), 1, BASE, or_else(self.phoff, ehdr), 0, 0, ehdr,
            or_else(self.phentsize, phdr), or_else(self.phnum, len(self.loads) + 1), 0, 0, 0,
        )  # fmt: skip
        return head + headers + body + self.notes


def bzimage(packed: bytes, *, sects: int = 1, version: int = 0x20F, length: int | None = None) -> bytes:
    """``packed`` as the payload, 16 bytes into the protected-mode part."""
    setup = bytearray(((sects or 4) + 1) * 512)
    setup[0x1F1] = sects
    setup[0x202:0x206] = b"HdrS"
    setup[0x206:0x208] = version.to_bytes(2, "little")
    setup[0x248:0x250] = struct.pack("<II", 16, len(packed) if length is None else length)
    return bytes(setup) + bytes(16) + packed + b"after it"
