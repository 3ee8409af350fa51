"""Guest memory: what lies outside is refused, what is inside is one thing however it is looked at."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.abi.page import PAGE_SIZE
from xenpvd.abi.xen import EFAULT
from xenpvd.errors import HostError, XenError
from xenpvd.vmm import memory as module
from xenpvd.vmm.layout import GIB, HUGE_PAGE, MIB
from xenpvd.vmm.memory import GuestMemory, Page, allocate, page_kind

HOLE = 4 * GIB
RAM = 4 * MIB


@pytest.fixture(scope="module")
def memory() -> GuestMemory:
    memory = GuestMemory()
    memory.add("ram", 0, RAM, ram=True)
    memory.add("special", RAM, 2 * PAGE_SIZE)
    memory.add_page(allocate("claimed", HOLE, PAGE_SIZE, ram=False))
    return memory


@pytest.mark.parametrize(
    "gpa, length",
    [
        (HOLE + PAGE_SIZE, 1),
        (HOLE + 1, PAGE_SIZE),
        (HOLE - 1, 1),
        (HOLE - 1, 2),
        (HOLE, PAGE_SIZE + 1),
        (RAM - 1, 2),  # two regions side by side are not one
        (RAM + 2 * PAGE_SIZE, 0 + 1),
        (2**64 - 1, 1),
        (2**64, 1),
        (2**100, 1),
        (-1, 1),
        (0, 2**64),
    ],
)
def test_outside_is_a_fault(memory: GuestMemory, gpa: int, length: int) -> None:
    for act in (memory.view, memory.read, memory.address):
        with pytest.raises(XenError) as caught:
            act(gpa, length)
        assert caught.value.errno == EFAULT


def test_writes_outside_are_faults(memory: GuestMemory) -> None:
    for gpa, data in ((RAM - 1, b"ab"), (HOLE + PAGE_SIZE - 1, b"ab"), (2**64, b"a")):
        with pytest.raises(XenError):
            memory.write(gpa, data)
    for act in (memory.page, memory.zero, memory.discard):
        for gfn in (HOLE // PAGE_SIZE + 1, 2**52, 2**64):
            with pytest.raises(XenError):
                act(gfn)


@given(gpa=st.integers(0, HOLE + 2 * PAGE_SIZE), data=st.binary(max_size=64))
def test_what_is_written_is_read(memory: GuestMemory, gpa: int, data: bytes) -> None:
    try:
        memory.write(gpa, data)
    except XenError:
        return
    assert memory.read(gpa, len(data)) == data
    assert ctypes.string_at(memory.address(gpa, len(data)), len(data)) == data


@pytest.mark.parametrize(
    "gfn, name, ram",
    [
        (0, "ram", True),
        (RAM // PAGE_SIZE - 1, "ram", True),
        (RAM // PAGE_SIZE, "special", False),
        (RAM // PAGE_SIZE + 2, None, False),
        (HOLE // PAGE_SIZE, "claimed", False),
        (2**52, None, False),
    ],
)
def test_regions(memory: GuestMemory, gfn: int, name: str | None, ram: bool) -> None:
    assert memory.region_of(gfn) == name
    assert memory.is_ram(gfn) is ram
    assert memory.is_there(gfn) is ram


def test_big_regions_are_aligned_for_huge_pages(memory: GuestMemory) -> None:
    assert memory.regions[0].address % HUGE_PAGE == 0
    assert all(region.address % PAGE_SIZE == 0 for region in memory.regions)


def test_cas16_of_a_grants_flags(memory: GuestMemory) -> None:
    memory.write(0x1008, b"\1\0\2\0")
    assert not memory.cas16(0x1008, 5, 9)
    assert memory.cas16(0x1008, 1, 0x19)
    assert memory.read(0x1008, 4) == b"\x19\0\2\0"
    with pytest.raises(XenError):
        memory.cas16(HOLE + PAGE_SIZE - 1, 0, 1)


def test_zero_and_discard_touch_one_page(memory: GuestMemory) -> None:
    for act in (memory.zero, memory.discard):
        memory.write(0x2000, b"\xaa" * 3 * PAGE_SIZE)
        act(3)
        assert (
            memory.read(0x2000, 3 * PAGE_SIZE) == b"\xaa" * PAGE_SIZE + bytes(PAGE_SIZE) + b"\xaa" * PAGE_SIZE
        )


def test_discard_knows_where_a_region_begins_in_its_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HUGE_PAGE", 64 * MIB)  # so that some of a mapping is lost to alignment
    tried = [GuestMemory() for _ in range(8)]  # mappings of different sizes, one below the other
    regions = [memory.add("ram", 0, (64 + 2 * n) * MIB, ram=True) for n, memory in enumerate(tried)]
    memory = tried[next(n for n, region in enumerate(regions) if region._skip)]
    memory.write(0, b"\xaa" * 3 * PAGE_SIZE)
    memory.discard(1)
    assert memory.read(0, 3 * PAGE_SIZE) == b"\xaa" * PAGE_SIZE + bytes(PAGE_SIZE) + b"\xaa" * PAGE_SIZE


def test_pages_given_back_are_counted_once(memory: GuestMemory) -> None:
    memory.write(0x3000, b"x")
    for gfn, count in ((3, 1), (3, 1), (4, 2), (RAM // PAGE_SIZE - 1, 3)):
        memory.discard(gfn)
        assert memory.ballooned == count
    for gfn, count in ((3, 2), (3, 2), (5, 2), (4, 1), (RAM // PAGE_SIZE - 1, 0)):
        memory.populate(gfn)
        assert memory.ballooned == count
    memory.write(0x3000, b"again")
    assert memory.read(0x3000, 5) == b"again"
    with pytest.raises(XenError):
        memory.populate(2**52)


def test_only_ram_is_counted(memory: GuestMemory) -> None:
    memory.discard(RAM // PAGE_SIZE)
    memory.discard(HOLE // PAGE_SIZE)
    assert memory.ballooned == 0


def test_a_page_is_a_window(memory: GuestMemory) -> None:
    page = memory.page(5)
    page.store32(8, 0x1_2345_6789)
    assert memory.read(0x5008, 4) == bytes.fromhex("89674523")
    memory.write(0x5000, b"\xff\xff\xff\xff")
    assert page.load32(0) == 2**32 - 1
    page.write(PAGE_SIZE - 3, b"end")
    assert page.read(PAGE_SIZE - 3, 3) == memory.read(0x6000 - 3, 3) == b"end"
    assert len(page.view) == PAGE_SIZE
    page.fence()


def test_a_page_ends() -> None:
    page = Page(memoryview(bytearray(PAGE_SIZE)))
    with pytest.raises(IndexError):
        page.load32(PAGE_SIZE)
    with pytest.raises(ValueError):
        page.write(PAGE_SIZE - 1, b"ab")


def test_a_copy_is_private(memory: GuestMemory) -> None:
    page = memory.page(6)
    page.write(0, b"good")  # the memory is shared with tests that write anywhere
    copy, whole = page.read(0, 4), memory.read(0x6000, 4)
    page.write(0, b"evil")
    assert copy == whole == b"good"


def test_released_memory_reads_zeros_and_views_stay_valid() -> None:
    """A disk's thread may still hold pages when the VM is gone."""
    memory = GuestMemory()
    memory.add("ram", 0, RAM, ram=True)
    page = memory.page(7)
    page.write(0, b"secret")
    memory.release()
    assert page.read(0, 6) == bytes(6)
    page.write(0, b"late")
    memory.release()
    del memory
    assert page.load32(0) == 0


def test_a_host_without_room_is_an_error_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """P13."""

    def refuse(*args: object, **kwargs: object) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module.mmap, "mmap", refuse)
    with pytest.raises(HostError, match=r"cannot allocate 64 MiB .*: Cannot allocate memory\. Give"):
        GuestMemory().add("ram", 0, 64 * MIB, ram=True)


@pytest.mark.parametrize(
    "modes, kind, why",
    [
        ("always [madvise] never\n", "huge", "transparent 2 MiB pages"),
        ("[always] madvise never\n", "huge", "transparent 2 MiB pages"),
        ("always madvise [never]\n", "4k", "echo madvise"),
        (None, "4k", "missing"),
    ],
)
def test_page_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, modes: str | None, kind: str, why: str
) -> None:
    file = tmp_path / "enabled"
    if modes is not None:
        file.write_text(modes)
    monkeypatch.setattr(module, "THP", file)
    assert page_kind()[0] == kind and why in page_kind()[1]


def test_a_kernel_without_huge_pages_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.mmap, "MADV_HUGEPAGE", 12345)  # EINVAL, as where they are not built in
    memory = GuestMemory()
    memory.add("ram", 0, RAM, ram=True)
    assert memory.read(RAM - 1, 1) == b"\0"


@pytest.mark.parametrize("size", [PAGE_SIZE, 64 * MIB])
def test_a_core_of_ours_does_not_carry_it(size: int) -> None:
    """P17: the kernel is told so; "dd" in proc_pid_smaps(5)."""
    region = allocate("ram", 0, size, ram=True)
    flags = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        elif line.startswith("VmFlags:"):
            flags[begin, end] = line.split()[1:]
    within = [
        found
        for (begin, end), found in flags.items()
        if begin < region.address + size and end > region.address
    ]
    assert within and all("dd" in found for found in within)
