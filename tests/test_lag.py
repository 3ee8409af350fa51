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
        "xenpvd.lag.time",
        SimpleNamespace(monotonic_ns=cycle([2_000_000, 1_000_000]).__next__, thread_time=lambda: 0.0),
    )
    tasks.spawn(watch(lag, 0.0), "lag")
    async with asyncio.timeout(5):
        while not any(lag.view().counts):  # noqa: ASYNC110
            await asyncio.sleep(0)
    await tasks.cancel()
    assert lag.view().sum == 0 and sum(lag.view().counts) == lag.view().counts[0]


@pytest.mark.parametrize("at_work", [True, False], ids=["by us", "by the host"])
async def test_a_loop_that_stands_still_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at_work: bool
) -> None:
    """P15: how long, and whether it was at work meanwhile."""
    monkeypatch.setattr("xenpvd.lag.LATE", 0.1)
    tasks = Tasks()
    tasks.spawn(watch(Durations(), 0.01), "lag")
    await asyncio.sleep(0)
    assert not caplog.messages
    if at_work:
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            pass
    else:
        time.sleep(0.2)  # noqa: ASYNC251 - nothing else stands still so well
    async with asyncio.timeout(5):
        while not caplog.messages:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert "nobody was served for 0." in caplog.text
    assert caplog.text.rstrip().endswith(
        "0.2 s were work of the loop" if at_work else "0.0 s were work of the loop"
    )
    await tasks.cancel()
