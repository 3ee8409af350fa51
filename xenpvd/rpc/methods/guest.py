"""The guest: its lives, its vCPUs and its memory."""

from __future__ import annotations

from xenpvd import config
from xenpvd.config import GuestConfig
from xenpvd.errors import BadConfig
from xenpvd.figures import GuestStats
from xenpvd.rpc import models, results
from xenpvd.rpc.registry import Call, method
from xenpvd.views import GuestStatus, JobInfo, MemoryInfo, MemoryTarget, ShutdownResult, VcpuInfo, VcpusSet


@method("guest.status", "viewer")
async def guest_status(call: Call, params: models.NoParams) -> GuestStatus:
    """Where the guest is, and what it runs on."""
    return call.service.guest_status()


@method("guest.config", "viewer")
async def guest_config(call: Call, params: models.NoParams) -> GuestConfig:
    """The guest's definition, defaults filled in."""
    return call.service.guest_config()


@method("guest.stats", "viewer")
async def guest_stats(call: Call, params: models.NoParams) -> GuestStats:
    """What is counted of the guest and its daemon; http.sock has it for Prometheus, as /metrics."""
    return await call.service.guest_stats()


@method("guest.check", "operator")
async def guest_check(call: Call, params: models.CheckParams) -> results.Problems:
    """Every problem that guest.start would meet with this definition. No effect."""
    try:
        found = await call.service.guest_check(config.parse(params.config, "the definition"))
    except BadConfig as fault:
        found = fault.problems
    return results.Problems(problems=[results.Problem(loc=loc, msg=msg) for loc, msg in found])


@method("guest.start", "operator")
async def guest_start(call: Call, params: models.StartParams) -> GuestStatus:
    """Start the guest; guest.wait tells how far its boot has come."""
    return await call.service.guest_start(params.config, params.paused)


@method("guest.pause", "operator")
async def guest_pause(call: Call, params: models.NoParams) -> GuestStatus:
    """Stop the guest's vCPUs where they are, until guest.resume.

    Disks and console go on, so what it had asked for before is done. It is no fault if it is paused already.
    """
    return await call.service.guest_pause()


@method("guest.resume", "operator")
async def guest_resume(call: Call, params: models.NoParams) -> GuestStatus:
    """Let the vCPUs of a paused guest run on."""
    return await call.service.guest_resume()


@method("guest.shutdown", "operator")
async def guest_shutdown(call: Call, params: models.ShutdownParams) -> ShutdownResult:
    """Ask the guest to shut itself down, and wait until it has."""
    return await call.service.guest_shutdown(params.mode, params.timeout, params.then)


@method("guest.reset", "operator")
async def guest_reset(call: Call, params: models.NoParams) -> GuestStatus:
    """End the guest at once and boot it again, as by a reset button."""
    return await call.service.guest_reset()


@method("guest.dump", "admin")
async def guest_dump(call: Call, params: models.DumpParams) -> JobInfo:
    """Write what a developer wants to see of a guest that misbehaves into a file; answers with the job.

    The daemon writes it, with its own rights. Its result: ``file`` and ``size``; with the memory also
    ``core``, ``core_size`` and ``live``, which tells whether the guest ran on meanwhile; ``missing`` is what
    could not be had, and why.
    """
    return await call.service.guest_dump(params.file, params.memory)


@method("guest.sysrq", "operator", wait=True)
async def guest_sysrq(call: Call, params: models.SysrqParams) -> results.Pressed:
    """Press a SysRq key; answers when the guest has taken it."""
    await call.service.guest_sysrq(params.key, params.timeout)
    return results.Pressed(key=params.key)


@method("guest.destroy", "operator")
async def guest_destroy(call: Call, params: models.NoParams) -> GuestStatus:
    """End the guest at once, as by pulling the plug."""
    return await call.service.guest_destroy()


@method("guest.wait", "viewer", wait=True)
async def guest_wait(call: Call, params: models.WaitParams) -> GuestStatus:
    """Wait for a boot phase, a state or a text on the console."""
    return await call.service.guest_wait(params.for_, params.timeout, params.since)


@method("vcpu.list", "viewer")
async def vcpu_list(call: Call, params: models.VcpuListParams) -> list[VcpuInfo]:
    """The virtual CPUs: whether the guest uses them, what they do, and their registers if asked for."""
    return await call.service.vcpu_list(params.regs)


@method("vcpu.set_online", "operator", wait=True)
async def vcpu_set_online(call: Call, params: models.SetOnlineParams) -> VcpusSet:
    """Ask the guest to use its first so many vCPUs.

    It waits until the guest has done it. When the time is up it fails with TIMEOUT; the guest may still do it
    later, as it may if the client leaves meanwhile.
    """
    return await call.service.vcpu_set_online(params.count, params.wait, params.timeout)


@method("memory.info", "viewer")
async def memory_info(call: Call, params: models.NoParams) -> MemoryInfo:
    """The guest's memory: what it has, what it has given back, and what the host holds for it."""
    return await call.service.memory_info()


@method("memory.set_target", "operator", wait=True)
async def memory_set_target(call: Call, params: models.SetTargetParams) -> MemoryTarget:
    """Ask the guest's balloon to make the VM so large: down to give memory back, up to take it again.

    It waits until the guest has done it. When the time is up it fails with TIMEOUT; the guest may still do it
    later, as it may if the client leaves meanwhile.
    """
    return await call.service.memory_set_target(params.mib, params.wait, params.timeout)
