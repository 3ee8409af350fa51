"""How long a guest that ends by itself waits for its next life: a crash loop shall not heat the host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

#: Seconds: the longest wait, and how long a life must last for the next end to count as the first
LONGEST = 60.0
GOOD_LIFE = 60.0


class Backoff:
    """At once the first time, then after 1, 2, 4 ... 60 seconds. ``now`` is a clock in seconds."""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.sleep = sleep
        self._now = now
        self._began = 0.0
        self._ends = 0  # in a row, each after a short life

    def forget(self) -> None:
        """The operator has begun anew."""
        self._ends = 0

    def life_begins(self) -> None:
        self._began = self._now()

    def life_ended(self, good: bool = False) -> float:
        """The seconds to wait before the next life; ``good``: it was no failure, however short it was."""
        if good or self._now() - self._began >= GOOD_LIFE:
            self._ends = 0
        self._ends += 1
        return 0.0 if self._ends == 1 else min(2.0 ** min(self._ends - 2, 10), LONGEST)
