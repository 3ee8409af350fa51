"""A disk on storage that answers when the test says so."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tests.fakes.blkfront import pack_request
from tests.fakes.disk import Disk
from tests.fakes.guest import Guest
from xenpvd.abi.io_blkif import BLKIF_OP_READ


class SlowDisk(Disk):
    """A read ends when :meth:`finish` says so. The native plane reads from a pipe, the other one asks us."""

    def __init__(self, path: Path, guest: Guest, native: bool) -> None:
        super().__init__(path, native=native, gnttab=guest)
        self.native = native
        self._begun, self._go_on = threading.Event(), threading.Semaphore(0)
        if native:
            fd, self._pipe = os.pipe()
            plane = self.plane._plane  # type: ignore[union-attr]
            os.dup2(fd, plane.image_fd)
            plane.is_block = 1  # it has no size that could be too small
            os.close(fd)
        else:
            self.image.fail = self._wait  # type: ignore[method-assign]

    def _wait(self, call: str) -> None:
        self._begun.set()
        assert self._go_on.acquire(timeout=5)

    def begin(self, *grefs: int) -> None:
        """Reads into these pages, one request each; they are under way when this returns."""
        slots = [pack_request(BLKIF_OP_READ, id=n, segments=[(gref, 0, 7)]) for n, gref in enumerate(grefs)]
        if self.native:
            self.ring.submit(*slots, pack_request(77, id=99))
            assert self.ring.wait(1)[0][0] == 99  # which was taken after the others
        else:
            self._begun.clear()
            self.ring.submit(*slots)
            assert self._begun.wait(5)

    def finish_all(self, count: int) -> None:
        """So many, without looking at the responses."""
        if self.native:
            os.write(self._pipe, bytes(4096 * count))
        else:
            self._go_on.release(count)

    def finish(self) -> None:
        """The first of them, or of what is left."""
        self.finish_all(1)
        ((_, _, status),) = self.ring.wait(1)
        assert status == 0

    def close(self) -> None:
        if self.native:
            os.close(self._pipe)  # what still reads from it fails
        else:
            self._go_on.release(32)
        super().close()
