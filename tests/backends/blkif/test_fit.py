from __future__ import annotations

import pytest

from xenpvd.backends.blkif.fit import check_fits
from xenpvd.backends.blkif.image import Image
from xenpvd.config import DiskConfig
from xenpvd.errors import BadConfig


@pytest.mark.parametrize(
    ("size", "alignment", "sector_size", "says"),
    [
        (4096 * 3, 1, 512, None),
        (4096 * 3, 512, 512, None),
        (4096 * 3, 4096, 4096, None),
        (512 * 9, 512, 4096, "4608 bytes, no multiple of its sector_size, 4096. Leave sector_size out."),
        (4096 * 3, 4096, 512, "has blocks of 4096 bytes.* sector_size, 512, .* or sector_size 4096 if it"),
        (4096 * 4, 16384, 4096, r'blocks of 16384 bytes.*\. Use cache "writeback"\.$'),
    ],
)
def test_sectors(size: int, alignment: int, sector_size: int, says: str | None) -> None:
    image = Image(-1, "/x.img", size, readonly=False)
    image.alignment = alignment
    disk = DiskConfig.model_validate({"vdev": "xvdb", "target": "/x.img", "sector_size": sector_size})
    if says is None:
        check_fits(disk, image)
        return
    with pytest.raises(BadConfig, match=f"^cannot use xvdb: .*{says}") as refused:
        check_fits(disk, image)
    assert [where for where, _ in refused.value.problems] == ["sector_size"]


def test_the_cure_is_as_stable_as_what_was_asked_for() -> None:
    image = Image(-1, "/x.img", 4096 * 4, readonly=False)
    image.alignment = 16384
    with pytest.raises(BadConfig, match=r'with cache "directsync" sector_size.* Use cache "writethrough"\.$'):
        check_fits(DiskConfig(vdev="xvdb", target="/x.img", cache="directsync"), image)
