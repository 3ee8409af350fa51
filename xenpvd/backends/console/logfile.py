"""A console's log file: it follows the recording, and the guest never waits for it.

What cannot be written (a full disk, a share that hangs) is tried again as long as it is kept in the
recording; what has gone from there meanwhile is counted, and the file says how much.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import localtime, strftime

from xenpvd.backends.console.history import History
from xenpvd.backends.console.safe import SafeText
from xenpvd.errors import HostError
from xenpvd.events import Publish
from xenpvd.tasks import Tasks, in_thread

log = logging.getLogger(__name__)

CHUNK = 1 << 16
#: Seconds until what could not be written is tried again
RETRY = 1.0
#: Seconds that the last bytes get when the daemon ends
GRACE = 2.0


@dataclass(frozen=True, slots=True)
class LogTerms:
    """How a console is logged: ``keep`` older files of ``size`` bytes each are kept beside ``path``."""

    path: Path
    size: int
    keep: int
    timestamps: bool
    safe: bool


class LogFile:
    """Follows ``history`` from offset ``since`` on, from :meth:`open` to :meth:`close`.

    Event ``console.log`` {console, path, error, lost}: writing, or making a new file, began to fail
    (``error`` says why), or goes on well (null); ``lost`` bytes are missing, as something failed or as the
    guest was faster.
    """

    def __init__(
        self, history: History, name: str, terms: LogTerms, publish: Publish, now: Callable[[], float]
    ) -> None:
        self.terms = terms
        self._history = history
        self._name = name
        self._publish = publish
        self._now = now
        self._tasks = Tasks()
        self._offset = history.end
        self._piece = history.end  # where what is in _rest begins
        self._safe = SafeText()
        self._rest = b""
        self._line_begins = True
        self._lost = 0  # that was not told yet
        #: bytes that are missing in the file
        self.lost = 0
        self._error: str | None = None
        self._reopen = False
        self._ending = False
        self._fd = -1
        self._unrotated: str | None = None  # why it grows beyond its size, if it must
        self._settled = asyncio.Event()

    async def open(self, before: LogFile | None = None) -> None:
        """Begin, in place of ``before`` with what that has not written. Raises :class:`HostError`; ``before``
        goes on then."""
        try:
            self._follow_on(await in_thread(partial(_opened, self.terms.path), os.close))
        except OSError as fault:
            raise HostError(
                f"cannot log console {self._name} to {self.terms.path}: {fault.strerror}. Check the path "
                "and the rights of the daemon's user.",
                fault.errno or 0,
                str(self.terms.path),
            ) from None
        if before is not None:
            await before.close()
            self._offset = before._piece if before._rest else before._offset
        self._following = self._tasks.spawn(self._follow(), f"console {self._name} log")

    async def settle(self) -> None:
        """Write what is recorded by now, if it can be written soon."""
        self._settled.clear()
        self._history.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._settled.wait()

    def reopen(self) -> None:
        """The file was renamed: write to a new one of the name from now on."""
        self._reopen = True

    async def close(self) -> None:
        """Write what is recorded, if it can be written soon. Idempotent."""
        if self._fd < 0:
            return
        self._ending = True
        self._history.wake()
        await asyncio.wait({self._following}, timeout=GRACE)
        if not self._following.done():
            log.warning("%s: the end of the log is missing", self.terms.path)
        await self._tasks.cancel()
        fd, self._fd = self._fd, -1
        os.close(fd)

    async def _follow(self) -> None:
        while True:
            try:
                await self._write_all()
            except (OSError, HostError) as fault:
                self._tell(f"it cannot be written: {fault.strerror if isinstance(fault, OSError) else fault}")
                await asyncio.sleep(RETRY)
                continue
            self._tell(self._unrotated)
            self._settled.set()
            if self._ending or self._history.closed:
                self._rest = self._safe.finish()
                if not self._rest:
                    return
                continue
            await self._history.changed()

    async def _write_all(self) -> None:
        while self._rest or self._take():
            reopen, self._reopen = self._reopen, False
            try:
                await in_thread(partial(self._write, reopen))
            except (OSError, HostError):
                self._reopen |= reopen
                raise

    def _take(self) -> bool:
        """The next piece of the recording into ``_rest``; False if there is none."""
        start, data = self._history.read(self._offset, CHUNK)
        if lost := start - self._offset:
            self._lost += lost
            self.lost += lost
            self._rest = b"\n[%d bytes are missing]\n" % lost
            self._line_begins = True
        self._piece, self._offset = start, start + len(data)
        self._rest += self._formatted(data)
        return bool(self._rest)

    def _formatted(self, data: bytes) -> bytes:
        if self.terms.safe:
            data = self._safe.feed(data)
        if not (self.terms.timestamps and data):
            return data
        now = self._now()
        stamp = f"[{strftime('%Y-%m-%d %H:%M:%S', localtime(now))}.{int(now % 1 * 1000):03d}] ".encode()
        lines = data.split(b"\n")
        ends = not lines[-1]
        text = (b"\n" + stamp).join(lines[:-1] if ends else lines) + b"\n" * ends
        text = stamp + text if self._line_begins else text
        self._line_begins = ends
        return text

    def _tell(self, error: str | None) -> None:
        failed, self._error = self._error, error
        if error == failed and not (error is None and self._lost):
            return
        path = str(self.terms.path)
        log.warning("%s: %s", path, error or f"it is written, {self._lost} bytes are missing")
        self._publish("console.log", console=self._name, path=path, error=error, lost=self._lost)
        self._lost = 0

    # ---- below: in a thread, one at a time

    def _open(self) -> None:
        self._follow_on(_opened(self.terms.path))

    def _follow_on(self, fd: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def _write(self, reopen: bool) -> None:
        """``_rest``, or as much as can be before an OSError."""
        if reopen or not os.fstat(self._fd).st_nlink:  # somebody deleted it: nobody would ever read it
            self._open()
        size = os.fstat(self._fd).st_size
        self._unrotated = None
        if size and size + len(self._rest) > self.terms.size:
            try:
                self._rotate()
            except OSError as fault:  # better too long than lost
                self._unrotated = f"it grows beyond its size, a new one cannot be made: {fault.strerror}"
        while self._rest:
            self._rest = self._rest[os.write(self._fd, self._rest) :]

    def _rotate(self) -> None:
        """The new file is there before any is renamed: if it cannot be made, all stay as they are."""
        path, keep = self.terms.path, self.terms.keep
        if not keep:
            os.ftruncate(self._fd, 0)
            return
        names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, keep + 1))]
        new = path.with_name(f"{path.name}.new")
        fd = _opened(new)
        try:
            for newer, older in reversed(list(pairwise(names))):
                if newer.exists():
                    newer.replace(older)
            new.replace(path)
        except OSError:
            os.close(fd)
            new.unlink(missing_ok=True)
            raise
        self._follow_on(fd)


def _opened(path: Path) -> int:
    """A descriptor to append to ``path``. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o640)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file")
    return fd
