"""Past the host's page cache (O_DIRECT), and what storage asks of a request then."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from struct import Struct

from xenpvd.abi.page import PAGE_SIZE

# linux/stat.h, linux/fcntl.h
_STATX_DIOALIGN = 0x2000
_AT_EMPTY_PATH = 0x1000
_MASK = Struct("@I")
_DIOALIGN = Struct("@II")  # stx_dio_mem_align, stx_dio_offset_align
_DIOALIGN_AT = 0x98
_libc = ctypes.CDLL(None, use_errno=True)


def bypass_page_cache(fd: int) -> int:
    """From now on, by every descriptor of this open file. Returns the bytes to whose multiples offset, length
    and memory of a request must be aligned. Raises ``OSError``, EINVAL if the file system has no such thing.
    """
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    told = _told_alignment(fd)
    alignment = _found_alignment(fd) if told is None else told
    if not alignment:  # of this file: it is encrypted, say
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return alignment


def _told_alignment(fd: int) -> int | None:
    """What statx() tells, 0 if it cannot be; None before Linux 6.1, or if the file system does not tell."""
    found = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, found):
        return None
    if not _MASK.unpack_from(found)[0] & _STATX_DIOALIGN:
        return None
    memory, offset = _DIOALIGN.unpack_from(found, _DIOALIGN_AT)
    return max(int(memory), int(offset))


def _found_alignment(fd: int) -> int:
    """By reading: the smallest that is taken, 0 if none is."""
    with mmap.mmap(-1, 2 * PAGE_SIZE) as buffer, memoryview(buffer) as view:
        for size in (512, 1024, 2048, PAGE_SIZE):
            with view[size : 2 * size] as aligned:  # so, and no better
                try:
                    os.preadv(fd, [aligned], 0)
                except OSError as fault:
                    if fault.errno != errno.EINVAL:
                        raise
                else:
                    return size
    return 0
