"""How late the event loop comes to what is due: whatever blocks it, or makes the host's CPUs scarce, is seen
there."""

from __future__ import annotations

import asyncio
import logging
import time

from xenpvd.counts import Durations

log = logging.getLogger(__name__)

#: Seconds between two looks, and how late one must come to be told
PERIOD = 0.4
LATE = 0.5


async def watch(lag: Durations, period: float = PERIOD) -> None:
    """Note in ``lag`` how late each of a row of wake-ups came, until cancelled.

    When the loop has stood still for long it is logged: no client and no device was served meanwhile. How
    much of that time this thread was at work tells a mistake of ours from a busy host, or from a SIGSTOP.
    """
    while True:
        due, worked = time.monotonic_ns() + int(period * 1e9), time.thread_time()
        await asyncio.sleep(period)
        late = max(0, time.monotonic_ns() - due)
        lag.note(late)
        if late > LATE * 1e9:
            worked = time.thread_time() - worked
            log.warning(
                "nobody was served for %.1f s, of which %.1f s were work of the loop", late / 1e9, worked
            )
