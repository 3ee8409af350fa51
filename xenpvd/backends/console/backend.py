"""A console that a guest writes to: one recording, any number of viewers, one keyboard.

The guest never waits for a viewer, nor for a log file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import count

from xenpvd.abi.page import SharedPage
from xenpvd.backends.console.history import History
from xenpvd.backends.console.ring import ConsoleRing
from xenpvd.backends.console.viewer import Viewer
from xenpvd.backends.ops import EvtchnPort
from xenpvd.backends.port import PortKicks
from xenpvd.errors import Busy, GuestFault, LimitReached, StateError, TimedOut, Unsupported
from xenpvd.events import Publish
from xenpvd.tasks import Tasks
from xenpvd.views import ConsoleInfo

log = logging.getLogger(__name__)

#: Typed bytes that wait for the guest, beyond the ring's 1024
INPUT_MAX = 1 << 16
#: Viewers of one console: more than all sockets together take clients
VIEWERS_MAX = 256

#: Boots of which it is known where their output begins
MARKS_MAX = 256

#: of viewers, whichever console they look at
_numbers = count(1)


def _nothing(*_: object) -> None:
    pass


class Console:
    """Outlives VMs: a reboot connects it anew, viewers and recording stay.

    ``input``: "single" (one keyboard at a time), "shared" (everybody who asked for one has one), or "none"
    (there is nothing to type to, as for Xen's own log). ``number`` is that of device/console/N, 0 of the one
    that is no device; None: the guest has none.

    Events: ``console.opened`` {console, offset, boot} where a VM's output begins, ``console.attached``
    {console, viewer, who, mode, offset}, ``console.keyboard`` {console, viewer, who, mode} when one gets or
    loses the keyboard later on, ``console.detached`` {console, viewer, who, why, kicked}, ``console.error``
    {console, message}.
    """

    def __init__(
        self,
        publish: Publish,
        history: int,
        name: str = "0",
        input: str = "single",
        number: int | None = None,
    ) -> None:
        self.name = name
        self.number = number
        self._input = input
        self.history = History(history)
        self._publish = publish
        self._tasks = Tasks(self._on_fault)
        self._viewers: list[Viewer] = []
        self._ring: ConsoleRing | None = None
        self._port: EvtchnPort | None = None
        self._kicks: PortKicks | None = None
        self._typed = bytearray()
        self._typist: Viewer | None = None  # who typed the last of that
        #: bytes that guests have taken so far
        self.taken = 0
        self._typing = asyncio.Lock()
        self._taken = asyncio.Event()
        self._boots = 0
        #: at which offsets boots began, and their numbers; of the last ones
        self.marks: dict[int, int] = {}

    @property
    def input(self) -> str:
        return self._input

    @input.setter
    def input(self, input: str) -> None:
        self._input = input
        if input == "single":  # the first one keeps it
            for other in [viewer for viewer in self._viewers if viewer.mode == "rw"][1:]:
                other.mode = "ro"
            self._taken.set()

    def opened(self) -> None:
        """A VM begins: what is recorded from here on is its output."""
        self._boots += 1
        self.marks[self.history.end] = self._boots
        if len(self.marks) > MARKS_MAX:
            del self.marks[next(iter(self.marks))]
        self._publish("console.opened", console=self.name, offset=self.history.end, boot=self._boots)

    # -- for guest.py

    def connect(self, page: SharedPage, port: EvtchnPort) -> None:
        """A new VM's console ring; ``port`` is closed by :meth:`disconnect`."""
        self._ring = ConsoleRing(page)
        self._port = port
        self._kicks = PortKicks(port)
        self.opened()
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

    def record(self, data: bytes) -> None:
        """It was printed. A viewer that has not read what is no longer kept is cut off."""
        self.history.append(data)
        for viewer in tuple(self._viewers):
            if viewer.offset < self.history.start:
                self.detach(viewer, f"too slow: {self.history.start - viewer.offset} bytes were lost")

    # -- for viewers

    @property
    def writer(self) -> str | None:
        """Who has the keyboard."""
        return next((viewer.who for viewer in self._viewers if viewer.mode == "rw"), None)

    @property
    def viewers(self) -> tuple[Viewer, ...]:
        return tuple(self._viewers)

    def attach(
        self,
        mode: str,
        since: int | None,
        who: str,
        on_mode: Callable[[str], None] = _nothing,
        may_type: bool = True,
    ) -> Viewer:
        """``mode`` is rw, ro or steal (which makes who has the keyboard read-only); ``since`` an offset, None
        for all that is kept. Who is read-only and ``may_type`` can be given the keyboard later.

        Raises :class:`Busy` for ``rw`` while another viewer types, :class:`Unsupported` if there is no
        keyboard, :class:`LimitReached`.
        """
        if len(self._viewers) >= VIEWERS_MAX:
            why = f"cannot attach to console {self.name}: it has {VIEWERS_MAX} viewers. End one."
            raise LimitReached(why, limit=VIEWERS_MAX)
        history = self.history
        offset = history.start if since is None else min(max(since, history.start), history.end)
        viewer = Viewer(self, next(_numbers), who, may_type, offset, on_mode)
        if mode == "rw" and self.input == "single" and self.writer is not None:
            why = f"cannot attach with the keyboard: {self.writer} has it. Attach with mode steal or ro."
            raise Busy(why, by=self.writer)
        if mode != "ro":
            self.give_keyboard(viewer, stolen=mode == "steal")
        self._viewers.append(viewer)
        self._publish(
            "console.attached",
            console=self.name,
            viewer=viewer.number,
            who=who,
            mode=viewer.mode,
            offset=viewer.offset,
        )
        return viewer

    def mode_changed(self, viewer: Viewer) -> None:
        """For the viewer: it has got or lost the keyboard."""
        if viewer in self._viewers:  # or it is told as it attaches
            self._publish(
                "console.keyboard",
                console=self.name,
                viewer=viewer.number,
                who=viewer.who,
                mode=viewer.mode,
            )

    def give_keyboard(self, viewer: Viewer, stolen: bool) -> None:
        """To ``viewer``, and to it alone unless it is shared. If it is ``stolen`` nothing comes any more of
        what others have typed and the guest was not given. Raises :class:`Unsupported`."""
        self._check_keyboard("attach with a keyboard")
        if self.input == "single" and viewer.mode != "rw":  # who has it keeps what they are typing
            for other in self._viewers:
                if other is not viewer:
                    other.mode = "ro"
            if stolen:
                self._forget_typed()
        viewer.mode = "rw"

    def _forget_typed(self) -> None:
        self._typed.clear()
        self._taken.set()

    def _check_keyboard(self, what: str) -> None:
        if self.input == "none":
            why = f"cannot {what}: console {self.name} is for reading only. Attach with mode ro."
            raise Unsupported(why, feature="console input")

    def kick(self, viewer: Viewer, why: str) -> None:
        """End it against its will, with what it has typed and the guest has not read, unless that is mixed
        with what others have (``shared``)."""
        viewer.kicked = True
        if self._typist is viewer and self.input == "single":
            self._forget_typed()
        self.detach(viewer, why)

    def detach(self, viewer: Viewer, why: str) -> None:
        if viewer.ended is None:
            viewer.end(why)
            self._viewers.remove(viewer)
            self._publish(
                "console.detached",
                console=self.name,
                viewer=viewer.number,
                who=viewer.who,
                why=why,
                kicked=viewer.kicked,
            )
            self.history.wake()  # a read of its own that waits
            self._taken.set()  # and its typing

    def info(self) -> ConsoleInfo:
        return ConsoleInfo(
            console=self.name,
            number=self.number,
            input=self.input,
            connected=self._ring is not None,
            start=self.history.start,
            end=self.history.end,
            boots=self._boots,
            writer=self.writer,
            viewers=len(self._viewers),
        )

    async def type(
        self,
        data: bytes,
        timeout: float | None = None,
        check: Callable[[], None] = _nothing,
        by: Viewer | None = None,
    ) -> None:
        """Give ``data`` to the guest; waits while too much is not taken yet. Nothing is dropped silently.
        ``check`` raises :class:`Busy`, and so ends it, when whoever types may no longer.

        Raises :class:`Unsupported` if there is no keyboard; :class:`StateError` if there is no running guest
        to take it, or not any more; :class:`TimedOut` after ``timeout`` seconds. The data ``written`` of all
        but the first are the bytes given by then: those stay given, and the rest is not typed.
        """
        self._check_keyboard("type")
        rest = memoryview(data)
        try:
            # one after the other, or two pastes would mix
            async with asyncio.timeout(timeout), self._typing:
                ring = self._ring
                while rest:
                    check()
                    if ring is None or self._ring is not ring:
                        why = "the guest is not running. Start it"
                        if self.number:  # a channel, which a running guest need not take up
                            why = f"the guest has not taken up console {self.name}. See console.list"
                        raise StateError(f"cannot type: {why}.", "stopped", ["running"])
                    self._typist = by
                    room = INPUT_MAX - len(self._typed)
                    self._typed += rest[:room]
                    rest = rest[room:]
                    self._taken.clear()
                    self._feed(ring)
                    if rest:
                        await self._taken.wait()
        except (Busy, StateError) as fault:
            fault.data["written"] = len(data) - len(rest)
            raise
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
            self.record(data)
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
            self.taken += taken
            self._taken.set()
            if self._port is not None:
                self._port.notify()

    def _on_fault(self, name: str, fault: BaseException) -> None:
        log.error("%s failed", name, exc_info=fault)
        self._publish(
            "console.error", console=self.name, message=f"the console stopped: {type(fault).__name__}"
        )
