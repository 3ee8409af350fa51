"""One who is attached to a console: an offset into its recording, and perhaps its keyboard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from xenpvd.errors import Busy
from xenpvd.views import ConsoleViewerInfo

if TYPE_CHECKING:
    from xenpvd.backends.console.backend import Console

#: One viewer's read, bytes
READ_MAX = 1 << 16


class Viewer:
    """:class:`xenpvd.rpc.service.ConsoleViewer` by shape.

    Nothing is queued for it: a slow one costs nothing, and is cut off once what it has not read is no longer
    kept. ``on_mode(mode)`` is called when it gets or loses the keyboard, which it ``may_type`` on.
    """

    def __init__(
        self,
        console: Console,
        number: int,
        who: str,
        may_type: bool,
        offset: int,
        on_mode: Callable[[str], None],
    ) -> None:
        self._console = console
        self.number = number
        self.who = who
        self.may_type = may_type
        self.offset = offset
        self.live = console.history.end
        self.ended: str | None = None
        self.kicked = False
        self._end = asyncio.Event()
        self._mode = "ro"
        self._on_mode = on_mode
        self._since = time.time()

    @property
    def input(self) -> str:
        """single, shared or none: there is no keyboard to be had."""
        return self._console.input

    @property
    def mode(self) -> str:
        """``rw`` or ``ro``."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode != self._mode:
            self._mode = mode
            self._on_mode(mode)
            self._console.mode_changed(self)

    def end(self, why: str) -> None:
        """For the console, which knows why."""
        self.ended = why
        self._end.set()

    async def wait_ended(self) -> None:
        await self._end.wait()

    async def read(self) -> bytes:
        """The next bytes, of one boot, waiting for some; b"" at the end, whose cause is ``ended``."""
        history, marks = self._console.history, self._console.marks
        while self.ended is None:
            next_boot = min((mark for mark in marks if mark > self.offset), default=self.offset + READ_MAX)
            start, data = history.read(self.offset, min(READ_MAX, next_boot - self.offset))
            if start > self.offset:  # it was cleared
                self._console.detach(self, f"too slow: {start - self.offset} bytes were lost")
            elif data:
                self.offset += len(data)
                return data
            elif history.closed:
                self._console.detach(self, "the daemon ends")
            else:
                await history.changed()
        return b""

    async def write(self, data: bytes) -> None:
        """Type ``data``; waits while the guest does not take it. Raises :class:`Busy` if it is read-only or
        has ended, or comes to be meanwhile: then the rest is not typed."""
        self._check_keyboard()
        await self._console.type(data, check=self._check_keyboard, by=self)

    def _check_keyboard(self) -> None:
        if self.ended is not None:
            raise Busy(f"cannot type: this viewer is over ({self.ended}). Attach again.", by=self.ended)
        if self._mode != "rw":
            why = "cannot type: this viewer is read-only. Attach with mode steal."
            raise Busy(why, by=self._console.writer)

    def boot_at(self, offset: int) -> int | None:
        """The number of the boot whose output begins there, if one's does."""
        return self._console.marks.get(offset)

    def steal(self) -> None:
        """Take the keyboard from who has it. Raises :class:`Busy` for a viewer that is over, and
        :class:`Unsupported`."""
        if self.ended is not None:
            raise Busy(f"cannot take the keyboard: this viewer is over ({self.ended}).", by=self.ended)
        self._console.give_keyboard(self, stolen=True)

    def release(self) -> None:
        """Give the keyboard up for good, and look on."""
        self.may_type = False
        self.mode = "ro"

    def close(self) -> str:
        """Detach; returns why the viewer ended. Idempotent."""
        self._console.detach(self, "detached")
        return self.ended or "detached"

    def info(self) -> ConsoleViewerInfo:
        return ConsoleViewerInfo(
            console=self._console.name,
            viewer=self.number,
            who=self.who,
            mode=self.mode,
            since=self._since,
            offset=self.offset,
            behind=self._console.history.end - self.offset,
        )
