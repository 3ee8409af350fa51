"""A host, or a guest, that steps in at a data plane's calls: the Nth of a name fails, or a test acts at it.

:class:`NativeFaults` is for the native plane that faults.c makes, :class:`PythonFaults` for the plain-Python
one. Both know the calls by the names that C has for them; "nothing", "sync", "fence", "copy" and "swap" (the
latter has none) are those of faults.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.page import REGION, FakePage
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.backends.blkif import build, image

EVERY = 2**32 - 1
SOURCE = Path(__file__).with_name("faults.c")

_Then = ctypes.CFUNCTYPE(None)


def build_library(folder: Path) -> Path:
    target = folder / "faults.so"
    subprocess.run(["cc", *build.FLAGS, "-I", build.SOURCES, "-o", target, SOURCE], check=True)
    return target


class NativeFaults(ctypes.Structure):
    """struct faults of faults.c."""

    _fields_ = (
        ("_call", ctypes.c_char * 32),
        ("calls", ctypes.c_uint32),
        ("fail_at", ctypes.c_uint32),
        ("number", ctypes.c_int32),
        ("most", ctypes.c_uint32),
        ("synced", ctypes.c_uint32),
        ("discard_us", ctypes.c_uint32),
        ("_then", _Then),
        ("_ram", ctypes.c_uint64),
        ("_ram_size", ctypes.c_uint64),
    )

    @classmethod
    def of(cls, library: ctypes.CDLL) -> NativeFaults:
        faults = cls.in_dll(library, "faults")
        ctypes.memset(ctypes.addressof(faults), 0, ctypes.sizeof(faults))
        _, pages, faults._ram, _ = REGION
        faults._ram_size = pages * PAGE_SIZE
        return faults

    def fail(self, call: str, nth: int, number: int) -> None:
        """The ``nth`` one from now on, with errno ``number``; 0: none, but they are counted in ``calls``."""
        self._call, self._then = call.encode(), _Then()
        self.calls, self.fail_at, self.number = 0, nth, number

    def step_in(self, call: str, then: Callable[[], object], nth: int = EVERY) -> None:
        """``then()`` is called at the ``nth`` one, in the plane's thread."""
        self._call, self._then = call.encode(), _Then(then)
        self.calls, self.fail_at, self.number = 0, nth, 0


class PythonFaults:
    """The same for the calls in the thread of a :class:`tests.fakes.disk.Disk`. What Python repeats by itself
    (PEP 475) is not interrupted; and what Linux never says does not happen: poll(), fstat() and EAGAIN."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.fail_at = self.number = self.most = self.synced = 0
        self._call = ""
        self._then: Callable[[], object] = lambda: None
        libc = image._libc.fallocate

        def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
            if self._fails("fallocate"):
                ctypes.set_errno(self.number)
                return -1
            return int(libc(fd, mode, offset, length))

        def discard(fd: int, request: int, wanted: bytes) -> None:
            """BLKDISCARD of a file that plays a block device."""
            self._check("ioctl")
            assert not libc(fd, image._PUNCH_HOLE | image._KEEP_SIZE, *image._RANGE.unpack(wanted))

        def preadv(fd: int, views: list[memoryview], offset: int) -> int:
            if self._fails("nothing"):
                return 0
            self._check("preadv")
            return real_preadv(fd, self._some(views), offset)

        def pwritev(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
            if self._fails("nothing"):
                return 0
            self._check("pwritev2")
            self.synced += flags == os.RWF_DSYNC
            return real_pwritev(fd, self._some(views), offset, flags)

        def fdatasync(fd: int) -> None:
            self._check("sync")
            self._check("fdatasync")
            real_fdatasync(fd)

        def before(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def checked(*args: Any, **options: Any) -> Any:
                self._check(call)
                return real(*args, **options)

            return checked

        def after(call: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def checked(*args: Any) -> Any:
                result = real(*args)
                self._check(call)
                return result

            return checked

        class Poll:
            def __init__(self) -> None:
                poll = real_poll()
                self.register, self.poll = poll.register, before("poll", poll.poll)

        real_preadv, real_pwritev, real_fdatasync = os.preadv, os.pwritev, os.fdatasync
        real_poll = select.poll
        for where, name, fake in (
            (image._libc, "fallocate", fallocate),
            (fcntl, "ioctl", discard),
            (os, "preadv", preadv),
            (os, "pwritev", pwritev),
            (os, "fdatasync", fdatasync),
            (os, "fstat", before("fstat", os.fstat)),
            (os, "eventfd_read", before("read", os.eventfd_read)),
            (os, "eventfd_write", before("write", os.eventfd_write)),
            (select, "poll", Poll),
            (FakePage, "fence", after("fence", FakePage.fence)),
            (FakePage, "read", after("copy", FakePage.read)),
        ):
            monkeypatch.setattr(where, name, fake)

    def fail(self, call: str, nth: int, number: int) -> None:
        self._call, self._then = call, lambda: None
        self.calls, self.fail_at, self.number = 0, nth, number

    def step_in(self, call: str, then: Callable[[], object], nth: int = EVERY) -> None:
        self._call, self._then = call, then
        self.calls, self.fail_at, self.number = 0, nth, 0

    def _fails(self, call: str) -> bool:
        if call != self._call or threading.current_thread().name != "blkif":
            return False
        self.calls += 1
        if self.fail_at not in (self.calls, EVERY):
            return False
        self._then()
        return self.number != 0

    def _check(self, call: str) -> None:
        if self._fails(call):
            by_itself = self.number == errno.EINTR and call != "ioctl"
            never = self.number == errno.EAGAIN and call in ("poll", "fstat")
            if not by_itself and not never:
                raise OSError(self.number, os.strerror(self.number))

    def _some(self, views: list[memoryview]) -> list[memoryview]:
        return [views[0][: self.most]] if self.most else views


#: either
Faults = NativeFaults | PythonFaults
