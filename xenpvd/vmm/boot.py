"""From files to a vCPU about to run: the files on this host, what is placed where, registers.

PVH boot protocol: xen/docs/misc/pvh.pandoc, include/public/arch-x86/hvm/start_info.h. The shim gets the PV
kernel as module 0, with the guest's command line, and the ramdisk as module 1; a PVH kernel gets the ramdisk
as module 0.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xenpvd.abi import linux_kvm as k
from xenpvd.abi import memory as m
from xenpvd.errors import BadConfig, ImageError
from xenpvd.vmm import acpi, layout, start_info
from xenpvd.vmm.kernel import PvhImage
from xenpvd.vmm.memory import GuestMemory

MODULE_MAX = 1 << 30

#: where Debian's xen-utils put the shim, newest first
SHIM_PATHS = (
    "/usr/lib/xen-4.*/boot/xen-shim",
    "/usr/lib/xen/boot/xen-shim",
    "/usr/libexec/xen/boot/xen-shim",
)
#: where Debian's grub-xen-host puts GRUB as a kernel, by the guest's type
GRUB_PATHS = {
    "pv": "/usr/lib/grub-xen/grub-x86_64-xen.bin",
    "pvh": "/usr/lib/grub-xen/grub-i386-xen_pvh.bin",
}


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


def find_grub(type_: str) -> str:
    """GRUB as a kernel for a guest of ``type_`` (pv, pvh); raises :class:`ImageError` if there is none."""
    path = GRUB_PATHS[type_]
    if not Path(path).exists():
        raise ImageError(
            f'cannot use kernel = "pvgrub": there is no {path}. Install it (Debian: apt install '
            "grub-xen-host), or give a kernel's path.",
            path,
        )
    return path


@dataclass(frozen=True, slots=True)
class BootImage:
    """Everything that is loaded: ``kernel`` is what the vCPU is started in, the shim or the guest's own, with
    ``cmdline``; ``modules`` are (content, command line)."""

    kernel: PvhImage
    cmdline: str
    modules: tuple[tuple[bytes, str], ...]
    shim: bool


def _modules_at(image: BootImage) -> int:
    return max(layout.MODULES_MIN, layout.page_up(image.kernel.end))


def check_fits(image: BootImage, ram: int) -> None:
    """Raise :class:`BadConfig` if the files leave the guest no memory to run in."""
    modules = sum(layout.page_up(len(data)) for data, _ in image.modules)
    # what is packed is unpacked beside itself; the shim keeps ~24 MiB, and Linux needs some to live on
    need = _modules_at(image) + 3 * modules + 24 * layout.MIB
    if ram < need:
        mib = -(-need // layout.MIB)
        raise BadConfig(
            f"cannot boot in {ram // layout.MIB} MiB: the kernel and ramdisk need at least {mib} MiB. "
            f"Set memory = {mib} or more.",
            [("memory", f"at least {mib} for this kernel and ramdisk")],
        )


def memory_map(ram: int) -> list[tuple[int, int, int]]:
    """The e820 of the start info and of XENMEM_memory_map: (address, size, type).

    As libxl's for PVH. All low memory is one entry: GRUB takes the first hole for grant frames, and the first
    MiB's I/O range is taken out by guests themselves.
    """
    low, high = layout.split_ram(ram)
    entries = [
        (0, low, m.E820_RAM),
        (layout.ACPI, layout.ACPI_SIZE, m.E820_ACPI),
        # a type-1 entry here makes the shim panic: it turns the store's page into RAM itself
        (layout.SPECIAL, layout.SPECIAL_SIZE, m.E820_RESERVED),
        (layout.IDENTITY_MAP, layout.KVM_SIZE, m.E820_RESERVED),
    ]
    return entries + ([(layout.HIGH_RAM, high, m.E820_RAM)] if high else [])


def load(memory: GuestMemory, image: BootImage, ram: int, edit: Callable[[bytes], bytes] = bytes) -> None:
    """Place the kernel (each segment as ``edit`` returns it), modules and start info in zeroed memory."""
    for segment in image.kernel.segments:
        memory.write(segment.paddr, edit(bytes(segment.data)))
    at = _modules_at(image)
    modules = []
    for data, cmdline in image.modules:
        memory.write(at, data)
        modules.append((at, len(data), cmdline))
        at = layout.page_up(at + len(data))
    blob = start_info.build(
        layout.START_INFO,
        layout.START_INFO_END - layout.START_INFO,
        cmdline=image.cmdline,
        modules=modules,
        rsdp=layout.ACPI,
        e820=memory_map(ram),
    )
    memory.write(layout.START_INFO, blob)
    memory.write(layout.BIOS_RSDP, acpi.rsdp(layout.ACPI))


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
