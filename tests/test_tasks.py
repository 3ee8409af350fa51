"""Tasks have an owner: none is forgotten, and none fails in silence."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from xenpvd.tasks import Tasks


async def fail() -> None:
    raise ZeroDivisionError("ours")


async def test_a_result() -> None:
    async def answer() -> int:
        return 42

    task = Tasks().spawn(answer(), "answer")
    assert task.get_name() == "answer" and await task == 42


async def test_a_task_is_kept_though_nobody_holds_it() -> None:
    done, go = asyncio.Event(), asyncio.Event()
    tasks = Tasks()

    async def work() -> None:
        await go.wait()
        done.set()

    tasks.spawn(work(), "work")
    await asyncio.sleep(0)
    gc.collect()
    go.set()
    async with asyncio.timeout(5):
        await done.wait()


async def test_a_fault_reaches_the_owner() -> None:
    """P16."""
    faults: list[tuple[str, str]] = []
    tasks = Tasks(lambda name, fault: faults.append((name, repr(fault))))
    tasks.spawn(fail(), "disk xvda")
    for _ in range(3):
        await asyncio.sleep(0)
    assert faults == [("disk xvda", "ZeroDivisionError('ours')")]


async def test_without_an_owner_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    Tasks().spawn(fail(), "disk xvda")
    for _ in range(3):
        await asyncio.sleep(0)
    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.ERROR, "task disk xvda failed")
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError


async def test_a_cancelled_task_is_no_fault() -> None:
    faults: list[str] = []
    tasks = Tasks(lambda name, fault: faults.append(name))
    task = tasks.spawn(asyncio.Event().wait(), "waits")
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert faults == []


async def test_cancel_waits_until_all_have_ended() -> None:
    ended: list[str] = []
    tasks = Tasks()

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # an end that takes a while
            ended.append(name)

    for name in "ab":
        tasks.spawn(work(name), name)
    await asyncio.sleep(0)
    await tasks.cancel()
    assert sorted(ended) == ["a", "b"]
    await tasks.cancel()


async def test_a_task_may_cancel_the_others_and_go_on() -> None:
    tasks = Tasks()
    other = tasks.spawn(asyncio.Event().wait(), "other")

    async def last() -> str:
        await tasks.cancel()
        return "still here"

    assert await tasks.spawn(last(), "last") == "still here"
    assert other.cancelled()


async def test_cancel_takes_a_fault_at_the_end_calmly() -> None:
    faults: list[str] = []
    tasks = Tasks(lambda name, fault: faults.append(name))

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await fail()

    tasks.spawn(work(), "work")
    await asyncio.sleep(0)
    await tasks.cancel()
    assert faults == ["work"]
