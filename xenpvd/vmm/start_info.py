"""hvm_start_info, and all that it points to. include/public/arch-x86/hvm/start_info.h, version 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xenpvd.abi import xen
from xenpvd.errors import BadConfig


def build(
    at: int,
    room: int,
    *,
    cmdline: str,
    modules: Sequence[tuple[int, int, str]],
    rsdp: int,
    e820: Iterable[tuple[int, int, int]],
) -> bytes:
    """The bytes for guest address ``at``, of which there are ``room``.

    ``modules`` are (address, size, command line), ``e820`` (address, size, type). Raises :class:`BadConfig`
    if the command lines are too long.
    """
    memmap = b"".join(xen.HVM_MEMMAP_ENTRY.pack(addr, size, kind, 0) for addr, size, kind in e820)
    modlist_at = at + xen.HVM_START_INFO.size
    memmap_at = modlist_at + len(modules) * xen.HVM_MODLIST_ENTRY.size
    text_at = memmap_at + len(memmap)
    text = bytearray()

    def place(line: str) -> int:
        begin = text_at + len(text)
        text.extend(line.encode() + b"\0")
        return begin

    head = xen.HVM_START_INFO.pack(
        xen.XEN_HVM_START_MAGIC_VALUE,
        1,
        0,
        len(modules),
        modlist_at,
        place(cmdline),
        rsdp,
        memmap_at,
        len(memmap) // xen.HVM_MEMMAP_ENTRY.size,
        0,
    )
    modlist = b"".join(
        xen.HVM_MODLIST_ENTRY.pack(paddr, size, place(line) if line else 0, 0)
        for paddr, size, line in modules
    )
    blob = head + modlist + memmap + text
    if len(blob) > room:
        raise BadConfig(
            f"cannot pass {len(text)} bytes of command lines: there is room for {room >> 10} KiB. "
            "Shorten cmdline."
        )
    return blob
