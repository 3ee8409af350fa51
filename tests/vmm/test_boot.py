"""The files a guest boots from: good ones are placed where the shim looks, bad ones are refused in words."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.abi.linux_kvm import KVM_SREGS_SIZE, kvm_segment
from xenpvd.errors import BadConfig, ImageError
from xenpvd.vmm import boot, layout
from xenpvd.vmm.boot import BootImage, ShimImage, parse_shim
from xenpvd.vmm.layout import GIB, MIB
from xenpvd.vmm.memory import GuestMemory

LOAD, NOTE = 1, 4
BASE = 0x20_0000


def note(kind: int = 18, name: bytes = b"Xen\0", desc: bytes = struct.pack("<I", BASE + 4)) -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    return struct.pack("<III", len(name), len(desc), kind) + padded(name) + padded(desc)


@dataclass(frozen=True)
class Elf:
    """A shim in miniature; every field can be made wrong."""

    ident: bytes = b"\x7fELF\x01\x01\x01"
    machine: int = 3
    phentsize: int = 32
    phoff: int | None = None
    phnum: int | None = None
    code: bytes = b"0123456789abcdef"
    notes: bytes = field(default_factory=lambda: note(5) + note())
    paddr: int = BASE
    memsz: int = 4096
    offset: int | None = None
    filesz: int | None = None
    loads: int = 1
    note_offset: int | None = None
    note_size: int | None = None

    def bytes(self) -> bytes:
        count = self.loads + 1
        code_at = 52 + 32 * count
        notes_at = code_at + len(self.code)

        def or_else(value: int | None, default: int) -> int:
            return default if value is None else value

        load = (LOAD, or_else(self.offset, code_at), self.paddr, self.paddr)
        load += (or_else(self.filesz, len(self.code)), self.memsz, 7, 64)
        notes = (NOTE, or_else(self.note_offset, notes_at), 0, 0)
        notes += (or_else(self.note_size, len(self.notes)), len(self.notes), 4, 4)
        phoff, phnum = or_else(self.phoff, 52), or_else(self.phnum, count)
        head = struct.pack(
            "<16sHHIIIIIHHHHHH",
            self.ident, 2, self.machine, 1, BASE, phoff, 0, 0, 52, self.phentsize, phnum, 0, 0, 0,
        )  # fmt: skip
        headers = struct.pack("<8I", *load) * self.loads + struct.pack("<8I", *notes)
        return head + headers + self.code + self.notes


GOOD = Elf()


def test_a_good_shim() -> None:
    assert parse_shim("shim", GOOD.bytes()) == ShimImage(BASE + 4, BASE, 4096, GOOD.code)


@pytest.mark.parametrize(
    "notes",
    [
        note(),
        note(desc=struct.pack("<I", BASE + 4) + b"more"),
        note(18, b"GNU\0") + note(),
        note(name=b"odd\0!") + note(),
        note(desc=b"") + note(),
        bytes(12) + note(),
    ],
)
def test_the_note_is_found_among_others(notes: bytes) -> None:
    assert parse_shim("shim", replace(GOOD, notes=notes).bytes()).entry == BASE + 4


@pytest.mark.parametrize(
    "elf, why",
    [
        (replace(GOOD, ident=b"\x7fELF\x02\x01\x01"), "not a 32-bit x86 ELF"),
        (replace(GOOD, ident=b"\x7fELF\x01\x02\x01"), "not a 32-bit x86 ELF"),
        (replace(GOOD, ident=b"MZ"), "not a 32-bit x86 ELF"),
        (replace(GOOD, machine=62), "not a 32-bit x86 ELF"),
        (replace(GOOD, phentsize=56), "program headers"),
        (replace(GOOD, phentsize=0), "program headers"),
        (replace(GOOD, phnum=65535), "program headers"),
        (replace(GOOD, phnum=33), "program headers"),
        (replace(GOOD, phnum=0), "0 loadable segments"),
        (replace(GOOD, phoff=2**32 - 1), "cut short"),
        (replace(GOOD, phoff=2**31), "cut short"),
        (replace(GOOD, loads=0), "0 loadable segments"),
        (replace(GOOD, loads=2), "2 loadable segments"),
        (replace(GOOD, offset=2**32 - 1), "past the end of the file"),
        (replace(GOOD, filesz=2**32 - 1, memsz=2**32 - 1), "past the end of the file"),
        (replace(GOOD, memsz=15), "past the end of the file"),
        (replace(GOOD, memsz=2**32 - 1), "does not fit"),
        (replace(GOOD, paddr=2**32 - 4096), "does not fit"),
        (replace(GOOD, paddr=0), "does not fit"),
        (replace(GOOD, paddr=layout.MODULES - 4095), "does not fit"),
        (replace(GOOD, notes=b""), "no PVH entry"),
        (replace(GOOD, notes=note(17)), "no PVH entry"),
        (replace(GOOD, notes=note(desc=b"\0\0")), "no PVH entry"),
        (replace(GOOD, notes=struct.pack("<III", 2**32 - 1, 2**32 - 1, 18)), "no PVH entry"),
        (replace(GOOD, notes=bytes(12 * 100_000) + note()), "no PVH entry"),  # we do not search for ever
        (replace(GOOD, note_offset=2**32 - 1), "no PVH entry"),
        (replace(GOOD, note_size=11), "no PVH entry"),
        (replace(GOOD, notes=note(desc=struct.pack("<I", BASE - 1))), "outside its segment"),
        (replace(GOOD, notes=note(desc=struct.pack("<I", BASE + 16))), "outside its segment"),
        (replace(GOOD, notes=note(desc=struct.pack("<I", 2**32 - 1))), "outside its segment"),
    ],
)
def test_a_shim_that_cannot_be(elf: Elf, why: str) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        parse_shim("/boot/xen-shim", elf.bytes())
    assert str(caught.value).startswith("cannot use the shim /boot/xen-shim: ")
    assert caught.value.data == {"path": "/boot/xen-shim"}


def test_a_shim_cut_short_anywhere_is_refused() -> None:
    data = GOOD.bytes()
    for length in range(len(data)):
        with pytest.raises(ImageError):
            parse_shim("shim", data[:length])


@given(changes=st.lists(st.tuples(st.integers(0, 180), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_damaged_shim_is_refused_or_within_bounds(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD.bytes())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        image = parse_shim("shim", bytes(data))
    except ImageError:
        return
    assert layout.SHIM_MIN <= image.paddr <= image.entry < image.paddr + len(image.segment)
    assert len(image.segment) <= image.memsz <= layout.MODULES - image.paddr


# -- files


def test_read_file(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"bzImage")
    assert boot.read_file("kernel", str(tmp_path / "kernel")) == b"bzImage"


@pytest.mark.parametrize("name", ["missing", "folder", "fifo", "empty", "big", "socket\0", "link"])
def test_files_that_are_none(tmp_path: Path, name: str) -> None:
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


# -- what is placed where


def image(kernel: int = 5000, ramdisk: int | None = 100, cmdline: str = "console=hvc0") -> BootImage:
    return BootImage(
        shim=parse_shim("shim", GOOD.bytes()),
        shim_cmdline="pv-shim console=xen",
        kernel=b"K" * kernel,
        ramdisk=None if ramdisk is None else b"R" * ramdisk,
        cmdline=cmdline,
    )


@pytest.mark.parametrize("kernel, ramdisk", [(1, None), (8 * MIB, None), (8 * MIB, 20 * MIB)])
def test_check_fits_names_the_memory_that_will_do(kernel: int, ramdisk: int | None) -> None:
    whole = image(kernel, ramdisk)
    with pytest.raises(BadConfig) as caught:
        boot.check_fits(whole, 40 * MIB)
    ((where, what),) = caught.value.problems
    assert where == "memory"
    mib = int(what.split()[2])
    boot.check_fits(whole, mib * MIB)
    with pytest.raises(BadConfig):
        boot.check_fits(whole, (mib - 1) * MIB)


@pytest.mark.parametrize("size", [64 * MIB, layout.LOW_RAM_MAX, 8 * GIB])
def test_the_memory_map(size: int) -> None:
    entries = boot.memory_map(size)
    assert sum(length for _, length, kind in entries if kind == 1) == size
    ordered = sorted(entries)
    for (start, length, _), (following, _, _) in pairwise(ordered):
        assert start + length <= following
    for pfn in (layout.STORE_PFN, layout.CONSOLE_PFN):
        (kind,) = {k for start, length, k in entries if start <= pfn << 12 < start + length}
        assert kind == 2, "in a type-1 entry it makes the shim panic"
    assert max(start + length for start, length, _ in entries) <= layout.hole(size)


def read_start_info(memory: GuestMemory) -> tuple[dict[str, int], list[tuple[int, int, str]], str]:
    """As the shim reads it: the header, (address, size, command line) of each module, its own line."""

    def line(at: int) -> str:
        text = memory.read(at, 2048)
        return text[: text.index(b"\0")].decode()

    names = (
        "magic",
        "version",
        "flags",
        "nr_modules",
        "modlist",
        "cmdline",
        "rsdp",
        "memmap",
        "entries",
        "_",
    )
    info = dict(zip(names, struct.unpack("<IIIIQQQQII", memory.read(layout.START_INFO, 56)), strict=True))
    modules = []
    for n in range(info["nr_modules"]):
        paddr, size, cmdline, reserved = struct.unpack("<4Q", memory.read(info["modlist"] + 32 * n, 32))
        assert reserved == 0
        modules.append((paddr, size, line(cmdline) if cmdline else ""))
    return info, modules, line(info["cmdline"])


@pytest.mark.parametrize("ramdisk", [None, 100])
def test_load(ramdisk: int | None) -> None:
    memory = GuestMemory()
    memory.add("ram", 0, 32 * MIB, ram=True)
    whole = image(ramdisk=ramdisk, cmdline="root=/dev/xvda quiet=ä")
    boot.load(memory, whole, 32 * MIB)
    info, modules, cmdline = read_start_info(memory)
    assert (info["magic"], info["version"], info["flags"]) == (0x336EC578, 1, 0)
    assert info["rsdp"] == layout.ACPI
    assert cmdline == "pv-shim console=xen"
    assert modules[0][1:] == (5000, "root=/dev/xvda quiet=ä")
    assert memory.read(modules[0][0], 5000) == whole.kernel
    if ramdisk is None:
        assert len(modules) == 1
    else:
        assert modules[1][1:] == (100, "")
        assert memory.read(modules[1][0], 100) == whole.ramdisk
        assert modules[1][0] >= modules[0][0] + 5000
    assert all(paddr % 4096 == 0 for paddr, _, _ in modules)
    e820 = [struct.unpack("<QQII", memory.read(info["memmap"] + 24 * n, 24)) for n in range(info["entries"])]
    assert [entry[:3] for entry in e820] == boot.memory_map(32 * MIB)
    assert memory.read(BASE, 16) == GOOD.code
    assert memory.read(0, 0x11000) == bytes(0x11000), "the shim's own, and page 0, which it reads"


def test_a_command_line_that_does_not_fit(tmp_path: Path) -> None:
    memory = GuestMemory()
    memory.add("ram", 0, 32 * MIB, ram=True)
    with pytest.raises(BadConfig, match="Shorten cmdline"):
        boot.load(memory, image(cmdline="x" * (1 << 16)), 32 * MIB)


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
