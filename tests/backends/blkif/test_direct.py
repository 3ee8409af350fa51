"""Past the page cache: what a file system says of it, what it takes, and those that cannot."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fakes.disk import Disk
from xenpvd.backends.blkif import direct
from xenpvd.backends.blkif.image import Image
from xenpvd.config import DIRECT, Cache
from xenpvd.errors import ImageError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a loop device needs root")


@pytest.fixture
def large_blocks(path: Path) -> Iterator[Path]:
    """A block device whose blocks have 4096 bytes."""
    command = ["losetup", "--sector-size", "4096", "--find", "--show", str(path)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device with blocks of 4096 bytes here: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def cached_pages(path: Path) -> int:
    """How many the page cache has; asking does not bring them in."""
    size = path.stat().st_size
    found = (ctypes.c_uint8 * (size // 4096))()
    with path.open("rb+") as file, mmap.mmap(file.fileno(), size) as area:
        begin = ctypes.c_char.from_buffer(area)
        assert ctypes.CDLL(None).mincore(ctypes.byref(begin), ctypes.c_size_t(size), found) == 0
        del begin
    return sum(page & 1 for page in found)


def drop_from_cache(path: Path) -> None:
    with path.open("rb+", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("cache", DIRECT)
def test_reads_and_writes_leave_nothing_in_the_page_cache(path: Path, native: bool, cache: Cache) -> None:
    shadow = bytearray(path.read_bytes())
    drop_from_cache(path)
    if cached_pages(path):
        pytest.skip(f"the file system of {path.parent} is the page cache itself: set TMPDIR to another")
    disk = Disk(path, native=native, cache=cache)
    try:
        ring, rng = disk.start(), random.Random(2)
        for _ in range(100):
            count = rng.randint(1, 88)
            sector = rng.randint(0, 2048 - count)
            where = slice(sector * 512, (sector + count) * 512)
            if rng.random() < 0.5:
                assert ring.read(sector, count) == shadow[where]
            else:
                shadow[where] = rng.randbytes(count * 512)
                ring.write(sector, bytes(shadow[where]))
        assert ring.flush() == 0
        assert cached_pages(path) == 0
        assert ring.discard(8, 8) == 0
        shadow[4096:8192] = bytes(4096)
        assert disk.contents() == shadow, "who reads it by the page cache sees the same"
        ring.write(0, b"new" + bytes(509))
        assert disk.contents()[:3] == b"new"
        assert disk.end() is None
    finally:
        disk.close()


@needs_root
def test_a_device_of_large_blocks(large_blocks: Path) -> None:
    image = Image.open(large_blocks, readonly=False, cache="none")
    try:
        assert image.alignment == 4096
        assert direct._found_alignment(image.fd) == 4096, "as reading finds where nothing is told"
    finally:
        image.close()


def test_what_is_told_is_what_is_found(path: Path) -> None:
    with path.open("rb") as file:
        alignment = direct.bypass_page_cache(file.fileno())
        assert fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT
        assert alignment in (512, 1024, 2048, 4096)
        assert direct._found_alignment(file.fileno()) <= alignment


@pytest.mark.parametrize("wants", [512, 1024, 2048, 4096, 8192])
def test_the_alignment_is_found_by_reading(path: Path, monkeypatch: pytest.MonkeyPatch, wants: int) -> None:
    """As before Linux 6.1, and on file systems that do not tell."""
    monkeypatch.setattr(direct, "_told_alignment", lambda fd: None)

    def preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        (buffer,) = buffers
        if ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % wants or len(buffer) % wants:
            raise OSError(errno.EINVAL, "Invalid argument")
        return len(buffer)

    monkeypatch.setattr(os, "preadv", preadv)
    if wants <= 4096:
        image = Image.open(path, readonly=True, cache="none")
        assert image.alignment == wants
        image.close()
    else:
        with pytest.raises(ImageError, match=r'O_DIRECT\)\. Use cache "writeback"'):
            Image.open(path, readonly=True, cache="none")


def test_a_read_that_fails_for_another_reason_is_told_as_such(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preadv(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(direct, "_told_alignment", lambda fd: None)
    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(ImageError, match="Input/output error"):
        Image.open(path, readonly=True, cache="none")


@pytest.mark.parametrize(("cache", "other"), [("none", "writeback"), ("directsync", "writethrough")])
@pytest.mark.parametrize("cannot", ["to be set", "this file"])
def test_a_file_system_that_cannot(
    path: Path, monkeypatch: pytest.MonkeyPatch, cannot: str, cache: Cache, other: str
) -> None:
    def refuse(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return fcntl_(fd, command, argument)

    fcntl_ = fcntl.fcntl
    if cannot == "to be set":  # tmpfs before Linux 6.6, overlays of such
        monkeypatch.setattr(fcntl, "fcntl", refuse)
    else:
        monkeypatch.setattr(direct, "_told_alignment", lambda fd: 0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ImageError) as refused:
        Image.open(path, readonly=False, cache=cache)
    assert str(refused.value) == (
        f"cannot use image {path}: its file system cannot do without the page cache "
        f'(cache "{cache}", O_DIRECT). Use cache "{other}", or put it on another file system.'
    )
    monkeypatch.undo()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    Image.open(path, readonly=False).close()
