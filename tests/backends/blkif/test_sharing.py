"""Images over an open file that somebody else has opened: who may share it, its lock, and what is refused."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.sharing import OpenFile
from xenpvd.errors import ImageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def shared(fd: int, file: OpenFile | None = None, *, readonly: bool = False, lock: bool = True) -> Image:
    """As one does that keeps its own descriptor."""
    return Image.shared(os.dup(fd), file or OpenFile(), "fd:root", readonly=readonly, lock=lock)


def lock_is_free(path: Path) -> bool:
    try:
        Image.open(path, readonly=False).close()
    except ImageError:
        return False
    return True


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_it_reads_and_writes(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    image = shared(fd)
    os.close(fd)
    assert (image.path, image.size, image.readonly) == ("fd:root", 16384, False)
    image.write([memoryview(b"x" * 512)], 512)
    image.close()
    assert path.read_bytes()[511:514] == b"\xffxx"


@pytest.mark.parametrize("readonly", [True, False])
def test_it_is_locked_as_long_as_it_is_used_and_no_longer(path: Path, readonly: bool) -> None:
    fd = os.open(path, os.O_RDWR)
    image = shared(fd, readonly=readonly)
    twin = image.dup()
    image.close()
    assert not lock_is_free(path), "a plane that hangs may still write"
    twin.close()
    assert lock_is_free(path), "though it is still open here"
    os.close(fd)


def test_another_open_file_excludes_it(path: Path) -> None:
    other = Image.open(path, readonly=True)
    fd = os.open(path, os.O_RDWR)
    before = fds()
    for lock in (True, False):
        with pytest.raises(ImageError, match="cannot use image fd:root: another program or guest uses it"):
            shared(fd, lock=lock)
        shared(fd, readonly=True, lock=lock).close()
    assert fds() == before
    other.close()
    os.close(fd)


def test_one_writer_or_any_number_of_readers(path: Path) -> None:
    """The kernel would let all of them: they have one lock."""
    fd, file = os.open(path, os.O_RDWR), OpenFile()
    first, second = shared(fd, file, readonly=True), shared(fd, file, readonly=True)
    with pytest.raises(ImageError, match=r"fd:root: another disk uses it\. Remove that"):
        shared(fd, file)
    second.close()
    assert not lock_is_free(path)
    first.close()
    writer = shared(fd, file)
    for readonly in (True, False):
        with pytest.raises(ImageError, match="another disk uses it"):
            shared(fd, file, readonly=readonly)
    writer.close()
    writer.close()
    shared(fd, file).close()
    os.close(fd)


def test_a_look_changes_nothing(path: Path) -> None:
    fd, file = os.open(path, os.O_RDWR), OpenFile()
    look = shared(fd, file, lock=False)
    assert lock_is_free(path)
    user = shared(fd, file)
    look.close()
    assert not lock_is_free(path), "it is the user's"
    shared(fd, file, lock=False).close()
    assert not lock_is_free(path)
    user.close()
    os.close(fd)


def test_a_copy_in_another_process_is_the_same_open_file(path: Path) -> None:
    """Who has sent it may go on to use it; its lock is ours all the same, as others see it."""
    fd = os.open(path, os.O_RDWR)
    image = shared(fd)
    code = f"import os; os.pwrite({fd}, b'sent', 0)"
    subprocess.run([sys.executable, "-c", code], pass_fds=[fd], check=True)
    view = memoryview(bytearray(512))
    image.read([view], 0)
    assert bytes(view[:4]) == b"sent" and not lock_is_free(path)
    image.close()
    os.close(fd)


def sealed(seals: int) -> int:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def a_socket() -> int:
    return socket.socket(socket.AF_UNIX).detach()


def emptied(path: Path, size: int) -> int:
    os.truncate(path, size)
    return os.open(path, os.O_RDWR)


UNFIT: dict[str, tuple[Callable[[Path], int], str]] = {
    "directory": (lambda path: os.open(path.parent, os.O_RDONLY), "it is a directory"),
    "pipe": (lambda path: os.pipe2(os.O_CLOEXEC)[0], "it is a FIFO"),
    "socket": (lambda path: a_socket(), "it is a socket"),
    "null": (lambda path: os.open("/dev/null", os.O_RDWR), "it is a character device"),
    "eventfd": (lambda path: os.eventfd(0), "it is neither of them"),
    "path": (lambda path: os.open(path, os.O_PATH), "it was opened with O_PATH. Open it for reading"),
    "write only": (lambda path: os.open(path, os.O_WRONLY), "it was opened with O_WRONLY"),
    "append": (lambda path: os.open(path, os.O_RDWR | os.O_APPEND), "it was opened with O_APPEND"),
    "proc": (lambda path: os.open("/proc/self/maps", os.O_RDONLY), "it is the kernel's own"),
    "empty": (lambda path: emptied(path, 0), "it is empty. Give it a size: truncate -s 1G FILE"),
    "odd": (lambda path: emptied(path, 700), "its size, 700 bytes, is no multiple of 512"),
}  # fmt: skip
NOT_FOR_WRITING: dict[str, tuple[Callable[[Path], int], str]] = {
    "read only": (
        lambda path: os.open(path, os.O_RDONLY),
        "it was opened read-only. Open it for writing as well, or use access ro.",
    ),
    "sealed": (lambda path: sealed(fcntl.F_SEAL_WRITE), "it is sealed against writing. Use access ro."),
    "sealed from now on": (lambda path: sealed(0x10), "it is sealed against writing"),
}


@pytest.mark.parametrize(("make", "why"), UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("readonly", [True, False])
def test_what_can_be_no_image(path: Path, make: Callable[[Path], int], why: str, readonly: bool) -> None:
    refused(make(path), why, readonly)


@pytest.mark.parametrize(("make", "why"), NOT_FOR_WRITING.values(), ids=NOT_FOR_WRITING)
def test_what_can_be_read_only(path: Path, make: Callable[[Path], int], why: str) -> None:
    fd = make(path)
    shared(fd, readonly=True).close()
    refused(fd, why, readonly=False)


def refused(fd: int, why: str, readonly: bool) -> None:
    before = fds()
    with pytest.raises(ImageError) as fault:
        shared(fd, readonly=readonly)
    assert why in str(fault.value) and str(fault.value).startswith("cannot use image fd:root: ")
    assert fds() == before
    os.close(fd)


def test_a_disk_in_memory(path: Path) -> None:
    """It may not be made smaller under the guest; and what is cut off all the same is an error."""
    fd = sealed(fcntl.F_SEAL_SHRINK)
    image = shared(fd)
    image.write([memoryview(b"x" * 512)], 0)
    image.flush()
    image.close()
    os.close(fd)


def test_cut_off_by_who_has_it_as_well(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    image = shared(fd)
    os.ftruncate(fd, 512)
    with pytest.raises(OSError, match="ends at or before"):
        image.read([memoryview(bytearray(512))], 4096)
    with pytest.raises(OSError, match="has become shorter"):
        image.write([memoryview(bytearray(512))], 4096)
    with contextlib.closing(image):
        os.close(fd)


def test_beyond_the_daemons_own_rights(path: Path) -> None:
    """What this is for: nothing of it opens the file anew."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody who may not open it")
    fd = os.open(path, os.O_RDWR)
    path.chmod(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(ImageError, match="Permission denied"):
            Image.open(path, readonly=True)
        image = shared(fd)
        image.write([memoryview(b"x" * 512)], 0)
        image.dup().close()
        image.close()
    finally:
        os.seteuid(0)
        os.close(fd)
    assert path.read_bytes()[:2] == b"xx"
