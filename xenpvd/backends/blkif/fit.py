"""Whether an image can be the disk that a definition wants."""

from __future__ import annotations

from xenpvd.backends.blkif.image import Image
from xenpvd.config import SYNC, DiskConfig
from xenpvd.errors import BadConfig


def check_fits(disk: DiskConfig, image: Image) -> None:
    """Raises :class:`BadConfig`, whose problem is ``sector_size``."""
    size = disk.sector_size
    if image.size % size:
        why = f"its image has {image.size} bytes, no multiple of its sector_size, {size}"
        cure = "Leave sector_size out."
    elif image.alignment > size:
        why = f"its storage has blocks of {image.alignment} bytes, and with cache "
        why += f'"{disk.cache}" sector_size, {size}, cannot be less'
        cure = f'Use cache "{"writethrough" if disk.cache in SYNC else "writeback"}"'
        cure += "." if image.alignment > 4096 else ", or sector_size 4096 if it has been partitioned so."
    else:
        return
    raise BadConfig(f"cannot use {disk.vdev}: {why}. {cure}", [("sector_size", why)])
