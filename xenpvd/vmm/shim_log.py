"""The shim's own log on its way out of the vCPU threads: bounded, with one wake-up at a time.

A guest can write faster than anybody reads. What waits is kept in one buffer, the oldest of it gives way, and
the reader is woken once per buffer, however many pieces come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Bytes that wait for the reader at most
LIMIT = 1 << 17


class ShimLog:
    """``wake()`` is called on the writer's thread; the reader shall then :meth:`take`."""

    def __init__(self, wake: Callable[[], None], limit: int = LIMIT) -> None:
        self._wake = wake
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting = bytearray()
        #: bytes that were, so far
        self.lost = 0
        self._told = 0  # of them

    def put(self, data: bytes) -> None:
        """Any thread; never blocks."""
        if not data:
            return
        with self._lock:
            first = not self._waiting
            self._waiting += data
            excess = max(0, len(self._waiting) - self._limit)
            del self._waiting[:excess]
            self.lost += excess
        if first:
            self._wake()

    def take(self) -> bytes:
        """All that waits; a line at its begin says if bytes were lost."""
        with self._lock:
            data, lost = bytes(self._waiting), self.lost - self._told
            self._waiting.clear()
            self._told = self.lost
        return b"[xenpvd: %d bytes of this log were lost]\n" % lost + data if lost else data
