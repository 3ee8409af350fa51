"""Jobs: work that outlasts its call. How far each is, what became of it, and giving it up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator
from functools import partial
from itertools import count
from typing import Any

from xenpvd.errors import LimitReached, NotFound, StateError, TimedOut
from xenpvd.events import Publish
from xenpvd.tasks import Tasks, in_thread
from xenpvd.views import JobError, JobInfo, JobProgress, JobState

#: Jobs that go on at once, and those that are over and still told of
RUNNING_MAX = 4
KEPT = 32
#: Seconds between two events of one job's progress
PROGRESS_PAUSE = 0.5
#: Seconds that the daemon's end waits for jobs to tidy up
GRACE = 5.0

#: A job's work, a step at a time, each in a thread: yields how much is done by now and returns the result.
#: Given up, it is closed between two steps (GeneratorExit), and leaves nothing behind.
Work = Generator[int, None, dict[str, Any]]


class _Job:
    def __init__(self, number: int, kind: str, total: int, unit: str) -> None:
        self.number, self.kind, self.total, self.unit = number, kind, total, unit
        self.state = JobState.RUNNING
        self.begun = time.time()
        self.ended: float | None = None
        self.done = 0
        self.told = 0.0  # its progress, by an event: loop time
        self.unwanted = False
        self.over = asyncio.Event()
        self.result: dict[str, Any] | None = None
        self.error: JobError | None = None

    def info(self) -> JobInfo:
        progress = JobProgress(self.done, self.total, self.unit)
        return JobInfo(
            self.number, self.kind, self.state, self.begun, self.ended, progress, self.result, self.error
        )


class Jobs:
    """Loop thread only. ``error_of`` makes of an exception what a reply would tell: code, message, data.

    Events ``job.status`` {job, kind, state, error} and ``job.progress`` {job, done, total, unit}.
    """

    def __init__(
        self, publish: Publish, error_of: Callable[[Exception, str], tuple[int, str, dict[str, Any]]]
    ) -> None:
        self._publish = publish
        self._error_of = error_of
        self._jobs: dict[int, _Job] = {}
        self._numbers = count(1)
        self._tasks = Tasks()
        self._closing = False

    def start(self, kind: str, work: Work, total: int, unit: str) -> JobInfo:
        """Begin; ``kind`` is the method that asked for it. Raises :class:`LimitReached`, and
        :class:`StateError` when the daemon ends."""
        if self._closing:
            raise StateError(f"cannot begin {kind}: the daemon ends.", "stopping", ["running"])
        running = [job for job in self._jobs.values() if job.state is JobState.RUNNING]
        if len(running) >= RUNNING_MAX:
            why = f"{RUNNING_MAX} jobs go on already. Wait for one, or cancel it (job.list)."
            raise LimitReached(f"cannot begin {kind}: {why}", limit=RUNNING_MAX)
        job = _Job(next(self._numbers), kind, total, unit)
        self._jobs[job.number] = job
        self._tell(job)
        self._tasks.spawn(self._run(job, work), f"job {job.number}, {kind}")
        return job.info()

    def listing(self) -> list[JobInfo]:
        """Those that go on and the last ones that are over, oldest first."""
        return [job.info() for job in self._jobs.values()]

    def get(self, number: int) -> JobInfo:
        """Raises :class:`NotFound`."""
        return self._get(number).info()

    async def wait(self, number: int, timeout: float) -> JobInfo:
        """Until it is over. Raises :class:`NotFound`, and :class:`TimedOut`; it goes on then."""
        return await self._over(self._get(number), timeout, "Ask again, or cancel it (job.cancel).")

    async def cancel(self, number: int, timeout: float) -> JobInfo:
        """Give it up; what it is when it is over: ``cancelled``, or what it had come to by itself if that was
        too late. Raises as :meth:`wait`, if a step of it does not end; it stays given up."""
        job = self._get(number)
        job.unwanted = True
        return await self._over(job, timeout, "It ends with the step that it is at; its storage may hang.")

    async def close(self) -> None:
        """The daemon ends: all are given up."""
        self._closing = True
        for job in self._jobs.values():
            job.unwanted = True
        waiting = [job.over.wait() for job in self._jobs.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await asyncio.gather(*waiting)
        await self._tasks.cancel()

    def _get(self, number: int) -> _Job:
        if number not in self._jobs:
            why = f"there is no job {number}, or it was over long ago. See job.list."
            raise NotFound(why, "job", str(number))
        return self._jobs[number]

    async def _over(self, job: _Job, timeout: float, cure: str) -> JobInfo:
        try:
            async with asyncio.timeout(timeout):
                await job.over.wait()
        except TimeoutError:
            why = f"job {job.number} ({job.kind}) is not over after {timeout:g} s. {cure}"
            raise TimedOut(why, job=job.number) from None
        return job.info()

    async def _run(self, job: _Job, work: Work) -> None:
        try:
            while not job.unwanted:
                # one that ends too late for the daemon is closed then
                done, result = await in_thread(partial(_step, work), drop=lambda _: work.close())
                if result is not None:
                    job.done, job.result = job.total, result
                    return self._end(job, JobState.DONE)
                job.done = done
                self._progress(job)
            await in_thread(work.close)
            self._end(job, JobState.CANCELLED)
        except asyncio.CancelledError:  # the daemon can wait no longer
            why = f"{job.kind} was given up amid a step: its storage hangs. Look whether it has left a file."
            job.error = JobError(*self._error_of(TimedOut(why), job.kind))
            self._end(job, JobState.FAILED)
            raise
        except Exception as fault:
            work.close()  # if the host has given no thread for a step
            job.error = JobError(*self._error_of(fault, job.kind))
            self._end(job, JobState.FAILED)

    def _progress(self, job: _Job) -> None:
        now = asyncio.get_running_loop().time()
        if now - job.told >= PROGRESS_PAUSE:
            job.told = now
            self._publish("job.progress", job=job.number, done=job.done, total=job.total, unit=job.unit)

    def _end(self, job: _Job, state: JobState) -> None:
        job.state, job.ended = state, time.time()
        job.over.set()
        over = [number for number, each in self._jobs.items() if each.over.is_set()]
        for number in over[:-KEPT]:
            del self._jobs[number]
        self._tell(job)

    def _tell(self, job: _Job) -> None:
        self._publish("job.status", job=job.number, kind=job.kind, state=job.state, error=job.error)


def _step(work: Work) -> tuple[int, dict[str, Any] | None]:
    """What is done, and the result once all is."""
    try:
        return next(work), None
    except StopIteration as end:  # which no future takes
        return 0, end.value
