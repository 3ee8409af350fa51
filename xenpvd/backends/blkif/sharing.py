"""An open file that several images share, with its lock: what the kernel does for open files of their own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from struct import Struct

#: struct flock: l_type, l_whence, l_start, l_len (0: to the end, however far), l_pid (0 for OFD locks)
FLOCK = Struct("@hhqqi0q")


class OpenFile:
    """Copies of a descriptor are one open file, and an OFD lock (fcntl(2)) is that file's: it keeps others
    away, but none of those who share it. So they are counted: one writer, or any number of readers. The last
    one to leave gives up the lock. For any thread.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._users = 0
        self._written = False

    @property
    def in_use(self) -> bool:
        return self._users > 0

    def enter(self, readonly: bool) -> bool:
        """False if it is in use so that this cannot be; else lock it, and :meth:`leave` in the end."""
        with self._mutex:
            if self._users and (self._written or not readonly):
                return False
            self._users += 1
            self._written = not readonly
            return True

    def enter_again(self) -> None:
        """By who is in already."""
        with self._mutex:
            self._users += 1

    def leave(self, fd: int) -> None:
        """``fd`` is any descriptor of it."""
        with self._mutex:  # who enters now finds it unlocked, and locks it anew
            self._users -= 1
            if not self._users:
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
