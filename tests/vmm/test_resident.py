"""What the host holds of guest memory, as the kernel itself tells it."""

from __future__ import annotations

import pytest

from xenpvd.abi.page import PAGE_SIZE
from xenpvd.vmm.layout import GIB, MIB
from xenpvd.vmm.memory import GuestMemory, allocate
from xenpvd.vmm.resident import memory_regions


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> GuestMemory:
    monkeypatch.setattr("xenpvd.vmm.memory.mmap.MADV_HUGEPAGE", 12345)  # so that a touch is 4 KiB
    memory = GuestMemory()
    memory.add("ram", 0, 4 * MIB, ram=True)
    for n, name in enumerate(("acpi", "special")):
        memory.add(name, GIB + n * MIB, 16 * PAGE_SIZE)
    for n in range(3):
        memory.add_page(allocate("claimed", 4 * GIB + n * PAGE_SIZE, PAGE_SIZE, ram=False))
    return memory


def test_pages_count_for_their_own_region(memory: GuestMemory) -> None:
    """Regions lie side by side in our address space, and the kernel must not take them for one."""
    memory.write(0, b"x")
    memory.write(3 * MIB, b"x" * 2 * PAGE_SIZE)
    memory.write(GIB + MIB, b"x")
    memory.write(4 * GIB + PAGE_SIZE, b"x")
    found = memory_regions(memory.all_regions())
    assert [(one.name, one.gpa, one.size, one.resident) for one in found] == [
        ("ram", 0, 4 * MIB, 3 * PAGE_SIZE),
        ("acpi", GIB, 16 * PAGE_SIZE, 0),
        ("special", GIB + MIB, 16 * PAGE_SIZE, PAGE_SIZE),
        ("claimed", 4 * GIB, 3 * PAGE_SIZE, PAGE_SIZE),
    ]
    memory.discard(3 * MIB // PAGE_SIZE)
    assert memory_regions(memory.all_regions())[0].resident == 2 * PAGE_SIZE


def test_huge_pages_are_told(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = GuestMemory()
    region = memory.add("ram", 0, 4 * MIB, ram=True)
    smaps = (
        f"{region.address - MIB:x}-{region.address:x} rw-p 0 00:00 0\nRss: 1024 kB\nAnonHugePages: 1024 kB\n"
        f"{region.address:x}-{region.address + 4 * MIB:x} rw-p 0 00:00 0 \nRss:  3072 kB\n"
        "AnonHugePages:   2048 kB\nVmFlags: rd wr\n"
    )

    class Smaps:
        @staticmethod
        def read_text() -> str:
            return smaps

    monkeypatch.setattr("xenpvd.vmm.resident.SMAPS", Smaps)
    (one,) = memory_regions(memory.all_regions())
    assert (one.resident, one.huge) == (3 * MIB, 2 * MIB)
