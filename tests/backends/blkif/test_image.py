"""Images: how they are read, written and resized, and what the host's failures become."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenpvd.backends.blkif.image import Image
from xenpvd.config import Cache
from xenpvd.errors import ImageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def views(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


# ---- opening


def test_open(image: Image, path: Path) -> None:
    assert (image.path, image.size, image.readonly) == (str(path), 16384, False)


def test_fd_is_not_inherited(image: Image) -> None:
    assert not os.get_inheritable(image.fd)


def test_a_rename_over_it_does_not_matter(path: Path, image: Image) -> None:
    other = path.with_name("new.img")
    other.write_bytes(b"n" * 512)
    other.rename(path)
    (view,) = views(4)
    image.read([view], 0)
    assert bytes(view) == b"\0\1\2\3"


# ---- transfers


def test_read_and_write_what_lies_scattered(image: Image, path: Path) -> None:
    pieces = views(512, 1024, 512)
    for number, piece in enumerate(pieces, 1):
        piece[:] = bytes([number]) * len(piece)
    image.write(pieces, 1024)
    data = path.read_bytes()
    assert data[1024:3072] == b"\1" * 512 + b"\2" * 1024 + b"\3" * 512
    assert data[:1024] == bytes(range(256)) * 4 and data[3072:] == bytes(range(256)) * 52
    back = views(1536, 512)
    image.read(back, 1024)
    assert b"".join(back) == data[1024:3072]


class Awkward(Image):
    """The Nth system call fails with ``errno``; or transfers take at most ``most`` bytes each."""

    fail_at = 0
    errno = 0
    most = 1 << 30
    calls = 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(self.errno, os.strerror(self.errno))

    def _some(self, views: list[memoryview]) -> list[memoryview]:
        some, left = [], self.most
        for view in views:
            some.append(view[:left])
            left -= len(some[-1])
        return some

    def _preadv(self, views: list[memoryview], offset: int) -> int:
        self._count()
        return super()._preadv(self._some(views), offset)

    def _pwritev(self, views: list[memoryview], offset: int) -> int:
        self._count()
        return super()._pwritev(self._some(views), offset)

    def _fdatasync(self) -> None:
        self._count()
        super()._fdatasync()


@pytest.fixture
def awkward(path: Path) -> Iterator[Awkward]:
    image = Awkward.open(path, readonly=False)
    assert isinstance(image, Awkward)
    yield image
    image.close()


@pytest.mark.parametrize("most", [1, 7, 512, 1000, 4096])
def test_short_transfers_are_continued(awkward: Awkward, path: Path, most: int) -> None:
    awkward.most = most
    pieces = views(512, 512, 1024)
    awkward.read(pieces, 512)
    assert b"".join(pieces) == path.read_bytes()[512:2560]
    pieces[1][:] = b"x" * 512
    awkward.write(pieces, 4096)
    assert path.read_bytes()[4096:6144] == b"".join(pieces)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_the_nth_call_fails(awkward: Awkward, number: int) -> None:
    awkward.errno, awkward.most = number, 512
    for operation in (awkward.read, awkward.write):
        failed = 0
        for nth in range(1, 100):
            awkward.calls, awkward.fail_at = 0, nth
            try:
                operation(views(1024, 1024), 0)
            except OSError as fault:
                assert fault.errno == number and awkward.calls == nth
                failed += 1
            else:
                break
        assert failed == 4


def test_past_a_truncated_end_is_an_error_and_no_zeroes(image: Image, path: Path) -> None:
    os.truncate(path, 1024)
    (view,) = views(1024)
    view[:] = b"g" * 1024
    with pytest.raises(OSError, match="ends at or before byte 1024") as fault:
        image.read([view], 512)
    assert fault.value.errno == errno.EIO
    assert bytes(view[512:]) == b"g" * 512
    with pytest.raises(OSError, match="byte 8192"):
        image.read(views(512), 8192)


def test_a_write_does_not_grow_a_truncated_file(image: Image, path: Path) -> None:
    os.truncate(path, 1024)
    for offset in (512, 1024, 8192):  # its last sector and one more, just past the end, and far from it
        with pytest.raises(OSError, match="the image has become shorter") as fault:
            image.write(views(256, 768), offset)
        assert fault.value.errno == errno.EIO
        assert path.stat().st_size == 1024
    assert path.read_bytes() == bytes(range(256)) * 4  # not even in part
    image.write(views(512, 512), 0)  # what is there still is one's own
    assert path.read_bytes() == bytes(1024)


def test_an_open_file_by_its_descriptor(path: Path) -> None:
    """A path below /proc that leads to a file elsewhere is that file's."""
    with path.open("rb") as file:
        Image.open(f"/proc/self/fd/{file.fileno()}", readonly=True).close()


def test_what_it_has_grown_by_is_not_seen(image: Image, path: Path) -> None:
    os.truncate(path, 1 << 20)
    assert image.size == 16384


# ---- flush


@pytest.mark.parametrize(
    ("cache", "flags"),
    [("writeback", 0), ("writethrough", os.RWF_DSYNC), ("none", 0), ("directsync", os.RWF_DSYNC)],
)
def test_a_write_through_the_cache_has_ended_when_it_is_stored(
    path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache, flags: int
) -> None:
    def pwritev(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        seen.append(flags)
        return sum(map(len, views))

    seen: list[int] = []
    monkeypatch.setattr(os, "pwritev", pwritev)
    image = Image.open(path, readonly=False, cache=cache)
    image.write(views(512, 512), 0)
    assert seen == [flags]
    image.close()


def test_a_failed_flush_stays_failed(awkward: Awkward, path: Path) -> None:
    awkward.flush()
    awkward.errno, awkward.fail_at = errno.EIO, 2
    with pytest.raises(OSError):
        awkward.flush()
    for _ in range(3):
        with pytest.raises(OSError, match="earlier flush") as fault:
            awkward.flush()
        assert fault.value.errno == errno.EIO
    assert awkward.calls == 2  # it was not even tried
    awkward.close()
    again = Image.open(path, readonly=False)
    again.flush()
    again.close()


def test_close_twice(image: Image) -> None:
    image.close()
    image.close()


def test_discard_gives_storage_back(path: Path) -> None:
    path.write_bytes(b"x" * (1 << 20))
    image = Image.open(path, readonly=False)
    try:
        assert image.can_discard
        before = path.stat()
        image.discard(8192, 1 << 19)
        assert path.stat().st_size == before.st_size
        assert path.stat().st_blocks <= before.st_blocks - (1 << 19) // 512 + 8
        assert path.read_bytes() == b"x" * 8192 + bytes(1 << 19) + b"x" * ((1 << 20) - (1 << 19) - 8192)
    finally:
        image.close()


def test_a_second_descriptor_keeps_file_and_lock(path: Path, tmp_path: Path) -> None:
    image = Image.open(path, readonly=False)
    number, twin = image.fd, image.dup()
    image.close()
    other = tmp_path / "other.img"
    other.write_bytes(bytes(4096))
    with other.open("rb") as file:
        assert file.fileno() == number, "as it happens to who closes too early"
        twin.write([memoryview(b"x" * 512)], 0)
    assert path.read_bytes()[:512] == b"x" * 512
    with pytest.raises(ImageError, match="uses it"):
        Image.open(path, readonly=False)
    twin.close()
    Image.open(path, readonly=False).close()


def test_each_has_an_open_file_of_its_own(image: Image) -> None:
    """Which the kernel tells of lost pages, each of them."""
    twin = image.dup()
    os.lseek(twin.fd, 512, os.SEEK_SET)
    assert image.can_reopen and os.lseek(image.fd, 0, os.SEEK_CUR) != 512
    flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (image.fd, twin.fd)]
    assert flags[0] == flags[1] and not os.get_inheritable(twin.fd)
    twin.close()


def test_what_cannot_be_opened_anew_is_one_open_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As who was given it open may not open it."""

    def refused(self: Image) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Image, "_reopen", refused)
    image = Image.open(path, readonly=False)
    assert not image.can_reopen
    twin = image.dup()
    os.lseek(twin.fd, 512, os.SEEK_SET)
    assert os.lseek(image.fd, 0, os.SEEK_CUR) == 512
    image.close()
    with pytest.raises(ImageError, match="uses it"):
        Image.open(path, readonly=False)
    twin.close()
    Image.open(path, readonly=False).close()


def test_of_two_flushes_at_once_none_succeeds_alone(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = image.dup()

    def told_to_the_other() -> None:
        twin.flush_errno.value = errno.EIO

    monkeypatch.setattr(image, "_fdatasync", told_to_the_other)
    with pytest.raises(OSError, match="earlier flush"):
        image.flush()
    twin.close()


def test_a_flush_that_failed_has_failed_for_all(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = image.dup()

    def fail() -> None:
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(twin, "_fdatasync", fail)
    for each in (twin, image):
        with pytest.raises(OSError, match=r"bad disk|earlier flush"):
            each.flush()
    twin.close()


def test_which_file_it_is(image: Image, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    assert image.is_at(str(path)) and image.is_at(str(link))
    path.rename(tmp_path / "moved")
    path.write_bytes(bytes(512))
    assert not image.is_at(str(path)) and not image.is_at("/nowhere") and not image.is_at("a\0b")
    assert not Image.none().is_at("")


def test_who_cannot_discard(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Image.open(path, readonly=True)
    assert not reading.can_discard
    with pytest.raises(OSError, match="Bad file descriptor"):
        reading.discard(0, 512)
    reading.close()

    def refuse(image: Image, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(Image, "_discard", refuse)
    image = Image.open(path, readonly=False)
    assert not image.can_discard
    image.close()


def test_asking_for_discard_leaves_alone_what_the_file_has_grown_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "grown.img"
    path.write_bytes(bytes(8192))

    def grows(fd: int) -> os.stat_result:  # between the look at its size and the asking
        found = fstat(fd)
        if path.stat().st_size == 8192:
            with path.open("ab") as file:
                file.write(b"Z" * 8192)
        return found

    fstat = os.fstat
    monkeypatch.setattr(os, "fstat", grows)
    image = Image.open(path, readonly=False)
    assert image.can_discard and image.size in (8192, 16384)
    image.close()
    assert path.read_bytes()[8192:] == b"Z" * 8192
