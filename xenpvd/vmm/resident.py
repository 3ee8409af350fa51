"""What the host holds for each region of guest memory, from /proc/self/smaps (proc(5))."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from xenpvd.views import MemoryRegion
from xenpvd.vmm.memory import Region

SMAPS = Path("/proc/self/smaps")
_AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_FIELDS = ("Rss:", "AnonHugePages:")


def memory_regions(regions: Iterable[Region]) -> list[MemoryRegion]:
    """Blocking: the kernel looks at every page. Pages that the guest has claimed singly are one line."""
    areas = _areas(SMAPS.read_text())
    found: list[MemoryRegion] = []
    claimed: list[MemoryRegion] = []
    for region in regions:
        # memory.py sees to it that an area of the kernel's is never a part of two regions
        mine = [
            area
            for start, end, area in areas
            if start < region.address + region.size and end > region.address
        ]
        resident, huge = (min(region.size, sum(area[field] for area in mine)) for field in _FIELDS)
        one = MemoryRegion(region.name, region.gpa, region.size, resident, huge)
        (claimed if region.name == "claimed" else found).append(one)
    if claimed:
        gpa = min(one.gpa for one in claimed)
        size, resident = sum(one.size for one in claimed), sum(one.resident for one in claimed)
        found.append(MemoryRegion("claimed", gpa, size, resident, 0))
    return found


def _areas(smaps: str) -> list[tuple[int, int, dict[str, int]]]:
    """(start, end, {field: bytes}) of every mapping of this process."""
    areas: list[tuple[int, int, dict[str, int]]] = []
    for line in smaps.splitlines():
        if match := _AREA.match(line):
            areas.append((int(match[1], 16), int(match[2], 16), dict.fromkeys(_FIELDS, 0)))
        elif line.startswith(_FIELDS):
            field, kib, _ = line.split()
            areas[-1][2][field] = int(kib) * 1024
    return areas
