"""Jobs: their states, their bounds, and that what is given up tidies up."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from xenpvd import jobs as module
from xenpvd.errors import HostError, LimitReached, NotFound, StateError
from xenpvd.events import EventLog
from xenpvd.jobs import KEPT, RUNNING_MAX, Jobs, Work
from xenpvd.rpc.errors import fault_of
from xenpvd.views import JobState


@pytest.fixture
def log() -> EventLog:
    return EventLog()


@pytest.fixture
def jobs(log: EventLog) -> Jobs:
    return Jobs(log.publish, fault_of)


class Steps:
    """Work whose second step ends with ``go``."""

    def __init__(self) -> None:
        self.entered, self.go, self.tidy = threading.Event(), threading.Event(), threading.Event()
        self.threads: set[int] = set()

    def __call__(self) -> Work:
        try:
            yield 1
            self.threads.add(threading.get_ident())
            self.entered.set()
            self.go.wait(10)
            yield 2
            return {"n": 3}
        finally:
            self.tidy.set()


async def test_its_steps_are_not_the_loops(jobs: Jobs) -> None:
    steps = Steps()
    steps.go.set()
    jobs.start("x", steps(), 3, "steps")
    assert (await jobs.wait(1, 5)).result == {"n": 3}
    assert threading.get_ident() not in steps.threads and steps.tidy.is_set()


async def test_what_is_given_up_ends_between_two_steps_and_tidies_up(jobs: Jobs, log: EventLog) -> None:
    steps = Steps()
    jobs.start("x", steps(), 3, "steps")
    await asyncio.to_thread(steps.entered.wait, 5)
    with pytest.raises(module.TimedOut):
        await jobs.cancel(1, 0)
    assert jobs.get(1).state is JobState.RUNNING and not steps.tidy.is_set(), "it is at a step"
    steps.go.set()
    job = await jobs.cancel(1, 5)
    assert (job.state, job.result) == (JobState.CANCELLED, None) and steps.tidy.is_set()
    assert [event.data["state"] for event in log.history(("job.status",))] == ["running", "cancelled"]


async def test_one_that_is_over_stays_what_it_is(jobs: Jobs) -> None:
    steps = Steps()
    steps.go.set()
    jobs.start("x", steps(), 3, "steps")
    done = await jobs.wait(1, 5)
    assert await jobs.cancel(1, 5) == done and done.state is JobState.DONE


async def test_the_end_of_its_last_step_comes_before_a_late_wish(jobs: Jobs) -> None:
    entered, go = threading.Event(), threading.Event()

    def last() -> Work:
        entered.set()
        go.wait(10)
        return {}
        yield 0

    jobs.start("x", last(), 1, "steps")
    await asyncio.to_thread(entered.wait, 5)
    with contextlib.suppress(module.TimedOut):
        await jobs.cancel(1, 0)
    go.set()
    assert (await jobs.cancel(1, 5)).state is JobState.DONE


async def test_so_many_at_once_and_so_many_are_kept(jobs: Jobs) -> None:
    steps = [Steps() for _ in range(RUNNING_MAX)]
    for each in steps:
        jobs.start("x", each(), 3, "steps")
    with pytest.raises(LimitReached, match=r"cannot begin x: 4 jobs go on already\."):
        jobs.start("x", Steps()(), 3, "steps")
    for each in steps[1:]:
        each.go.set()
    for number in range(2, RUNNING_MAX + 1):
        await jobs.wait(number, 5)
    for _ in range(KEPT):
        (quick := Steps()).go.set()
        await jobs.wait(jobs.start("x", quick(), 3, "steps").job, 5)
    numbers = [job.job for job in jobs.listing()]
    assert numbers[0] == 1, "that which goes on is never forgotten" and len(numbers) == KEPT + 1
    with pytest.raises(NotFound):
        jobs.get(2)
    steps[0].go.set()
    await jobs.wait(1, 5)


async def test_progress_is_told_now_and_then(
    jobs: Jobs, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def many() -> Work:
        yield from range(50)
        return {}

    monkeypatch.setattr(module, "PROGRESS_PAUSE", 1e9)
    await jobs.wait(jobs.start("x", many(), 50, "steps").job, 10)
    assert len(log.history(("job.progress",))) <= 1
    monkeypatch.setattr(module, "PROGRESS_PAUSE", 0)
    await jobs.wait(jobs.start("x", many(), 50, "steps").job, 10)
    told = [event.data["done"] for event in log.history(("job.progress",)) if event.data["job"] == 2]
    assert told == list(range(50))


async def test_the_daemons_end_gives_all_up(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    good, hanging = Steps(), Steps()
    good.go.set()
    for each in (good, hanging):
        jobs.start("x", each(), 3, "steps")
    await asyncio.to_thread(hanging.entered.wait, 5)
    monkeypatch.setattr(module, "GRACE", 0.01)
    await jobs.close()
    assert good.tidy.is_set() and not hanging.tidy.is_set()
    job = jobs.get(2)  # nobody knows what it will leave behind
    assert job.state is JobState.FAILED and job.error is not None and "its storage hangs" in job.error.message
    with pytest.raises(StateError, match="the daemon ends"):
        jobs.start("x", Steps()(), 3, "steps")
    hanging.go.set()
    await asyncio.to_thread(hanging.tidy.wait, 5)
    assert hanging.tidy.is_set(), "its step has ended, if late"


async def test_a_host_without_threads(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps()

    async def none(*args: object, **kwargs: object) -> None:
        raise HostError("cannot begin a thread: none left. Raise the limit.", 11, "thread")

    monkeypatch.setattr(module, "in_thread", none)
    failed = await jobs.wait(jobs.start("x", steps(), 3, "steps").job, 5)
    assert failed.state is JobState.FAILED and failed.error is not None
    assert failed.error.data["reason"] == "HOST_IO"
