"""What a kernel file is: something with a PVH entry, something for the shim, or no kernel at all."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from xenpvd.abi import xen
from xenpvd.vmm import bzimage, elf, layout
from xenpvd.vmm.elf import BadImage, Elf, Segment


@dataclass(frozen=True, slots=True)
class PvhImage:
    """What a vCPU can be started in: the shim, or a kernel with a PVH entry. ``notes`` are Xen's, by type."""

    entry: int
    segments: tuple[Segment, ...]
    notes: dict[int, bytes]

    @property
    def end(self) -> int:
        """The first address above all of it."""
        return max(segment.end for segment in self.segments)


def parse_pvh(data: bytes) -> PvhImage:
    """An ELF image or a bzImage with a PVH entry. Raises :class:`BadImage`, also if it has no place in our
    layout."""
    image = elf.parse(bzimage.payload(data) if bzimage.is_bzimage(data) else data)
    note = image.notes.get(xen.XEN_ELFNOTE_PHYS32_ENTRY, b"")[:4]
    if len(note) < 4:
        raise BadImage("it has no PVH entry")
    entry = int.from_bytes(note, "little")
    _check_places(image)
    if not any(segment.paddr <= entry < segment.paddr + len(segment.data) for segment in image.segments):
        raise BadImage(f"its PVH entry {entry:#x} lies outside its segments")
    return PvhImage(entry, image.segments, image.notes)


def _check_places(image: Elf) -> None:
    for segment in image.segments:
        if segment.paddr < layout.KERNEL_MIN or segment.end > layout.LOW_RAM_MAX:
            raise BadImage(
                f"its segment {segment.paddr:#x}+{segment.memsz:#x} does not fit between "
                f"{layout.KERNEL_MIN:#x} and {layout.LOW_RAM_MAX:#x}"
            )
    for one, other in pairwise(sorted(image.segments, key=lambda segment: segment.paddr)):
        if one.end > other.paddr:
            raise BadImage(f"its segments at {one.paddr:#x} and {other.paddr:#x} overlap")


def check_pv(data: bytes) -> None:
    """Raise :class:`BadImage` if the shim can make nothing of it. Where we cannot tell, we say nothing: the
    shim unpacks more formats, and takes 32-bit kernels and those that are older than notes."""
    if bzimage.is_bzimage(data):
        try:
            notes = elf.parse(bzimage.payload(data)).notes
        except bzimage.UnknownFormat:
            return
        if elf.XEN_ELFNOTE_ENTRY not in notes:
            raise BadImage("it has no entry for Xen PV")
    elif data.startswith(elf.MAGIC):
        notes = elf.parse(data).notes
        if elf.XEN_ELFNOTE_ENTRY not in notes and xen.XEN_ELFNOTE_PHYS32_ENTRY in notes:
            raise BadImage("it has an entry for PVH only")
    elif not bzimage.is_packed(data):
        raise BadImage("it is no kernel: neither a bzImage nor an ELF image")
