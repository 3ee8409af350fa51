"""bzImages: the ELF image that is packed into one. Linux's Documentation/arch/x86/boot.rst.

The payload's last four bytes are its unpacked size, which bounds the unpacking. Unpackers are imported when
one is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from xenpvd.vmm import elf
from xenpvd.vmm.elf import BadImage

#: Bytes that a kernel may have when it is unpacked
UNPACKED_MAX = 1 << 29
#: Bytes that an unpacker may take for its window; xz of the kernel's build takes up to 128 MiB
_WINDOW_MAX = 1 << 28

_setup_sects, _header, _version, _payload_offset, _payload_length = 0x1F1, 0x202, 0x206, 0x248, 0x24C
_HEADER_END = 0x250
_LZ4_BLOCK = 8 << 20


class UnknownFormat(BadImage):
    """The payload is packed by something that we cannot unpack; Xen may."""


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _gzip() -> _Unpacker:
    import zlib

    return zlib.decompressobj(wbits=31)


def _bzip2() -> _Unpacker:
    import bz2

    return bz2.BZ2Decompressor()


def _xz() -> _Unpacker:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW_MAX)  # knows the x86 BCJ filter


def _lzma() -> _Unpacker:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_WINDOW_MAX)


def _zstd() -> _Unpacker:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdDecompressor()


class _Lz4:
    """LZ4's legacy frame (lz4_Frame_format.md): blocks of 8 MiB, each after its packed size; the last may
    be smaller."""

    eof = False

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        from lz4 import block  # type: ignore[import-untyped]

        parts, total, at = list[bytes](), 0, 4
        while at + 4 < len(data) and total < max_length:
            if total != len(parts) * _LZ4_BLOCK:  # small ones, or empty ones, would go on for minutes
                raise ValueError("a block before the last one is short")
            size = int.from_bytes(data[at : at + 4], "little")
            at += 4 + size
            parts.append(block.decompress(data[at - size : at], uncompressed_size=_LZ4_BLOCK))
            total += len(parts[-1])
        self.eof = at == len(data) - 4
        return b"".join(parts)


#: magic number, name, unpacker: what Linux builds, and Xen unpacks as well. LZO: Xen does, we do not
FORMATS: tuple[tuple[bytes, str, Callable[[], _Unpacker] | None], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\xfd7zXZ", "xz", _xz),
    (b"\x5d\0\0", "lzma", _lzma),
    (b"\x02\x21\x4c\x18", "LZ4", _Lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x89LZO", "LZO", None),
)


def is_bzimage(data: bytes) -> bool:
    return data[_header : _header + 4] == b"HdrS" and len(data) >= _HEADER_END


def payload(data: bytes) -> bytes:
    """The ELF image in a bzImage. Raises :class:`BadImage`."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    if (version := number(_version, 2)) < 0x208:
        raise BadImage(
            f"it is a bzImage of boot protocol {version >> 8}.{version & 0xFF:02}; 2.08 or newer is needed "
            "(Linux 2.6.24 or newer)"
        )
    begin = ((number(_setup_sects, 1) or 4) + 1) * 512 + number(_payload_offset, 4)
    end = begin + number(_payload_length, 4)
    if end > len(data) or end - begin < 8:
        raise BadImage("it is a bzImage cut short")
    packed = data[begin:end]
    return packed if packed.startswith(elf.MAGIC) else _unpack(packed)


def is_packed(data: bytes) -> bool:
    """Whether it begins as a packed file, not in a bzImage, as BSDs' kernels come."""
    return any(data.startswith(magic) for magic, _, _ in FORMATS)


def _unpack(packed: bytes) -> bytes:
    name, make = next(
        ((name, make) for magic, name, make in FORMATS if packed.startswith(magic)),
        ("an unknown format", None),
    )
    if make is None:
        known = ", ".join(name for _, name, make in FORMATS if make is not None)
        raise UnknownFormat(
            f"it is packed by {name}, beginning with {packed[:4].hex(' ')} (known are {known})"
        )
    size = int.from_bytes(packed[-4:], "little")
    if not 0 < size <= UNPACKED_MAX:
        raise BadImage(f"it would be {size} bytes unpacked; at most {UNPACKED_MAX} are")
    try:
        unpacker = make()
        unpacked = unpacker.decompress(packed, size + 1)  # one more: room for the format's own end
    except Exception as fault:  # each library has an exception of its own
        raise BadImage(f"its {name} payload is damaged ({fault})") from None
    if not unpacker.eof or len(unpacked) != size:
        raise BadImage(f"its {name} payload is damaged: it does not end at {size} bytes")
    return unpacked
