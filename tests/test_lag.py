from __future__ import annotations

import asyncio
import time
from itertools import cycle
from types import SimpleNamespace

import pytest

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


async def test_early_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop's timers may be as coarse as a millisecond."""
    lag, tasks = Durations(), Tasks()
    monkeypatch.setattr(
        "xenpvd.lag.time", SimpleNamespace(monotonic_ns=cycle([2_000_000, 1_000_000]).__next__)
    )
    tasks.spawn(watch(lag, 0.0), "lag")
    async with asyncio.timeout(5):
        while not any(lag.view().counts):  # noqa: ASYNC110
            await asyncio.sleep(0)
    await tasks.cancel()
    assert lag.view().sum == 0 and sum(lag.view().counts) == lag.view().counts[0]
