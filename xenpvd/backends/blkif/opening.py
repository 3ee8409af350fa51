"""Whether a file can be opened as an image: what it must be, its lock, and what is told if it cannot."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from xenpvd.backends.blkif.direct import bypass_page_cache
from xenpvd.backends.blkif.sharing import FLOCK
from xenpvd.config import SYNC, Cache
from xenpvd.errors import ImageError

#: Where the kernel shows itself
_KERNELS = ("/proc/", "/sys/")

#: How a descriptor may not have been opened: O_APPEND writes to the end, wherever it shall, and O_DIRECT has
#: rules of its own for where and how much
_UNFIT = {
    os.O_PATH: "O_PATH", os.O_WRONLY: "O_WRONLY", os.O_APPEND: "O_APPEND", os.O_DIRECT: "O_DIRECT",
}  # fmt: skip
#: linux/fcntl.h; Python has a name for one of them
_F_SEAL_WRITE, _F_SEAL_FUTURE_WRITE = 0x8, 0x10


def open_file(path: str, readonly: bool) -> int:
    """A descriptor of what can be an image, not locked yet. Raises :class:`ImageError`, ``OSError``."""
    try:
        # looked at before it is opened: opening some devices does something, opening a FIFO waits
        _check_kind(os.stat(path), path)  # noqa: PTH116
        if os.path.realpath(path).startswith(_KERNELS):
            raise _kernels(path)
        flags = os.O_RDONLY if readonly else os.O_RDWR
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError:  # a NUL or a lone surrogate
        raise refusal(repr(path), "it is no path", "Check the path.") from None
    try:
        found = os.fstat(fd)
        _check_kind(found, path)
        return _claim(fd, path) if stat.S_ISBLK(found.st_mode) and not readonly else fd
    except BaseException:
        os.close(fd)
        raise


def _check_kind(found: os.stat_result, path: str) -> None:
    mode = found.st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISCHR, "a character device"),
             (stat.S_ISSOCK, "a socket"))  # fmt: skip
    kind = next((name for test, name in kinds if test(mode)), "neither of them")
    raise refusal(path, f"it is {kind}", "Use a raw image file or a block device.")


def check_descriptor(fd: int, name: str) -> os.stat_result:
    """What ``fd`` is. Raises :class:`ImageError` if it can be no image, however it is used."""
    found, flags = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
    _check_kind(found, name)
    for flag, how in _UNFIT.items():
        if flags & flag:
            raise refusal(name, f"it was opened with {how}", "Open it for reading, or reading and writing.")
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/self/fd/{fd}").startswith(_KERNELS):  # noqa: PTH115
            raise _kernels(name)
    return found


def is_writable(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def check_writable(fd: int, name: str) -> None:
    if not is_writable(fd):
        raise refusal(name, "it was opened read-only", "Open it for writing as well, or use access ro.")
    with contextlib.suppress(OSError):  # only what lies in memory has seals (memfd_create(2))
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & (_F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE):
            raise refusal(name, "it is sealed against writing", "Use access ro.")


def _claim(fd: int, path: str) -> int:
    """Reopen a block device so that the host cannot mount it, nor has (O_EXCL; the lock does not tell)."""
    try:
        claimed = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC | os.O_EXCL)
    except OSError as fault:
        if fault.errno == errno.EBUSY:
            what = "Unmount it, or give it to the guest with access ro."
            raise refusal(path, "the host itself uses this device", what) from None
        raise
    os.close(fd)
    return claimed


def bypass(fd: int, path: str, cache: Cache) -> int:
    try:
        return bypass_page_cache(fd)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        why = f'its file system cannot do without the page cache (cache "{cache}", O_DIRECT)'
        other = "writethrough" if cache in SYNC else "writeback"
        raise refusal(path, why, f'Use cache "{other}", or put it on another file system.') from None


def lock_image(fd: int, path: str, readonly: bool, look: bool = False) -> None:
    kind = fcntl.F_RDLCK if readonly else fcntl.F_WRLCK
    lock = FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)
    try:
        if not look:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        elif FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, lock))[0] != fcntl.F_UNLCK:
            raise BlockingIOError(errno.EAGAIN, "it is locked")
    except OSError as fault:
        if fault.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        holder = "another program or guest"  # an OFD lock does not tell its owner
        with contextlib.suppress(OSError):
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, lock)
            if (pid := FLOCK.unpack(answer)[4]) > 0:
                holder = f"process {pid}"
        use = "uses it for writing" if readonly else "uses it"
        what = "Stop that first." if readonly else "Stop that first, or let all who share it have access ro."
        raise refusal(path, f"{holder} {use}", what) from None


def reasons(fault: OSError, readonly: bool) -> tuple[str, str]:
    """A host's refusal as (why, what to do)."""
    why = fault.strerror or str(fault)
    if fault.errno in (errno.ENOENT, errno.ENOTDIR):
        return why, "Check the path, or create it: truncate -s 1G FILE."
    if fault.errno in (errno.EACCES, errno.EPERM):
        return why, f"The daemon's user needs the right to {'read' if readonly else 'read and write'} it."
    if fault.errno == errno.EROFS:
        return why, "Use access ro, or mount that file system for writing."
    if fault.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
        return f"it cannot be locked ({why})", "Use a file system that knows locks."
    return why, "Check the path and the host's log."


def refusal(path: str, why: str, what: str) -> ImageError:
    return ImageError(f"cannot use image {path}: {why}. {what.rstrip('.')}.", path)


def _kernels(path: str) -> ImageError:
    return refusal(path, "it is the kernel's own, and no disk", "Use a raw image file.")
