"""Jobs: what goes on behind the calls that began it."""

from __future__ import annotations

from xenpvd.rpc import models
from xenpvd.rpc.registry import Call, method
from xenpvd.views import JobInfo


@method("job.list", "viewer")
async def job_list(call: Call, params: models.NoParams) -> list[JobInfo]:
    """Jobs that go on and the last ones that are over, oldest first."""
    return call.service.jobs.listing()


@method("job.get", "viewer")
async def job_get(call: Call, params: models.JobParams) -> JobInfo:
    """How far a job is, or what became of it."""
    return call.service.jobs.get(params.job)


@method("job.wait", "viewer", wait=True)
async def job_wait(call: Call, params: models.JobWaitParams) -> JobInfo:
    """Wait until a job is over, however it ends: its state tells.

    When the time is up it fails with TIMEOUT, and the job goes on.
    """
    return await call.service.jobs.wait(params.job, params.timeout)


@method("job.cancel", "operator", wait=True)
async def job_cancel(call: Call, params: models.JobCancelParams) -> JobInfo:
    """Give a job up, and wait until it is over.

    Its state tells whether that came in time: ``cancelled``, with nothing left behind, or ``done`` or
    ``failed``, as it was by then. TIMEOUT: it is given up, and ends with the step that it is at.
    """
    return await call.service.jobs.cancel(params.job, params.timeout)
