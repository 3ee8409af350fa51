"""Core files: the layout by a parser of our own, and that gdb finds registers and addresses in one."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from xenpvd.abi.xen import EFAULT
from xenpvd.errors import XenError
from xenpvd.vmm import core
from xenpvd.vmm.core import LOADS_MAX, RUNS_MAX, KernelHalf, Run, head

PAGE = 4096
MIB = 1 << 20
TEXT = 0xFFFF_FFFF_8100_0000
REGS = {"rip": TEXT + 4, "rsp": TEXT + 0x800, "rax": 0x2A, "rflags": 0x246, "cs": 0xE033, "gs_base": 0x7000}


class Memory:
    """So many bytes from 0 on, with tables in it."""

    def __init__(self, size: int = 4 * MIB) -> None:
        self.data = bytearray(size)
        self._free = 0x10_0000

    def read(self, gpa: int, length: int) -> bytes:
        if gpa + length > len(self.data):
            raise XenError(EFAULT, "none")
        return bytes(self.data[gpa : gpa + length])

    def entry(self, table: int, n: int) -> int:
        return int(struct.unpack_from("<Q", self.data, table + 8 * n)[0])

    def set(self, table: int, n: int, entry: int) -> None:
        struct.pack_into("<Q", self.data, table + 8 * n, entry)

    def map(self, root: int, gva: int, gpa: int, shift: int = 12) -> None:
        table = root
        for level in (39, 30, 21, 12):
            n = gva >> level & 511
            if level == shift:
                return self.set(table, n, gpa | 0x63 | (0x80 if level > 12 else 0))
            if not self.entry(table, n) & 1:
                self._free += PAGE
                self.set(table, n, self._free | 0x67)
            table = self.entry(table, n) & ~0xFFF


def test_what_the_kernels_half_maps() -> None:
    memory, root = Memory(), 0x1000
    for n in range(3):  # one after the other, and over the end of a table
        memory.map(root, TEXT + 0x1FE000 + n * PAGE, 0x20_0000 + n * PAGE)
    memory.map(root, TEXT + 0x400000, 0x20_1000)
    memory.map(root, 0xFFFF_8880_0000_0000, 0, shift=21)
    memory.map(root, 0xFFFF_8880_4000_0000, 1 << 30, shift=30)
    memory.map(root, 0x400000, 0x30_0000)  # the user's
    half = KernelHalf(memory, root | 0x18)
    assert sum(1 for _ in half) > 5 and half.whole
    assert half.runs == [
        Run(TEXT + 0x1FE000, 0x20_0000, 3 * PAGE),
        Run(TEXT + 0x400000, 0x20_1000, PAGE),
        Run(0xFFFF_8880_0000_0000, 0, 2 * MIB),
        Run(0xFFFF_8880_4000_0000, 1 << 30, 1 << 30),
    ]


@pytest.mark.parametrize("what", ["itself", "circle", "nowhere"])
def test_tables_that_a_guest_has_made_up(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "TABLES_MAX", 1000)
    memory, root, other = Memory(), 0x1000, 0x2000
    child = {"itself": root, "circle": other, "nowhere": 1 << 40}[what]
    for n in range(512):
        memory.set(root, n, child | 1)
        memory.set(other, n, other | 1)
    half = KernelHalf(memory, root)
    assert sum(1 for _ in half) <= 1000
    assert half.whole == (what != "circle") and (half.runs == []) == (what != "circle")


def test_too_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "RUNS_MAX", 10)
    memory, root = Memory(), 0x1000
    for n in range(4):
        memory.map(root, TEXT + n * 2 * MIB, n << 24)
        for page in range(1, 5):
            memory.map(root, TEXT + n * 2 * MIB + page * PAGE, (n << 24) + 2 * page * PAGE)
    half = KernelHalf(memory, root)
    assert list(half) and not half.whole and 10 <= len(half.runs) < 20


def loads(data: bytes) -> list[tuple[int, int, int, int]]:
    """(vaddr, paddr, offset, size) of the PT_LOADs."""
    (phoff,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    rows = [struct.unpack_from("<IIQQQQQQ", data, phoff + n * size) for n in range(count)]
    assert rows[0][0] == 4 and rows[0][2] + rows[0][5] <= len(data)
    assert all(row[5] == row[6] for row in rows[1:])
    return [(row[3], row[4], row[2], row[5]) for row in rows[1:]]


def test_what_lies_where() -> None:
    regions = [(0, 4 * MIB), (0xFC00_0000, 0x10000), (4 * MIB, PAGE), (0x800_0000, PAGE)]
    runs = [
        Run(TEXT, 2 * MIB, PAGE),
        Run(TEXT + MIB, 3 * MIB, 2 * MIB),
        Run(TEXT - MIB, 0xFED0_0000, PAGE),
        Run(TEXT + 4 * MIB, 0x700_0000, 0x200_0000),
    ]
    begin, (ram, acpi, page, other), whole = head(regions, runs, [REGS, {}])
    assert whole and len(begin) % PAGE == 0
    assert (ram, acpi, page, other) == (ram, ram + 4 * MIB, acpi + 0x10000, page + PAGE)
    assert loads(begin) == [
        (0, 0, ram, 4 * MIB),
        (0xFC00_0000, 0xFC00_0000, acpi, 0x10000),
        (4 * MIB, 4 * MIB, page, PAGE),
        (0x800_0000, 0x800_0000, other, PAGE),
        (TEXT, 2 * MIB, ram + 2 * MIB, PAGE),
        (TEXT + MIB, 3 * MIB, ram + 3 * MIB, MIB),
        (TEXT + 2 * MIB, 4 * MIB, page, PAGE),  # what is beyond lies nowhere
        (TEXT + 4 * MIB + 0x100_0000, 0x800_0000, other, PAGE),
    ]


def test_gdb_finds_registers_and_addresses(tmp_path: Path) -> None:
    gdb = shutil.which("gdb")
    if gdb is None:
        pytest.skip("no gdb here: apt install gdb")
    memory = Memory()
    memory.data[2 * MIB : 2 * MIB + 8] = b"\x11\x22\x33\x44\xcc\x90\x90\x90"
    begin, offsets, _ = head([(0, len(memory.data))], [Run(TEXT, 2 * MIB, PAGE)], [REGS, {**REGS, "rax": 7}])
    file = tmp_path / "web1.core"
    file.write_bytes(begin + memory.data)
    assert offsets == [len(begin)]
    words = ["set confirm off", "info threads", "p $rax", f"x/4xb {TEXT:#x}", f"x/2xb {2 * MIB:#x}",
             "x/i $rip", "p/x $gs_base", "thread 2", "p $rax"]  # fmt: skip
    argv = [gdb, "-nx", "-batch", *(arg for word in words for arg in ("-ex", word)), "-core", str(file)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=50).stdout
    assert "$1 = 42" in said and "0x11\t0x22\t0x33\t0x44" in said and "0x200000:\t0x11\t0x22" in said
    assert "int3" in said and "$2 = 0x7000" in said and "$3 = 7" in said


def test_more_mappings_than_a_file_can_tell() -> None:
    """A guest can have them."""
    regions = [(n * PAGE, PAGE) for n in range(4)]
    runs = [Run(TEXT + n * 8 * PAGE, 0, 4 * PAGE) for n in range(RUNS_MAX)]
    begin, _, whole = head(regions, runs, [REGS])
    assert not whole and struct.unpack_from("<H", begin, 56)[0] == 1 + LOADS_MAX
