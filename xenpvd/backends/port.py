"""Waiting for the guest's kicks on an event-channel port, in asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os

from xenpvd.backends.ops import EvtchnPort


class PortKicks:
    """Watches ``port.kick_fd`` in the running loop until :meth:`close`, which must come before the port's.

    The eventfd is emptied before :meth:`wait` returns, so a kick sent after that is never lost: look at
    the ring after ``wait``, not before.
    """

    def __init__(self, port: EvtchnPort) -> None:
        self._fd = port.kick_fd
        self._loop = asyncio.get_running_loop()
        self._kicked = asyncio.Event()
        self._closed = False
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        self._kicked.set()

    async def wait(self) -> None:
        """Return once the guest has kicked since the last return; many kicks are one."""
        await self._kicked.wait()
        self._kicked.clear()

    def poke(self) -> None:
        """Make :meth:`wait` return as if the guest had kicked; for events of our own side."""
        self._kicked.set()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
