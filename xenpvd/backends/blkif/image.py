"""A raw disk image: a file or block device that is opened once, locked, read, written and flushed.

An image outlives the VM: a guest that reboots finds the same open file. A file that is renamed over meanwhile
does not matter; one that has grown is used with the size it had when opened, and what one has lost is an
error and never zeroes.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any, Self, TypeVar

from xenpvd.backends.blkif.opening import (
    bypass,
    check_descriptor,
    check_writable,
    lock_image,
    open_file,
    reasons,
    refusal,
)
from xenpvd.backends.blkif.sharing import OpenFile
from xenpvd.config import DIRECT, SYNC, Cache
from xenpvd.errors import BadConfig, ImageError
from xenpvd.paths import BY_DESCRIPTOR
from xenpvd.views import EngineInfo

SECTOR_SIZE = 512

_T = TypeVar("_T")

# linux/falloc.h, linux/fs.h; Python has no fallocate() with flags
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_BLKDISCARD = 0x1277
_RANGE = Struct("@QQ")
_NOWHERE = 1 << 42
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Image:
    """An open raw image. ``size`` is bytes, as found by :meth:`open` or :meth:`resize`; ``can_discard`` is
    whether its storage can be given back.

    ``read``, ``write`` and ``flush`` are for one thread at a time and raise ``OSError``, which is the host's
    answer and becomes an error of that one request.
    """

    def __init__(self, fd: int, path: str, size: int, *, readonly: bool) -> None:
        self.path = path
        self.size = size
        self.readonly = readonly
        #: for a plane that does the system calls itself, with :attr:`flush_errno`
        self.fd = fd
        self.is_block = fd >= 0 and stat.S_ISBLK(os.fstat(fd).st_mode)
        #: of the first flush that has failed; 0: none has
        self.flush_errno = ctypes.c_int32(0)
        self.can_discard = False
        #: whether there can be open files of its own for each who uses it
        self.can_reopen = True
        #: its lock's; None: it has none
        self._file: OpenFile | None = None
        #: another descriptor of that file, of a twin that has an open file of its own
        self._locked_fd = -1
        #: bytes to whose multiples requests must be aligned
        self.alignment = 1
        #: a write has ended when it is on stable storage
        self.sync = False

    @classmethod
    def none(cls) -> Image:
        """An empty tray: no byte can be read from it."""
        return cls(-1, "", 0, readonly=True)

    @classmethod
    def open(
        cls, path: str | Path, *, readonly: bool, cache: Cache = "writeback", lock: bool = True
    ) -> Image:
        """Open and lock ``path``; ``cache`` is as a definition has it. Raises :class:`ImageError`.

        The lock is an open-file-description lock of the whole file, for writing if the image is: one writer
        or any number of readers, in this process and others (QEMU's image locks collide with it, too).
        Without ``lock`` it is only looked at whether the lock could be had.
        A block device that the host has mounted is refused for writing.
        """
        path = str(path)
        try:
            fd = open_file(path, readonly)
        except OSError as fault:
            raise refusal(path, *reasons(fault, readonly)) from None
        try:
            lock_image(fd, path, readonly, look=not lock)
            image = cls(fd, path, 0, readonly=readonly)
            if lock:
                image._file = OpenFile()
                image._file.enter(readonly)
            image._measure(cache)
            return image
        except OSError as fault:
            os.close(fd)
            raise refusal(path, *reasons(fault, readonly)) from None
        except ImageError:
            os.close(fd)
            raise

    @classmethod
    def shared(
        cls,
        fd: int,
        file: OpenFile,
        name: str,
        *,
        readonly: bool,
        cache: Cache = "writeback",
        lock: bool = True,
    ) -> Image:
        """What somebody else has opened and may still have: ``fd``, which is the image's from now on, and is
        closed if this raises :class:`ImageError`, is a descriptor of ``file``.

        As :meth:`open`, but that the host has not mounted a block device is for who opens it to see to
        (O_EXCL). Without ``lock`` it is only looked at whether the lock could be had. There is no ``cache``
        past the page cache: O_DIRECT would be the sender's as well.
        """
        image = None
        try:
            check_descriptor(fd, name)
            if cache in DIRECT:
                why = f'cache "{cache}" (O_DIRECT) would count for its sender, too'
                raise refusal(name, why, 'Use cache "writeback", or a path.')
            if not readonly:
                check_writable(fd, name)
            if lock and not file.enter(readonly):
                raise refusal(name, "another disk uses it", "Remove that, or let all have access ro.")
            image = cls(fd, name, 0, readonly=readonly)
            image._file = file if lock else None
            lock_image(fd, name, readonly, look=not lock)
            image._measure(cache)
            return image
        except (OSError, ImageError) as fault:
            if image is not None:
                image.close()
            else:
                os.close(fd)
            if isinstance(fault, ImageError):
                raise
            raise refusal(name, *reasons(fault, readonly)) from None

    def _measure(self, cache: Cache) -> None:
        """All that is left to do once it is open and locked."""
        if cache in DIRECT:
            self.alignment = bypass(self.fd, self.path, cache)
        self.sync = cache in SYNC
        os.set_blocking(self.fd, True)  # that was for the opening: io_uring would give EAGAIN for a device
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        if self.size == 0:
            what = "FILE" if self.path.startswith(BY_DESCRIPTOR) else self.path
            raise refusal(self.path, "it is empty", f"Give it a size: truncate -s 1G {what}")
        if self.size % SECTOR_SIZE:
            why = f"its size, {self.size} bytes, is no multiple of {SECTOR_SIZE}"
            what = "A raw image has whole sectors: if it is of another format, say so (format)."
            raise refusal(self.path, why, what)
        self.can_discard = self._probe_discard()
        try:
            os.close(self._reopen())
        except OSError:
            self.can_reopen = False

    def dup(self) -> Self:
        """The same image, with a file descriptor of its own that its user closes: who has a request on
        storage that hangs must not find another file behind the number later. It stays locked until all are
        closed, and a flush that fails has failed for all. Raises ``OSError``.

        It is an open file of its own where it can be (:attr:`can_reopen`): the kernel tells each of them once
        that pages were lost. Of two flushes of the same one, only one would be told.
        """
        twin = copy.copy(self)
        if self.fd >= 0:
            twin._locked_fd = os.dup(self.fd if self._locked_fd < 0 else self._locked_fd)
            try:
                twin.fd = self._reopen()
            except OSError:
                twin.fd, twin._locked_fd = twin._locked_fd, -1
            if self._file is not None:
                self._file.enter_again()
        return twin

    def _reopen(self) -> int:
        """Whoever has opened it may have been allowed more than we are. Raises ``OSError``."""
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_DIRECT)
        return os.open(f"/proc/self/fd/{self.fd}", flags | os.O_CLOEXEC)

    def is_at(self, path: str) -> bool:
        """Whether it is the file or device that ``path`` names now."""
        try:
            return self.fd >= 0 and os.path.samestat(os.stat(path), os.fstat(self.fd))  # noqa: PTH116
        except (OSError, ValueError):
            return False

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from byte ``offset`` on. A file that has become too short is EIO, not zeroes."""
        while views:
            done = _repeat(self._preadv, views, offset)
            if done == 0:
                raise OSError(errno.EIO, f"the image ends at or before byte {offset}")
            offset += done
            views = _rest(views, done)

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to byte ``offset`` on. A file that has become too short is EIO, and stays so."""
        if not self.is_block and os.fstat(self.fd).st_size < offset + sum(map(len, views)):
            raise OSError(errno.EIO, "the image has become shorter")
        while views:
            done = _repeat(self._pwritev, views, offset)
            if done == 0:
                raise OSError(errno.EIO, f"nothing could be written at byte {offset}")
            offset += done
            views = _rest(views, done)

    def flush(self) -> None:
        """Have everything written so far on stable storage.

        A flush that failed stays failed until the image is opened anew: the kernel reports lost pages once
        and then forgets, so that a later fdatasync would succeed without them.
        """
        self._check_flushes()
        try:
            _repeat(self._fdatasync)
        except OSError as fault:
            self.flush_errno.value = fault.errno or errno.EIO
            raise
        self._check_flushes()  # one beside this one may have been told, or an engine have died meanwhile

    def _check_flushes(self) -> None:
        if number := self.flush_errno.value:
            raise OSError(number, f"{os.strerror(number)}, at an earlier flush; writes may be lost")

    def discard(self, offset: int, length: int) -> None:
        """Let go of the storage of these bytes; they read as zeroes, or as before, from now on."""
        _repeat(self._discard, offset, length)

    def _probe_discard(self) -> bool:
        """Asked by discarding what is far beyond the end: nothing, even if the file is just growing."""
        if self.readonly:
            return False
        if self.is_block:
            return _discard_max(self.fd) > 0
        try:
            self._discard(max(os.lseek(self.fd, 0, os.SEEK_END), _NOWHERE), 4096)
        except OSError:
            return False
        return True

    def flush_now(self) -> None:
        """:meth:`flush`, by who is no guest. Raises :class:`ImageError`."""
        try:
            self.flush()
        except OSError as fault:
            why = fault.strerror or str(fault)
            raise ImageError(f"cannot flush {self.path}: {why}. See the host's log.", self.path) from None

    def plan_resize(self, size: int | None, unit: int, *, shrink: bool = False) -> int:
        """The size that :meth:`resize` would give it: ``size`` bytes, or what it has become. Blocking.

        Raises :class:`ImageError` if that cannot be (it must be a multiple of ``unit``), and
        :class:`BadConfig` for less than it has, unless that is meant (``shrink``): what is beyond is lost.
        """
        found = self._look_at_size()
        wanted = found if size is None else size
        if wanted % unit or not wanted:
            why = f"{wanted} bytes are no multiple of {unit}"
            raise refusal_of_size(self.path, why, "Choose another size")
        if size is not None and (had := max(found, self.size)) > size and not shrink:
            raise BadConfig(
                f"cannot resize image {self.path} to {size} bytes: it has {had}, and what is beyond would "
                "be lost. Allow that with shrink, once the guest has given it up."
            )
        if wanted != found and (fixed := self._why_fixed()):
            raise refusal_of_size(self.path, *fixed)
        return wanted

    def _look_at_size(self) -> int:
        """The bytes that it has now. Raises :class:`ImageError`."""
        if self.fd < 0:
            raise ImageError("cannot resize it: there is no image in it. Put one in with drive.swap.", "")
        try:
            return os.lseek(self.fd, 0, os.SEEK_END)
        except OSError as fault:
            raise refusal_of_size(self.path, *reasons(fault, self.readonly)) from None

    def _why_fixed(self) -> tuple[str, str] | None:
        """Why nobody here can give it another size, and what to do."""
        if not self.is_block and not self.readonly:
            return None
        kind = "a block device" if self.is_block else "read-only"
        return f"it is {kind}", "Resize it on the host, and give no size"

    def resize(self, size: int) -> None:
        """To what :meth:`plan_resize` has told. Raises :class:`ImageError`; nothing has changed then."""
        try:
            if size != os.lseek(self.fd, 0, os.SEEK_END):
                os.ftruncate(self.fd, size)
        except OSError as fault:
            raise refusal_of_size(self.path, *reasons(fault, self.readonly)) from None
        self.size = size

    def close(self, unlock: bool = True) -> None:
        """Close it; the last one of it gives up the lock, as the kernel holds on to a file for a moment after
        the last request by io_uring. Not if some may still be under way (``unlock``): then the kernel does,
        behind them. Idempotent."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            locked, self._locked_fd = self._locked_fd, -1
            if self._file is not None and unlock:
                self._file.leave(fd if locked < 0 else locked)
            os.close(fd)
            if locked >= 0:
                os.close(locked)

    # What other images than files have to say; engine_image.py.

    def serve_queue(self) -> int | None:
        """The address of the struct vhost by which a native plane does its I/O, and looks after it from now
        on; None: by system calls."""
        return None

    def watch(
        self, on_trouble: Callable[[str], None], on_fault: Callable[[str, BaseException], None]
    ) -> None:
        """A life of a guest begins with it: these get, in the loop, what happens while nobody asks."""

    def give_up(self) -> None:
        """Answer all that is under way with an error, if it can be made sure that none is done later."""

    async def ended(self) -> None:
        """Wait until somebody else can open it, after :meth:`close`."""

    def describe(self) -> EngineInfo | None:
        """What serves it, if that is another process."""
        return None

    # The system calls, apart so that a test can fail the Nth of them.

    def _preadv(self, views: list[memoryview], offset: int) -> int:
        return os.preadv(self.fd, views, offset)

    def _pwritev(self, views: list[memoryview], offset: int) -> int:
        return os.pwritev(self.fd, views, offset, os.RWF_DSYNC if self.sync else 0)

    def _fdatasync(self) -> None:
        if self.fd >= 0:
            os.fdatasync(self.fd)

    def _discard(self, offset: int, length: int) -> None:
        if self.is_block:
            fcntl.ioctl(self.fd, _BLKDISCARD, _RANGE.pack(offset, length))
        elif _libc.fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _repeat(call: Callable[..., _T], *args: Any) -> _T:
    """Until it is done or has failed. EINTR and EAGAIN are neither, and Python takes care of the first only,
    and not in every call."""
    while True:
        with contextlib.suppress(InterruptedError, BlockingIOError):
            return call(*args)


def _discard_max(fd: int) -> int:
    """Bytes that one discard may have, 0 if the device has none; of a partition, its disk's."""
    device = os.fstat(fd).st_rdev
    place = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (place / "queue", place / ".." / "queue"):
        with contextlib.suppress(OSError, ValueError):
            return int((queue / "discard_max_bytes").read_text())
    return 0


def _rest(views: list[memoryview], done: int) -> list[memoryview]:
    """What is left of ``views`` after ``done`` bytes."""
    for index, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[index + 1 :]]
        done -= len(view)
    return []


def refusal_of_size(path: str, why: str, what: str) -> ImageError:
    return ImageError(f"cannot resize image {path}: {why}. {what.rstrip('.')}.", path)
