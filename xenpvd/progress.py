"""Where the guest is: its state, how far its boot has come, and waiting for either."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from xenpvd.config import SIGN
from xenpvd.errors import BadConfig, StateError, TimedOut
from xenpvd.events import Publish
from xenpvd.tasks import Tasks
from xenpvd.views import Phase, Runstate

ALIVE = (Runstate.STARTING, Runstate.RUNNING, Runstate.PAUSED, Runstate.STOPPING)
STARTABLE = (Runstate.DEFINED, Runstate.STOPPED, Runstate.CRASHED)


class Progress:
    """Loop thread only. Every change is published and wakes whoever waits."""

    def __init__(self, publish: Publish) -> None:
        self.state = Runstate.DEFINED
        self.reason: str | None = None
        self.boot_times: dict[str, float] = {}
        self._publish = publish
        self._began = 0.0
        self._running_since = 0.0
        self._ran = 0.0  # before that
        self._changed = asyncio.Event()

    @property
    def phase(self) -> Phase | None:
        """How far the boot has come."""
        return next((phase for phase in reversed(Phase) if phase in self.boot_times), None)

    @property
    def uptime(self) -> float:
        """Seconds since this life began."""
        return round(time.monotonic() - self._began, 3)

    def begin_life(self) -> None:
        """A new VM: its phases are counted from here."""
        self._began = time.monotonic()
        self.reason, self.boot_times = None, {}

    def ran(self) -> float:
        """Seconds that guests have run: a clock that stands still while there is none, or it is paused."""
        running = self.state is Runstate.RUNNING
        return self._ran + (time.monotonic() - self._running_since if running else 0.0)

    def switch(self, state: Runstate, reason: str | None = None) -> None:
        self._ran, self._running_since = self.ran(), time.monotonic()
        before, self.state, self.reason = self.state, state, reason
        self._publish("guest.state", from_=before, to=state, reason=reason)
        self.wake()

    def reached(self, phase: Phase) -> None:
        """Announce a phase, once a life, in order: what comes later implies what comes earlier, but for
        ``ready``, which may mean anything."""
        for step in Phase:
            implied = step is phase or phase is not Phase.READY
            if implied and step not in self.boot_times:
                self.boot_times[step] = self.uptime
                self._publish("guest.boot", phase=step, seconds=self.boot_times[step])
                self.wake()
            if step is phase:
                return

    def has_reached(self, phase: Phase) -> bool:
        return phase in self.boot_times

    def wake(self) -> None:
        """Something has changed that a predicate of :meth:`until` may look at."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, predicate: Callable[[], bool]) -> None:
        while not predicate():
            await self._changed.wait()

    async def wait(
        self, for_: str, timeout: float, shown: Callable[[str], Coroutine[Any, Any, bool]]
    ) -> None:
        """Wait for a phase, a state, or a sign of the guest's, for which ``shown`` waits.

        Raises :class:`TimedOut`; :class:`StateError` if it cannot come any more; :class:`BadConfig`.
        """
        try:
            async with asyncio.timeout(timeout):
                if for_ in (Runstate.STOPPED, Runstate.CRASHED):  # whichever it is, the guest is over then
                    await self.until(lambda: self.state not in ALIVE)
                    self._check_came(for_, self.state == for_)
                elif for_ in list(Runstate):
                    await self.until(lambda: self.state == for_)
                elif for_ in list(Phase):
                    await self.until(lambda: self.has_reached(Phase(for_)) or self.state not in ALIVE)
                    self._check_came(for_, self.has_reached(Phase(for_)))
                elif SIGN.fullmatch(for_):
                    self._check_came(for_, await self._found(shown(for_)))
                else:
                    names = ", ".join([*Phase, *Runstate])
                    signs = "console:TEXT, xenstore:PATH"
                    raise BadConfig(f"cannot wait for {for_!r}: it is none of {names}, {signs}.")
        except TimeoutError:
            raise TimedOut(
                f"{for_} has not come after {timeout:.3g} s: the guest is {self.state}, phase {self.phase}. "
                "See what it printed with xenpvctl log."
            ) from None

    async def _found(self, finding: Coroutine[Any, Any, bool]) -> bool:
        """The result of ``finding``, or False as soon as the guest is over and it still has not ended."""
        tasks = Tasks()
        found = tasks.spawn(finding, "sign wait")
        over = tasks.spawn(self.until(lambda: self.state not in ALIVE), "end wait")
        try:
            await asyncio.wait({found, over}, return_when=asyncio.FIRST_COMPLETED)
            return found.done() and found.result() is True
        finally:
            await tasks.cancel()

    def _check_came(self, what: str, came: bool) -> None:
        if not came:
            why = f" ({self.reason})" if self.reason else ""
            raise StateError(
                f"{what} will not come: the guest is {self.state}{why}.",
                self.state,
                list(ALIVE),
            )
