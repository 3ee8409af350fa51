"""The files on the host, and what is placed where: as the shim, and as a PVH kernel, finds it."""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from tests.fakes.images import BASE, Elf, Load, note
from xenpvd.abi.linux_kvm import KVM_SREGS_SIZE, kvm_segment
from xenpvd.errors import BadConfig, ImageError
from xenpvd.vmm import acpi, boot, layout
from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.kernel import parse_pvh
from xenpvd.vmm.layout import GIB, MIB
from xenpvd.vmm.memory import GuestMemory

# -- files


def test_read_file(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"bzImage")
    assert boot.read_file("kernel", str(tmp_path / "kernel")) == b"bzImage"


@pytest.mark.parametrize("name", ["missing", "folder", "fifo", "empty", "big", "socket\0", "link"])
def test_files_that_are_none(tmp_path: Path, name: str) -> None:
    """P11."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "big").write_bytes(bytes(101))
    (tmp_path / "link").symlink_to("link")
    path = f"{tmp_path}/{name}"
    why = {
        "missing": "No such file or directory",
        "folder": "Is a directory",
        "fifo": "not a regular file",
        "empty": "0 bytes; expected 1 to 100",
        "big": "101 bytes; expected 1 to 100",
        "socket\0": "null byte",
        "link": "Too many levels of symbolic links",
    }[name]
    with pytest.raises(ImageError, match=why) as caught:
        boot.read_file("ramdisk", path, limit=100)
    assert f"the ramdisk {path}: " in str(caught.value)


def test_a_disk_that_fails_to_read_is_told(tmp_path: Path) -> None:
    """/proc/self/mem is a regular file with nothing mapped at 0; its size is 0, so its stat is helped."""
    path = "/proc/self/mem"
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        info = list(real(fd))
        info[6] = 50
        return os.stat_result(info)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        with pytest.raises(ImageError, match="Input/output error"):
            boot.read_file("kernel", path)


def test_find_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert boot.find_shim("/some/where") == "/some/where"
    monkeypatch.setattr(boot, "SHIM_PATHS", (f"{tmp_path}/xen-4.*/shim", f"{tmp_path}/xen/shim"))
    with pytest.raises(ImageError, match="cannot find a xen-shim"):
        boot.find_shim("auto")
    for version in ("xen", "xen-4.9", "xen-4.20", "xen-4.17"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "shim").touch()
        found = boot.find_shim("auto")
    assert found == f"{tmp_path}/xen-4.20/shim"


@pytest.mark.parametrize("type_", ["pv", "pvh"])
def test_find_grub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: str) -> None:
    monkeypatch.setattr(boot, "GRUB_PATHS", {name: f"{tmp_path}/{name}.bin" for name in boot.GRUB_PATHS})
    with pytest.raises(ImageError, match=r"there is no .*\.bin\. .*apt install grub-xen-host"):
        boot.find_grub(type_)
    (tmp_path / f"{type_}.bin").touch()
    assert boot.find_grub(type_) == f"{tmp_path}/{type_}.bin"


# -- what is placed where


def shim(kernel: int = 5000, ramdisk: int | None = 100, cmdline: str = "console=hvc0") -> BootImage:
    modules = [(b"K" * kernel, cmdline)] + ([] if ramdisk is None else [(b"R" * ramdisk, "")])
    return BootImage(parse_pvh(Elf().bytes()), "pv-shim console=xen", tuple(modules), shim=True)


def pvh(ramdisk: int | None = 100, end: int = 40 * MIB + 5) -> BootImage:
    """As Linux: from 16 MiB on, with a bss."""
    loads = (Load(16 * MIB, code=b"text"), Load(20 * MIB, end - 20 * MIB, b"data"))
    notes = note(desc=struct.pack("<Q", 16 * MIB))
    kernel = parse_pvh(Elf(bits=64, loads=loads, notes=notes).bytes())
    modules = () if ramdisk is None else ((b"R" * ramdisk, ""),)
    return BootImage(kernel, "console=hvc0 quiet=ä", modules, shim=False)


@pytest.mark.parametrize(
    "image",
    [
        shim(1, None),
        shim(8 * MIB, None),
        shim(8 * MIB, 20 * MIB),
        pvh(None),
        pvh(20 * MIB),
        pvh(None, end=3 * GIB),
    ],
)
def test_check_fits_names_the_memory_that_will_do(image: BootImage) -> None:
    with pytest.raises(BadConfig) as caught:
        boot.check_fits(image, 40 * MIB)
    ((where, what),) = caught.value.problems
    assert where == "memory"
    mib = int(what.split()[2])
    boot.check_fits(image, mib * MIB)
    with pytest.raises(BadConfig):
        boot.check_fits(image, (mib - 1) * MIB)


@pytest.mark.parametrize("size", [64 * MIB, layout.LOW_RAM_MAX, 8 * GIB])
def test_the_memory_map(size: int) -> None:
    entries = boot.memory_map(size)
    assert sum(length for _, length, kind in entries if kind == 1) == size
    assert entries == sorted(entries)
    for (start, length, _), (following, _, _) in pairwise(entries):
        assert start + length <= following
    for pfn in (layout.STORE_PFN, layout.CONSOLE_PFN):
        (kind,) = {k for start, length, k in entries if start <= pfn << 12 < start + length}
        assert kind == 2, "in a type-1 entry it makes the shim panic"
    low = min(size, layout.LOW_RAM_MAX)
    assert entries[0] == (0, low, 1), "GRUB takes the first hole for itself"
    assert entries[1][0] - low >= 2 * 4096


def read_start_info(memory: GuestMemory) -> tuple[dict[str, int], list[tuple[int, int, str]], str]:
    """As the shim reads it: the header, (address, size, command line) of each module, its own line."""

    def line(at: int) -> str:
        text = memory.read(at, 2048)
        return text[: text.index(b"\0")].decode()

    words = struct.unpack("<IIIIQQQQII", memory.read(layout.START_INFO, 56))
    names = ("magic", "version", "flags", "modules", "modlist", "cmdline", "rsdp", "memmap", "entries", "_")
    info = dict(zip(names, words, strict=True))
    modules = []
    for n in range(info["modules"]):
        paddr, size, cmdline, _ = struct.unpack("<4Q", memory.read(info["modlist"] + 32 * n, 32))
        modules.append((paddr, size, line(cmdline) if cmdline else ""))
    return info, modules, line(info["cmdline"])


@pytest.mark.parametrize(
    "image, first",
    [
        (shim(), 16 * MIB),
        (shim(ramdisk=None), 16 * MIB),
        (pvh(), 40 * MIB + 4096),
        (pvh(ramdisk=None), 0),
        (pvh(end=40 * MIB), 40 * MIB),
    ],
)
def test_load(image: BootImage, first: int) -> None:
    memory = GuestMemory()
    memory.add("ram", 0, 64 * MIB, ram=True)
    boot.load(memory, image, 64 * MIB)
    info, modules, cmdline = read_start_info(memory)
    assert (info["magic"], info["rsdp"]) == (0x336EC578, layout.ACPI)
    assert cmdline == image.cmdline
    assert [module[2] for module in modules] == [line for _, line in image.modules]
    for (paddr, size, _), (data, _) in zip(modules, image.modules, strict=True):
        assert memory.read(paddr, size) == data
        assert paddr % 4096 == 0 and paddr >= first
        first = paddr + size
    if modules:
        assert modules[0][0] == max(16 * MIB, image.kernel.end + 4095 & -4096)
    e820 = [struct.unpack("<QQII", memory.read(info["memmap"] + 24 * n, 24)) for n in range(info["entries"])]
    assert [entry[:3] for entry in e820] == boot.memory_map(64 * MIB)
    for segment in image.kernel.segments:
        assert memory.read(segment.paddr, len(segment.data)) == segment.data
    assert memory.read(0, 0x11000) == bytes(0x11000), "the shim's own, and page 0, which it reads"
    assert memory.read(0xF_FFC0, 36) == acpi.rsdp(layout.ACPI)


def test_the_kernel_is_edited_on_its_way_and_nothing_else() -> None:
    memory = GuestMemory()
    memory.add("ram", 0, 32 * MIB, ram=True)
    boot.load(memory, shim(), 32 * MIB, edit=lambda code: code.replace(b"0123", b"K..K"))
    assert memory.read(BASE, 8) == b"K..K4567"
    assert memory.read(16 * MIB, 5000) == b"K" * 5000


def test_a_command_line_that_does_not_fit() -> None:
    """P12."""
    memory = GuestMemory()
    memory.add("ram", 0, 32 * MIB, ram=True)
    with pytest.raises(BadConfig, match="Shorten cmdline"):
        boot.load(memory, shim(cmdline="x" * (1 << 16)), 32 * MIB)


def test_entry_registers() -> None:
    sregs = boot.entry_sregs(bytearray(b"\xee" * KVM_SREGS_SIZE))
    segments = {
        name: kvm_segment.unpack_from(sregs, 24 * n)
        for n, name in enumerate(("cs", "ds", "es", "fs", "gs", "ss", "tr"))
    }
    # base limit selector type present dpl db s l g avl unusable padding
    assert segments["cs"] == (0, 2**32 - 1, 8, 0xB, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    assert {segments[name] for name in ("ds", "es", "fs", "gs", "ss")} == {
        (0, 2**32 - 1, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    }
    assert segments["tr"] == (0, 0x67, 24, 0xB, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    assert struct.unpack_from("<Q8x2Q", sregs, 224) == (0x11, 0, 0)  # cr0, (cr2), cr3, cr4
    assert sregs[264:272] == bytes(8)  # efer
    assert sregs[272:] == b"\xee" * (KVM_SREGS_SIZE - 272), "the APIC's base stays"
