from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from types import SimpleNamespace
from typing import TypeVar

import pytest

from xenpvd.counts import Durations
from xenpvd.lag import _SCHED_ATTR, SLICE, come_first, watch
from xenpvd.tasks import Tasks

T = TypeVar("T")


def time_slice() -> tuple[int, int]:
    """(policy, nanoseconds) of this thread, by sched_getattr(2)."""
    attr = ctypes.create_string_buffer(_SCHED_ATTR.size)
    assert ctypes.CDLL(None).syscall(ctypes.c_long(315), 0, attr, len(attr), 0) == 0
    _, policy, _, _, _, runtime, _, _ = _SCHED_ATTR.unpack(attr.raw)
    return policy, runtime


def in_a_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_a_thread_that_comes_first_has_a_short_slice_and_those_that_it_begins_have_not() -> None:
    if not (usual := in_a_thread(time_slice))[1]:
        pytest.skip("this kernel has no time slices by thread: Linux 6.12 has")

    def both() -> tuple[tuple[int, int], tuple[int, int]]:
        come_first()
        return time_slice(), in_a_thread(time_slice)

    assert in_a_thread(both) == ((os.SCHED_OTHER, SLICE), usual)


def batch() -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def favoured() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -5)


@pytest.mark.parametrize("chosen", [batch, favoured])
def test_who_has_been_given_another_priority_keeps_it(chosen: Callable[[], None]) -> None:
    if chosen is favoured and os.geteuid():
        pytest.skip("only root may favour a thread")

    def both() -> None:
        chosen()
        before = time_slice()
        come_first()
        assert time_slice() == before

    in_a_thread(both)


def test_where_it_is_refused_all_is_as_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("xenpvd.lag._SYS_sched_setattr", 9999)
    caplog.set_level("DEBUG", logger="xenpvd.lag")
    before = time_slice()
    come_first()
    assert time_slice() == before and "no shorter time slice: Function not implemented" in caplog.text


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
