"""A console's log file: it follows the recording, and the guest never waits for it.

What cannot be written (a full disk, a share that hangs) is tried again as long as it is kept in the
recording; what has gone from there meanwhile is counted, and the file says how much.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import localtime, strftime

from xenpvd.backends.console.history import History
from xenpvd.errors import HostError
from xenpvd.events import Publish
from xenpvd.tasks import Tasks, in_thread

log = logging.getLogger(__name__)

CHUNK = 1 << 16
#: Seconds until what could not be written is tried again
RETRY = 1.0
#: Seconds that the last bytes get when the daemon ends
GRACE = 2.0

#: all control characters but tab and line feed become a dot, as terminals obey them
_SAFE = bytes(ord(".") if (byte < 32 and byte not in b"\t\n") or byte == 127 else byte for byte in range(256))


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

    Event ``console.log`` {console, path, error, lost}: writing began to fail (``error`` says why), or goes on
    again (null; ``lost`` bytes are missing).
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
        self._rest = b""
        self._line_begins = True
        self._lost = 0
        self._failing = False
        self._reopen = False
        self._ending = False
        self._fd = -1
        self._size = 0

    async def open(self) -> None:
        """Begin. Raises :class:`HostError`."""
        try:
            await in_thread(self._open)
        except OSError as fault:
            raise HostError(
                f"cannot log console {self._name} to {self.terms.path}: {fault.strerror}. Check the path "
                "and the rights of the daemon's user.",
                fault.errno or 0,
                str(self.terms.path),
            ) from None
        self._following = self._tasks.spawn(self._follow(), f"console {self._name} log")

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
            except OSError as fault:
                self._tell(fault.strerror or str(fault))
                await asyncio.sleep(RETRY)
                continue
            self._tell(None)
            if self._ending or self._history.closed:
                return
            await self._history.changed()

    async def _write_all(self) -> None:
        while self._rest or self._take():
            reopen, self._reopen = self._reopen, False
            try:
                await in_thread(partial(self._write, reopen))
            except OSError:
                self._reopen |= reopen
                raise

    def _take(self) -> bool:
        """The next piece of the recording into ``_rest``; False if there is none."""
        start, data = self._history.read(self._offset, CHUNK)
        if lost := start - self._offset:
            self._lost += lost
            self._rest = b"\n[%d bytes are missing]\n" % lost
            self._line_begins = True
        self._offset = start + len(data)
        self._rest += self._formatted(data)
        return bool(self._rest)

    def _formatted(self, data: bytes) -> bytes:
        if self.terms.safe:
            data = data.replace(b"\r\n", b"\n").translate(_SAFE)
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
        if (error is not None) is self._failing:
            return
        self._failing = error is not None
        path = str(self.terms.path)
        what = f"goes on, {self._lost} bytes lost" if error is None else f"cannot be written: {error}"
        log.warning("%s: %s", path, what)
        self._publish("console.log", console=self._name, path=path, error=error, lost=self._lost)
        self._lost = 0

    # ---- below: in a thread, one at a time

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self.terms.path, flags, 0o640)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no regular file")
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, found.st_size

    def _write(self, reopen: bool) -> None:
        """``_rest``, or as much as can be before an OSError."""
        if reopen:
            self._open()
        if self._size and self._size + len(self._rest) > self.terms.size:
            self._rotate()
        while self._rest:
            done = os.write(self._fd, self._rest)
            self._size += done
            self._rest = self._rest[done:]

    def _rotate(self) -> None:
        path, keep = self.terms.path, self.terms.keep
        for number in range(keep, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            newer = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
            if newer.exists():
                newer.replace(older)
        if not keep:
            os.ftruncate(self._fd, 0)
        self._open()
