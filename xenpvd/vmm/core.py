"""A core file of a guest, an ELF that gdb, crash and readelf open: what lies where in it, what the vCPUs were
at, and the virtual addresses that their page tables map.

System V ABI, chapters 4 and 5, with its x86-64 supplement; Linux's elfcore.h (elf_prstatus) and user_64.h.
Low addresses are guest physical ones. Those of the kernel's half are as the guest has mapped them, and name
the same bytes of the file once more.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from struct import Struct
from typing import NamedTuple, Protocol

from xenpvd.abi.linux_kvm import EFER_LMA
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.errors import XenError

#: A file with more would be slow to open
RUNS_MAX = 16384
#: ELF counts its program headers in 16 bits; one is the notes'
LOADS_MAX = 0xFFFF - 2
#: What a walk looks at; a guest may let its tables go in circles
TABLES_MAX = 1 << 17

_EHDR = Struct("<16sHHIQQQIHHHHHH")
_PHDR = Struct("<IIQQQQQQ")  # type flags offset vaddr paddr filesz memsz align
_ET_CORE, _EM_X86_64, _PT_LOAD, _PT_NOTE, _RWX = 4, 62, 1, 4, 7
_NOTE = Struct("<III8s")  # namesz descsz type name
_NT_PRSTATUS = 1
_PRSTATUS = Struct("<32xI76x27Q8x")  # pr_pid pr_reg
_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip

_TABLE = Struct("<512Q")
_PRESENT, _HUGE, _FRAME = 1, 1 << 7, 0x000F_FFFF_FFFF_F000
_TOP_SHIFT, _LAST_SHIFT = 39, 12
#: of the first table: what comes before is the user's
_KERNEL_HALF = range(256, 512)
_SIGN = 0xFFFF << 48


class Run(NamedTuple):
    """``size`` bytes of guest physical memory from ``gpa`` on, at the virtual address ``gva``."""

    gva: int
    gpa: int
    size: int


class PhysicalMemory(Protocol):
    """Raises ``XenError`` where there is none."""

    def read(self, gpa: int, length: int) -> bytes: ...


class KernelHalf:
    """What the tables of long mode at ``cr3`` map into the kernel's half of the addresses. Iterating walks
    them, a table at a time; ``runs`` is what was found, and ``whole`` whether it is all."""

    def __init__(self, memory: PhysicalMemory, cr3: int) -> None:
        self.runs: list[Run] = []
        self.whole = True
        self._memory = memory
        self._root = cr3 & _FRAME
        self._tables = 0

    @property
    def size(self) -> int:
        """Bytes that are mapped."""
        return sum(run.size for run in self.runs)

    def __iter__(self) -> Iterator[None]:
        top = self._entries(self._root)
        # the last one is that of Linux's own code and data
        for n in reversed(_KERNEL_HALF):
            yield from self._below(top[n], _SIGN | n << _TOP_SHIFT, _TOP_SHIFT)

    def _below(self, entry: int, gva: int, shift: int) -> Iterator[None]:
        """What an entry at ``shift`` maps, from ``gva`` on."""
        if not entry & _PRESENT:
            return
        if entry & _HUGE and shift < _TOP_SHIFT:
            self._add(gva, entry & _FRAME & -(1 << shift), 1 << shift)
            return
        table = entry & _FRAME
        if table == self._root:  # Xen lets its tables map themselves
            return
        if self._tables >= TABLES_MAX or len(self.runs) >= RUNS_MAX:
            self.whole = False
            return
        self._tables += 1
        entries, shift = self._entries(table), shift - 9
        yield
        for n, below in enumerate(entries):
            if below & _PRESENT and shift == _LAST_SHIFT:  # which are most of them
                self._add(gva + (n << shift), below & _FRAME, PAGE_SIZE)
            elif below & _PRESENT:
                yield from self._below(below, gva + (n << shift), shift)

    def _entries(self, table: int) -> Sequence[int]:
        try:
            return _TABLE.unpack(self._memory.read(table, PAGE_SIZE))
        except XenError:  # the guest's own business
            return [0] * 512

    def _add(self, gva: int, gpa: int, size: int) -> None:
        if self.runs:
            last = self.runs[-1]
            if (gva, gpa) == (last.gva + last.size, last.gpa + last.size):
                self.runs[-1] = Run(last.gva, last.gpa, last.size + size)
                return
        self.runs.append(Run(gva, gpa, size))


def roots(vcpus: Iterable[Mapping[str, int]]) -> list[int]:
    """The page tables that vCPUs in long mode use, by their registers: addresses of the first table."""
    return sorted({regs["cr3"] & _FRAME for regs in vcpus if regs.get("efer", 0) & EFER_LMA})


def head(
    regions: Sequence[tuple[int, int]], runs: Iterable[Run], vcpus: Iterable[Mapping[str, int]]
) -> tuple[bytes, list[int], bool]:
    """(what the file begins with, where in it each region lies, whether all ``runs`` are told). ``regions``
    are (gpa, bytes), whole pages; ``runs`` are mapped, too, as far as they lie in those; ``vcpus`` are their
    registers, by name."""
    notes = b"".join(_note(number, regs) for number, regs in enumerate(vcpus, 1))
    offsets, at = [], 0
    for _, size in regions:
        offsets.append(at)
        at += size
    loads: list[tuple[int, int, int, int]] = [
        *((gpa, gpa, at, size) for (gpa, size), at in zip(regions, offsets, strict=True)),
        *_loads(runs, regions, offsets),
    ]
    whole = len(loads) <= LOADS_MAX
    del loads[LOADS_MAX:]
    notes_at = _EHDR.size + (1 + len(loads)) * _PHDR.size
    begin = notes_at + len(notes) + PAGE_SIZE - 1 & -PAGE_SIZE
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    parts = [
        _EHDR.pack(
            ident,
            _ET_CORE,
            _EM_X86_64,
            1,
            0,
            _EHDR.size,
            0,
            0,
            _EHDR.size,
            _PHDR.size,
            1 + len(loads),
            0,
            0,
            0,
        ),
        _PHDR.pack(_PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4),
        *(
            _PHDR.pack(_PT_LOAD, _RWX, begin + offset, vaddr, gpa, size, size, PAGE_SIZE)
            for vaddr, gpa, offset, size in loads
        ),
        notes,
    ]
    return b"".join(parts).ljust(begin, b"\0"), [begin + offset for offset in offsets], whole


def _loads(
    runs: Iterable[Run], regions: Sequence[tuple[int, int]], offsets: Sequence[int]
) -> Iterator[tuple[int, int, int, int]]:
    """(virtual, physical address, place among the regions, bytes) of what of each run lies in a region."""
    placed = sorted((gpa, size, offset) for (gpa, size), offset in zip(regions, offsets, strict=True))
    begins = [gpa for gpa, _, _ in placed]
    for run in runs:
        first = max(0, bisect_right(begins, run.gpa) - 1)
        for gpa, size, offset in islice(placed, first, bisect_left(begins, run.gpa + run.size)):
            begin, end = max(run.gpa, gpa), min(run.gpa + run.size, gpa + size)
            if begin < end:
                yield run.gva + begin - run.gpa, begin, offset + begin - gpa, end - begin


def _note(number: int, regs: Mapping[str, int]) -> bytes:
    """The state of one vCPU, as of a thread of that number; orig_rax of -1 is for one in no system call."""
    values = {"orig_rax": (1 << 64) - 1, **regs}
    status = _PRSTATUS.pack(number, *(values.get(name, 0) for name in _REGISTERS))
    return _NOTE.pack(5, len(status), _NT_PRSTATUS, b"CORE\0") + status
