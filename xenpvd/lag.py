"""How late the event loop comes to what is due: whatever blocks it, or makes the host's CPUs scarce, is seen
there."""

from __future__ import annotations

import asyncio
import time

from xenpvd.counts import Durations

#: Seconds between two looks
PERIOD = 1.0


async def watch(lag: Durations, period: float = PERIOD) -> None:
    """Note in ``lag`` how late each of a row of wake-ups came, until cancelled."""
    while True:
        due = time.monotonic_ns() + int(period * 1e9)
        await asyncio.sleep(period)
        lag.note(max(0, time.monotonic_ns() - due))
