"""Opening images: what is refused and with which words, and who may share."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fds import open_fds
from xenpvd.backends.blkif.image import Image
from xenpvd.config import Cache
from xenpvd.errors import ImageError

SYSTEM_CALLS = (
    (os, "stat"), (os, "open"), (os, "fstat"), (os, "lseek"), (os, "set_blocking"), (fcntl, "fcntl"),
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 64)
    return path


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file or directory. Check the path"),
        (lambda path: path.mkdir(), "it is a directory. Use a raw image file"),
        (lambda path: os.mkfifo(path), "it is a FIFO"),
        (lambda path: path.symlink_to("/dev/null"), "it is a character device"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to("/proc/self/maps"), "it is the kernel's own, and no disk"),
        (lambda path: path.symlink_to("/sys/devices/system/cpu/online"), "it is the kernel's own"),
        (lambda path: path.touch(), "it is empty. Give it a size"),
        (
            lambda path: path.write_bytes(bytes(513)),
            "is no multiple of 512. A raw image has whole "
            "sectors: if it is of another format, say so (format).",
        ),
    ],
)
@pytest.mark.parametrize("readonly", [True, False])
def test_refused(tmp_path: Path, make, why: str, readonly: bool) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.img"
    make(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ImageError) as refused:
        Image.open(path, readonly=readonly)
    message = str(refused.value)
    assert message.startswith(f"cannot use image {path}: ") and why in message and message.endswith(".")
    assert refused.value.data == {"path": str(path)}
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ImageError, match="it is no path"):
        Image.open(path, readonly=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_no_permission(path: Path) -> None:
    path.chmod(0o444)
    with pytest.raises(ImageError, match="the right to read and write"):
        Image.open(path, readonly=False)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "Permission denied. The daemon's user needs the right to read and write it."),
        (errno.EROFS, "Read-only file system. Use access ro"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_open_fails(path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def fail(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ImageError) as refused:
        Image.open(path, readonly=False)
    assert words in str(refused.value)


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("readonly", [True, False])
def test_every_call_fails_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, readonly: bool, cache: Cache
) -> None:
    """O8: it is refused in words, or does without what it has asked for; and is not held."""
    calls = nth = 0

    def faulty(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **options)

        return call

    for nth in range(1, 100):
        calls, before = 0, len(open_fds())
        with monkeypatch.context() as patch:
            for module, name in SYSTEM_CALLS:
                patch.setattr(module, name, faulty(getattr(module, name)))
            try:
                Image.open(path, readonly=readonly, cache=cache).close()
            except ImageError as refused:
                assert str(refused).startswith(f"cannot use image {path}: Input/output error. Check")
        assert len(open_fds()) == before
        Image.open(path, readonly=False).close()
        if calls < nth:
            break
    assert 5 < nth < 100


# ---- sharing


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [("rw", "rw", False), ("rw", "ro", False), ("ro", "rw", False), ("ro", "ro", True)],
)
def test_one_writer_or_readers(path: Path, first: str, second: str, fits: bool) -> None:
    holder = Image.open(path, readonly=first == "ro")
    try:
        if fits:
            Image.open(path, readonly=True).close()
        else:
            with pytest.raises(ImageError, match=r"another program or guest uses it.* Stop that first"):
                Image.open(path, readonly=second == "ro")
    finally:
        holder.close()
    Image.open(path, readonly=second == "ro").close()  # the lock went with the image


def test_by_another_name_it_is_the_same_image(path: Path, image: Image) -> None:
    other = path.with_name("hard.img")
    other.hardlink_to(path)
    with pytest.raises(ImageError, match="uses it"):
        Image.open(other, readonly=False)


HOLD = """
import sys
from xenpvd.backends.blkif.image import Image
image = Image.open(sys.argv[1], readonly=False)
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin and holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ImageError, match="another program or guest uses it"):
            Image.open(path, readonly=False)
        holder.stdin.close()
        holder.wait(5)
    Image.open(path, readonly=False).close()


def test_a_process_lock_tells_its_owner(path: Path) -> None:
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ImageError, match=f"process {os.getpid()} uses it"):
            Image.open(path, readonly=False)


def test_qemu_s_byte_locks_collide(path: Path) -> None:
    with path.open("r+b") as file:  # QEMU takes read locks of single bytes from 100 on
        lock = struct.pack("@hhqqi0q", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        with pytest.raises(ImageError, match="uses it"):
            Image.open(path, readonly=False)


def test_the_lock_ends_with_its_last_user_though_the_kernel_holds_the_file(path: Path) -> None:
    image = Image.open(path, readonly=False)
    plane = image.dup()
    held = os.dup(image.fd)  # as io_uring does for a moment behind the last request
    image.close()
    with pytest.raises(ImageError, match="uses it"):
        Image.open(path, readonly=False)
    plane.close()
    Image.open(path, readonly=False).close()
    os.close(held)
