"""The ELF image in a bzImage, in every format that Linux is packed by, and payloads that are not right."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lz4 import block  # type: ignore[import-untyped]

from tests.fakes.images import bzimage
from xenpvd.vmm import bzimage as room
from xenpvd.vmm.bzimage import UnknownFormat, is_bzimage, is_packed, payload
from xenpvd.vmm.elf import BadImage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

KERNEL = b"\x7fELF" + bytes(range(256)) * 1000 + bytes(100_000)
MIB = 1 << 20


def sized(packed: bytes, size: int = len(KERNEL)) -> bytes:
    """As the kernel's build does it: the size after the packed bytes."""
    return packed + size.to_bytes(4, "little")


def lz4(data: bytes) -> bytes:
    parts = [data[at : at + 8 * MIB] for at in range(0, len(data), 8 * MIB)]
    packed = [block.compress(part, store_size=False) for part in parts]
    return b"\x02\x21\x4c\x18" + b"".join(len(one).to_bytes(4, "little") + one for one in packed)


def xz(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 25}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


def alone(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "bzip2": bz2.compress, "xz": xz, "lzma": alone, "LZ4": lz4, "zstd": zstd.compress,
}  # fmt: skip
PACKED = {"gzip": gzip.compress(KERNEL)} | {name: sized(pack(KERNEL)) for name, pack in PACKERS.items()}


@pytest.mark.parametrize("name", PACKED)
def test_every_format_that_linux_is_packed_by(name: str) -> None:
    assert payload(bzimage(PACKED[name])) == KERNEL
    assert is_packed(PACKED[name])


def test_the_table_names_them() -> None:
    assert {name for _, name, make in room.FORMATS if make is not None} == set(PACKED)


@pytest.mark.parametrize("size", [8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 20 * MIB])
def test_lz4_of_several_blocks(size: int) -> None:
    kernel = bytes(size)
    assert payload(bzimage(sized(lz4(kernel), size))) == kernel


@pytest.mark.parametrize("part", [b"", b"x"])
def test_lz4_of_many_small_blocks_is_not_unpacked_for_minutes(
    part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = block.compress(part, store_size=False)
    packed = lz4(b"") + (len(one).to_bytes(4, "little") + one) * 1000
    unpack = Mock(wraps=block.decompress)
    monkeypatch.setattr(block, "decompress", unpack)
    with pytest.raises(BadImage, match="a block before the last one is short"):
        payload(bzimage(sized(packed, 1000)))
    unpack.assert_called_once()


@pytest.mark.parametrize("sects", [0, 1, 39])
def test_where_the_payload_lies(sects: int) -> None:
    assert payload(bzimage(KERNEL, sects=sects)) == KERNEL


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("other", [1, len(KERNEL) - 1, len(KERNEL) + 1, room.UNPACKED_MAX])
def test_a_payload_of_another_size_than_it_says(name: str, other: int) -> None:
    packed = PACKED[name][:-4] + other.to_bytes(4, "little")
    with pytest.raises(BadImage, match=f"its {name} payload is damaged"):
        payload(bzimage(packed))


@pytest.mark.parametrize("size", [0, room.UNPACKED_MAX + 1, 2**32 - 1])
def test_sizes_that_are_not_even_tried(size: int) -> None:
    """P11."""
    with pytest.raises(BadImage, match=f"it would be {size} bytes unpacked"):
        payload(bzimage(PACKED["zstd"][:-4] + size.to_bytes(4, "little")))


@pytest.mark.parametrize("name", PACKED)
def test_a_payload_cut_in_the_middle(name: str) -> None:
    packed = PACKED[name]
    with pytest.raises(BadImage, match=f"its {name} payload is damaged"):
        payload(bzimage(packed[: len(packed) // 2] + packed[-4:]))


@given(
    name=st.sampled_from(sorted(PACKED)),
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_payload_is_refused_or_of_its_size(name: str, changes: list[tuple[int, int]]) -> None:
    """P11."""
    packed = bytearray(PACKED[name])
    for at, value in changes:
        packed[6 + at % (len(packed) - 10)] = value  # neither the magic number nor the size
    try:
        unpacked = payload(bzimage(bytes(packed)))
    except BadImage:
        return
    assert len(unpacked) == len(KERNEL)


@pytest.mark.parametrize(
    "image, why",
    [
        (bzimage(KERNEL, version=0x207), r"boot protocol 2.07; 2.08 or newer"),
        (bzimage(KERNEL, length=len(KERNEL) + 100), "a bzImage cut short"),
        (bzimage(KERNEL, length=2**32 - 1), "a bzImage cut short"),
        (bzimage(KERNEL, length=7), "a bzImage cut short"),
        (bzimage(KERNEL)[:0x250], "a bzImage cut short"),
    ],
)
def test_a_bzimage_that_cannot_be(image: bytes, why: str) -> None:
    assert is_bzimage(image)
    with pytest.raises(BadImage, match=why):
        payload(image)


@pytest.mark.parametrize(
    "packed, name", [(b"\x89LZO\0\r\n\x1a\n", "LZO"), (b"\x1f\x9epacked", "an unknown format")]
)
def test_formats_that_are_not_known(packed: bytes, name: str) -> None:
    with pytest.raises(
        UnknownFormat, match=f"packed by {name}, .*known are gzip, bzip2, xz, lzma, LZ4, zstd"
    ):
        payload(bzimage(packed))


@pytest.mark.parametrize("data", [b"", b"MZ", bytes(4096), KERNEL, bzimage(KERNEL)[:0x24F]])
def test_what_is_no_bzimage(data: bytes) -> None:
    assert not is_bzimage(data)
