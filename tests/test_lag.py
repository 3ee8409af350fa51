from __future__ import annotations

import asyncio
import contextlib
import time

from xenpvd.counts import Durations
from xenpvd.lag import watch
from xenpvd.tasks import Tasks


async def test_a_loop_that_is_blocked_is_late() -> None:
    lag, tasks = Durations(), Tasks()
    tasks.spawn(watch(lag, 0.01), "lag")
    try:
        async with asyncio.timeout(5):
            while not any(lag.view().counts):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        before = lag.view()
        time.sleep(0.2)  # noqa: ASYNC251  # what must not happen
        while sum(lag.view().counts) == sum(before.counts):  # noqa: ASYNC110
            await asyncio.sleep(0)
    finally:
        await tasks.cancel()
    after = lag.view()
    late = next(n for n, bound in enumerate(after.bounds) if bound > 0.15)
    assert sum(after.counts[late:]) - sum(before.counts[late:]) == 1
    assert after.sum - before.sum >= 0.18


async def test_it_never_is_early() -> None:
    lag = Durations()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await watch(lag, 0.0)
    assert sum(lag.view().counts) > 1 and lag.view().sum >= 0
