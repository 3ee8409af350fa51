"""How much of a disk's storage its guest may use: bytes and operations in a second, with bursts; sans-IO."""

from __future__ import annotations

import threading

from xenpvd.views import NO_LIMITS, DriveLimits


class Throttle:
    """One per disk, for all of its rings; from any thread. Times are in seconds, of whichever clock.

    What is idle saves up at most ``burst`` seconds of its rates. A request is never too large: it waits until
    those before it are paid for, and the next one pays for it.
    """

    def __init__(self, limits: DriveLimits = NO_LIMITS) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        # when all that was let through until now is paid for
        self._bytes_due = self._ops_due = float("-inf")

    def set(self, limits: DriveLimits) -> None:
        """From now on; what waits by the ones before may go."""
        with self._lock:
            self.limits = limits
            self._bytes_due = self._ops_due = float("-inf")

    def take(self, now: float, length: int) -> float:
        """Let one request of ``length`` bytes through; how many seconds it must wait."""
        limits = self.limits
        if limits is NO_LIMITS:
            return 0.0
        with self._lock:
            wait = 0.0
            earliest = now - limits.burst
            if limits.bytes_per_second:
                due = max(self._bytes_due, earliest)
                wait = max(wait, due - now)
                self._bytes_due = due + length / limits.bytes_per_second
            if limits.ops_per_second:
                due = max(self._ops_due, earliest)
                wait = max(wait, due - now)
                self._ops_due = due + 1 / limits.ops_per_second
            return wait
