"""The console a guest writes to: one recording, any number of viewers, one keyboard.

A viewer is an offset into the recording, nothing is queued for it: a slow one costs nothing, and is cut off
once what it has not read is no longer kept. The guest never waits for a viewer.
"""

from __future__ import annotations

import asyncio
import logging

from xenpvd.abi.page import SharedPage
from xenpvd.backends.console.history import History
from xenpvd.backends.console.ring import ConsoleRing
from xenpvd.backends.ops import EvtchnPort
from xenpvd.backends.port import PortKicks
from xenpvd.errors import Busy, GuestFault, StateError, TimedOut
from xenpvd.events import Publish
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)

#: One viewer's read, bytes
READ_MAX = 1 << 16
#: Typed bytes that wait for the guest, beyond the ring's 1024
INPUT_MAX = 1 << 16


class Viewer:
    """One who is attached. :class:`xenpvd.rpc.service.ConsoleViewer` by shape."""

    def __init__(self, console: Console, who: str, mode: str, offset: int) -> None:
        self._console = console
        self.who = who
        self.mode = mode
        self.offset = offset
        self.ended: str | None = None

    async def read(self) -> bytes:
        history = self._console.history
        while self.ended is None:
            start, data = history.read(self.offset, READ_MAX)
            if start > self.offset:
                self._console.detach(self, f"too slow: {start - self.offset} bytes were lost")
            elif data:
                self.offset += len(data)
                return data
            elif history.closed:
                self._console.detach(self, "the console is gone")
            else:
                await history.changed()
        return b""

    async def write(self, data: bytes) -> None:
        if self.mode != "rw":
            raise Busy(
                "cannot type: this viewer is read-only. Attach with mode steal.", by=self._console.writer
            )
        await self._console.type(data)

    def close(self) -> str:
        self._console.detach(self, "detached")
        return self.ended or "detached"


class Console:
    """Outlives VMs: a reboot connects it anew, viewers and recording stay."""

    def __init__(self, publish: Publish, history: int) -> None:
        self.history = History(history)
        self._publish = publish
        self._tasks = Tasks(self._on_fault)
        self._viewers: list[Viewer] = []
        self._ring: ConsoleRing | None = None
        self._port: EvtchnPort | None = None
        self._kicks: PortKicks | None = None
        self._typed = bytearray()
        self._typing = asyncio.Lock()
        self._taken = asyncio.Event()

    # -- for guest.py

    def connect(self, page: SharedPage, port: EvtchnPort) -> None:
        """A new VM's console ring; ``port`` is closed by :meth:`disconnect`."""
        self._ring = ConsoleRing(page)
        self._port = port
        self._kicks = PortKicks(port)
        self._tasks.spawn(self._serve(self._kicks), "console")

    async def disconnect(self) -> None:
        """The VM has stopped: take the last bytes, then let go. What was typed and not taken is dropped."""
        await self._tasks.cancel()
        if self._ring is not None:
            self._drain(self._ring)
        if self._kicks is not None:
            self._kicks.close()
        if self._port is not None:
            self._port.close()
        self._ring = self._port = self._kicks = None
        self._typed.clear()
        self._taken.set()

    def close(self) -> None:
        """The daemon ends: every viewer is told."""
        self.history.close()

    # -- for viewers

    @property
    def writer(self) -> str | None:
        """Who has the keyboard."""
        return next((viewer.who for viewer in self._viewers if viewer.mode == "rw"), None)

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    def attach(self, mode: str, since: int | None, who: str) -> Viewer:
        """Raises :class:`Busy` for ``rw`` while another viewer types; ``steal`` makes that one read-only."""
        if mode == "rw" and self.writer is not None:
            raise Busy(
                f"cannot attach with the keyboard: {self.writer} has it. Attach with mode steal or ro.",
                by=self.writer,
            )
        if mode == "steal":
            for other in self._viewers:
                other.mode = "ro"
        offset = (
            self.history.start if since is None else min(max(since, self.history.start), self.history.end)
        )
        viewer = Viewer(self, who, "ro" if mode == "ro" else "rw", offset)
        self._viewers.append(viewer)
        self._publish("console.attached", who=who, mode=viewer.mode, offset=viewer.offset)
        return viewer

    def detach(self, viewer: Viewer, why: str) -> None:
        if viewer.ended is None:
            viewer.ended = why
            self._viewers.remove(viewer)
            self._publish("console.detached", who=viewer.who, why=why)
            self.history.wake()  # a read of its own that waits

    async def type(self, data: bytes, timeout: float | None = None) -> None:
        """Give ``data`` to the guest; waits while too much is not taken yet. Nothing is dropped silently.

        Raises :class:`StateError` if there is no running guest to take it, or not any more; :class:`TimedOut`
        after ``timeout`` seconds, its data ``written`` the bytes given by then. If it is cancelled or timed
        out, those stay given and the rest is not typed.
        """
        rest = memoryview(data)
        try:
            # one after the other, or two pastes would mix
            async with asyncio.timeout(timeout), self._typing:
                ring = self._ring
                while rest:
                    if ring is None or self._ring is not ring:
                        raise StateError(
                            "cannot type: the guest is not running. Start it.", "stopped", ["running"]
                        )
                    room = INPUT_MAX - len(self._typed)
                    self._typed += rest[:room]
                    rest = rest[room:]
                    self._taken.clear()
                    self._feed(ring)
                    if rest:
                        await self._taken.wait()
        except TimeoutError:
            written = len(data) - len(rest)
            raise TimedOut(
                f"cannot type all of it: the guest has not read its console, and was given {written} of "
                f"{len(data)} bytes in {timeout:g} s. The rest was not typed. Send it once the guest reads.",
                written=written,
            ) from None

    # -- serving

    async def _serve(self, kicks: PortKicks) -> None:
        assert self._ring is not None
        while True:
            # one pass a kick: Linux kicks after each piece, and the loop gives others their turn in between
            await kicks.wait()
            self._drain(self._ring)
            self._feed(self._ring)

    def _drain(self, ring: ConsoleRing) -> None:
        try:
            data, was_full = ring.drain()
        except GuestFault as fault:
            log.debug("%s", fault)  # ignored until the guest's index makes sense again
            return
        if data:
            self.history.append(data)
        if was_full and self._port is not None:
            self._port.notify()

    def _feed(self, ring: ConsoleRing) -> None:
        if not self._typed:
            return
        try:
            taken = ring.feed(self._typed)
        except GuestFault as fault:
            log.debug("%s", fault)
            return
        if taken:
            del self._typed[:taken]
            self._taken.set()
            if self._port is not None:
                self._port.notify()

    def _on_fault(self, name: str, fault: BaseException) -> None:
        log.error("%s failed", name, exc_info=fault)
        self._publish("console.error", message=f"the console stopped: {type(fault).__name__}")
