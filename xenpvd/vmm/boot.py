"""From files to a vCPU about to run: the shim's ELF, its modules, hvm_start_info, registers.

PVH boot protocol: xen/docs/misc/pvh.pandoc, include/public/arch-x86/hvm/start_info.h. The shim gets the PV
kernel as module 0, with the guest's command line, and the initrd as module 1.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from struct import error as StructError

from xenpvd.abi import linux_kvm as k
from xenpvd.abi import memory as m
from xenpvd.abi import xen
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import BadConfig, ImageError
from xenpvd.vmm import layout
from xenpvd.vmm.memory import GuestMemory

_EHDR = Struct("<16sHHIIIIIHHH")  # ident type machine version entry phoff shoff flags ehsize phentsize phnum
_PHDR = Struct("<IIIIIIII")  # type offset vaddr paddr filesz memsz flags align
_NHDR = Struct("<III")  # namesz descsz type
_ELF32_LE = b"\x7fELF\x01\x01"
_EM_386 = 3
_PT_LOAD, _PT_NOTE = 1, 4
MODULE_MAX = 1 << 30
#: Bytes of ELF notes that are looked at
NOTES_MAX = 1 << 16

#: where Debian's xen-utils put the shim, newest first
SHIM_PATHS = (
    "/usr/lib/xen-4.*/boot/xen-shim",
    "/usr/lib/xen/boot/xen-shim",
    "/usr/libexec/xen/boot/xen-shim",
)


def read_file(what: str, path: str, limit: int = MODULE_MAX) -> bytes:
    """A whole file for the guest; raises :class:`ImageError` naming ``what`` it should have been."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NONBLOCK)  # a FIFO must not block us

    try:
        with open(path, "rb", opener=opener) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ImageError(
                    f"cannot use the {what} {path}: it is not a regular file. Check the path.", path
                )
            if not 0 < info.st_size <= limit:
                raise ImageError(
                    f"cannot use the {what} {path}: {info.st_size} bytes; expected 1 to {limit}. "
                    "Check the file.",
                    path,
                )
            return file.read(limit)
    except (OSError, ValueError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise ImageError(f"cannot read the {what} {path}: {why}. Check the path.", path) from None


def find_shim(path: str) -> str:
    """Resolve ``auto``; raises :class:`ImageError` if there is no shim on this host."""
    if path != "auto":
        return path
    for pattern in SHIM_PATHS:
        found = Path("/").glob(pattern.lstrip("/"))
        newest = max(
            map(str, found), key=lambda name: [int(n) for n in re.findall(r"\d+", name)], default=None
        )
        if newest is not None:
            return newest
    raise ImageError(
        "cannot find a xen-shim: none of " + ", ".join(SHIM_PATHS) + " exists. Install Xen's utilities "
        "(Debian: xen-utils-4.17 or newer) or give its path as shim.path.",
        "auto",
    )


@dataclass(frozen=True, slots=True)
class ShimImage:
    """The shim: its one loadable segment and where the PVH entry is. Addresses are guest physical."""

    entry: int
    paddr: int
    memsz: int
    segment: bytes


def parse_shim(path: str, data: bytes) -> ShimImage:
    """Read the ELF; raises :class:`ImageError` for anything but a PVH image that fits the layout."""

    def refuse(why: str) -> ImageError:
        return ImageError(f"cannot use the shim {path}: {why}. Give a xen-shim from Xen's utilities.", path)

    try:
        ident, _, machine, _, _, phoff, _, _, _, phentsize, phnum = _EHDR.unpack_from(data)
        if not ident.startswith(_ELF32_LE) or machine != _EM_386:
            raise refuse("it is not a 32-bit x86 ELF file")
        if phentsize != _PHDR.size or phnum > 32:
            raise refuse("its program headers make no sense")
        headers = [_PHDR.unpack_from(data, phoff + n * phentsize) for n in range(phnum)]
    except StructError:
        raise refuse("it is not an ELF file, or cut short") from None
    loads = [header for header in headers if header[0] == _PT_LOAD]
    if len(loads) != 1:
        raise refuse(f"it has {len(loads)} loadable segments, not one")
    _, offset, _, paddr, filesz, memsz, _, _ = loads[0]
    if filesz > memsz or offset + filesz > len(data):
        raise refuse("its segment reaches past the end of the file")
    if paddr < layout.SHIM_MIN or paddr + memsz > layout.MODULES:
        raise refuse(f"its segment {paddr:#x}+{memsz:#x} does not fit below {layout.MODULES:#x}")
    entry = _pvh_entry(data, headers)
    if entry is None:
        raise refuse("it has no PVH entry (ELF note Xen 18, PHYS32_ENTRY)")
    if not paddr <= entry < paddr + filesz:
        raise refuse(f"its PVH entry {entry:#x} lies outside its segment")
    return ShimImage(entry, paddr, memsz, data[offset : offset + filesz])


def _pvh_entry(data: bytes, headers: list[tuple[int, ...]]) -> int | None:
    for kind, offset, _, _, filesz, _, _, _ in headers:
        if kind != _PT_NOTE:
            continue
        at, end = offset, min(offset + filesz, offset + NOTES_MAX, len(data))
        while at + _NHDR.size <= end:
            namesz, descsz, note = _NHDR.unpack_from(data, at)
            name_at = at + _NHDR.size
            desc_at = name_at + (namesz + 3 & ~3)
            at = desc_at + (descsz + 3 & ~3)
            if at > end:
                break
            if (
                data[name_at : name_at + namesz] == b"Xen\0"
                and note == xen.XEN_ELFNOTE_PHYS32_ENTRY
                and descsz >= 4
            ):
                return int.from_bytes(data[desc_at : desc_at + 4], "little")
    return None


@dataclass(frozen=True, slots=True)
class BootImage:
    """Everything that is loaded. ``cmdline`` is the guest's, ``shim_cmdline`` the shim's own."""

    shim: ShimImage
    shim_cmdline: str
    kernel: bytes
    ramdisk: bytes | None
    cmdline: str


def check_fits(image: BootImage, ram: int) -> None:
    """Raise :class:`BadConfig` if the files leave the guest no memory to run in."""
    modules = len(image.kernel) + len(image.ramdisk or b"") + 2 * PAGE_SIZE
    # the shim keeps ~24 MiB and unpacks the kernel beside its packed module; Linux needs some to live on
    need = layout.MODULES + 3 * modules + 24 * layout.MIB
    if ram < need:
        mib = -(-need // layout.MIB)
        raise BadConfig(
            f"cannot boot in {ram // layout.MIB} MiB: the kernel and ramdisk need at least {mib} MiB. "
            f"Set memory = {mib} or more.",
            [("memory", f"at least {mib} for this kernel and ramdisk")],
        )


def memory_map(ram: int) -> list[tuple[int, int, int]]:
    """The e820 that XENMEM_memory_map hands out: (address, size, type)."""
    low, high = layout.split_ram(ram)
    entries = [
        (0, low, m.E820_RAM),
        (layout.ACPI, layout.ACPI_SIZE, m.E820_ACPI),
        # a type-1 entry here makes the shim panic: it turns the store's page into RAM itself
        (layout.SPECIAL, layout.SPECIAL_SIZE, m.E820_RESERVED),
    ]
    return entries + ([(layout.HIGH_RAM, high, m.E820_RAM)] if high else [])


def load(memory: GuestMemory, image: BootImage, ram: int) -> None:
    """Place shim, modules and start info."""
    memory.write(image.shim.paddr, image.shim.segment)
    at = layout.MODULES
    modules = []
    for data, cmdline in ((image.kernel, image.cmdline), (image.ramdisk, "")):
        if data is not None:
            memory.write(at, data)
            modules.append((at, len(data), cmdline))
            at = at + len(data) + PAGE_SIZE - 1 & -PAGE_SIZE
    memory.write(layout.START_INFO, _start_info(image.shim_cmdline, modules, memory_map(ram)))


def _start_info(
    shim_cmdline: str, modules: list[tuple[int, int, str]], e820: list[tuple[int, int, int]]
) -> bytes:
    """hvm_start_info with all that it points to, as it lies at START_INFO."""
    modlist_at = layout.START_INFO + xen.HVM_START_INFO.size
    memmap_at = modlist_at + len(modules) * xen.HVM_MODLIST_ENTRY.size
    text_at = memmap_at + len(e820) * xen.HVM_MEMMAP_ENTRY.size
    text = bytearray()

    def place(line: str) -> int:
        at = text_at + len(text)
        text.extend(line.encode("utf-8") + b"\0")
        return at

    cmdline_at = place(shim_cmdline)
    modlist = b"".join(
        xen.HVM_MODLIST_ENTRY.pack(paddr, size, place(line) if line else 0, 0)
        for paddr, size, line in modules
    )
    memmap = b"".join(xen.HVM_MEMMAP_ENTRY.pack(addr, size, kind, 0) for addr, size, kind in e820)
    head = xen.HVM_START_INFO.pack(
        xen.XEN_HVM_START_MAGIC_VALUE,
        1,
        0,
        len(modules),
        modlist_at,
        cmdline_at,
        layout.ACPI,
        memmap_at,
        len(e820),
        0,
    )
    blob = head + modlist + memmap + bytes(text)
    if len(blob) > layout.START_INFO_END - layout.START_INFO:
        raise BadConfig(
            f"cannot pass {len(text)} bytes of command lines: there is room for 64 KiB. Shorten cmdline."
        )
    return blob


def entry_sregs(sregs: bytearray) -> bytearray:
    """``sregs`` (KVM_GET_SREGS) turned into the flat 32-bit protected mode of the PVH entry."""

    def segment(name: str, kind: int, *, limit: int, s: int, db: int, g: int, selector: int) -> None:
        at = k.KVM_SREGS_SEGMENTS[name]
        k.kvm_segment.pack_into(sregs, at, 0, limit, selector, kind, 1, 0, db, s, 0, g, 0, 0, 0)

    segment("cs", 0xB, limit=0xFFFFFFFF, s=1, db=1, g=1, selector=8)
    for name in ("ds", "es", "fs", "gs", "ss"):
        segment(name, 0x3, limit=0xFFFFFFFF, s=1, db=1, g=1, selector=16)
    segment("tr", 0xB, limit=0x67, s=0, db=0, g=0, selector=24)
    for at, value in (
        (k.KVM_SREGS_cr0, 0x11),
        (k.KVM_SREGS_cr3, 0),
        (k.KVM_SREGS_cr4, 0),
        (k.KVM_SREGS_efer, 0),
    ):
        sregs[at : at + 8] = value.to_bytes(8, "little")
    return sregs
