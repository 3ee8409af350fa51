"""A bounded recording of a byte stream with absolute offsets: byte 0 is the first one ever recorded."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable

from xenpvd.backends.console.timeline import Timeline

#: Bytes that are kept together, so that none are moved as more come
BLOCK = 1 << 16


class History:
    """Keeps the last ``limit`` bytes (settable). Loop thread only; appending never waits for a reader.
    ``now`` gives Unix seconds."""

    def __init__(self, limit: int, now: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self._now = now
        self._timeline = Timeline()
        self._blocks: list[bytearray] = []
        self._offsets: list[int] = []  # where each begins
        self._end = 0
        self._changed = asyncio.Event()
        self.closed = False

    @property
    def start(self) -> int:
        """The offset of the oldest byte that is kept."""
        return max(self._offsets[0], self._end - self.limit) if self._blocks else self._end

    @property
    def end(self) -> int:
        """The offset that the next byte will get."""
        return self._end

    def append(self, data: bytes) -> None:
        self._timeline.note(self._end, self._now())
        if not self._blocks or len(self._blocks[-1]) >= BLOCK:
            self._blocks.append(bytearray())
            self._offsets.append(self._end)
        self._blocks[-1] += data
        self._end += len(data)
        old = bisect_right(self._offsets, self._end - self.limit) - 1
        if old > 0:
            del self._blocks[:old], self._offsets[:old]
        self.wake()

    def read(self, since: int, limit: int) -> tuple[int, bytes]:
        """Up to ``limit`` bytes from offset ``since`` on, or from the oldest kept: (their offset, them)."""
        since = min(max(since, self.start), self._end)
        pieces = []
        number, at = bisect_right(self._offsets, since) - 1, since
        while limit > 0 and at < self._end:
            begin = at - self._offsets[number]
            pieces.append(self._blocks[number][begin : begin + limit])
            at, limit, number = at + len(pieces[-1]), limit - len(pieces[-1]), number + 1
        return since, b"".join(pieces)

    def at(self, since: float) -> int:
        """The offset from which on all is kept that was recorded since that time."""
        return max(self.start, self._timeline.offset(since, self._end))

    def clear(self, before: int | None = None) -> None:
        """Forget what is kept, or of that what comes before an offset; offsets go on. A viewer that had not
        read it is too slow."""
        start, kept = (self._end, b"") if before is None else self.read(before, self._end - before)
        self._blocks = [bytearray(kept)] if kept else []
        self._offsets = [start] if kept else []

    def tail(self, length: int) -> bytes:
        return self.read(self._end - length, length)[1]

    async def changed(self) -> None:
        """Wait for the next :meth:`append`, :meth:`close` or :meth:`wake`."""
        await self._changed.wait()

    async def wait(self, offset: int) -> bool:
        """Wait for a byte at ``offset``; False if the recording ends before."""
        while self._end <= offset and not self.closed:
            await self.changed()
        return self._end > offset

    async def find(self, text: bytes, since: int = 0) -> bool:
        """Wait until ``text`` stands in the recording at or after ``since``; False if it ends before."""
        while True:
            start, data = self.read(since, BLOCK + len(text))
            if text in data:
                return True
            end = start + len(data)
            since = max(since, start, end - len(text) + 1)
            if end < self._end:
                await asyncio.sleep(0)  # others get their turn
            elif not await self.wait(max(since, end)):
                return False

    def close(self) -> None:
        """Nothing more will come: whoever waits is told."""
        self.closed = True
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()
