"""The outer Xen's one-shot timers that no kernel runs for us: one thread, started with the first of them.

Deadlines are Xen system time in nanoseconds. There is one timer per key, so a guest cannot pile them up.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from xenpvd.errors import KvmError, XenError

log = logging.getLogger(__name__)

#: the longest sleep, in ns; a later deadline is looked at again then
_SLEEP_MAX = 3600 * 10**9


@dataclass(slots=True)
class _Timer:
    due: int  # time.monotonic_ns
    act: Callable[[], None]
    by_clock: bool


class Timers:
    """``system_time()`` is called by :meth:`arm`; ``lock`` (the machine's) is held around each act, and by
    whoever calls :meth:`arm` and :meth:`disarm`, so that what is disarmed does not act any more. A guest may
    have the next act due always, so the lock has to be fair.

    Locks: the machine's, then ours.
    """

    def __init__(
        self,
        system_time: Callable[[], int],
        lock: AbstractContextManager[object],
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._system_time = system_time
        self._machine_lock = lock
        self._on_fault = on_fault
        self._timers: dict[Hashable, _Timer] = {}
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._held: int | None = None  # since when, by the monotonic clock

    def arm(self, key: Hashable, deadline: int, act: Callable[[], None], *, by_clock: bool = False) -> None:
        """Call ``act`` at ``deadline``, once; replaces what the key was armed for. While the guest is paused
        nothing acts: afterwards a timer has as much time left as before, or if ``by_clock`` has to be in time
        by the guest's clock, which runs on. Raises ``XenError`` ENOMEM if the host gives no thread."""
        left = deadline - self._system_time()
        due = time.monotonic_ns() + left  # read last: rather late than early
        with self._changed:
            if self._thread is None and not self._stopped:
                thread = threading.Thread(target=self._run, name="timers", daemon=True)
                try:
                    thread.start()
                except RuntimeError as fault:
                    raise XenError(errno.ENOMEM, str(fault)) from None
                self._thread = thread
            self._timers[key] = _Timer(due, act, by_clock)
            self._changed.notify()

    def disarm(self, key: Hashable) -> None:
        with self._changed:
            self._timers.pop(key, None)

    def hold(self) -> None:
        """The guest is paused."""
        with self._changed:
            if self._held is None:
                self._held = time.monotonic_ns()

    def release(self) -> None:
        """The guest goes on."""
        with self._changed:
            if self._held is not None:
                lost, self._held = time.monotonic_ns() - self._held, None
                for timer in self._timers.values():
                    timer.due += 0 if timer.by_clock else lost
                self._changed.notify()

    def stop(self) -> None:
        """Nothing acts after this, except what acts now. Any thread; the machine's lock may be held."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def join(self) -> None:
        """After :meth:`stop`; the machine's lock must not be held."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._sleep():
                with self._machine_lock:  # anew for each act: whoever waits comes in between
                    act = self._take_due()
                    if act is not None:
                        self._do(act)
        except BaseException as fault:  # our own mistake ends the guest, never the daemon
            self._on_fault(fault)

    def _do(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (KvmError, XenError) as fault:  # KVM does not take what the guest has armed: its own loss
            log.debug("a timer: %s", fault)

    def _sleep(self) -> bool:
        """Until something may be due; False if all is over."""
        with self._changed:
            while not self._stopped:
                if self._held is not None or not self._timers:
                    self._changed.wait()
                    continue
                left = min(timer.due for timer in self._timers.values()) - time.monotonic_ns()
                if left <= 0:
                    return True
                self._changed.wait(min(left, _SLEEP_MAX) / 1e9)
        return False

    def _take_due(self) -> Callable[[], None] | None:
        # one at a time: what acts may disarm another
        with self._changed:
            if self._stopped or self._held is not None or not self._timers:
                return None
            key = min(self._timers, key=lambda key: self._timers[key].due)
            return self._timers.pop(key).act if self._timers[key].due <= time.monotonic_ns() else None
