"""QMP's commands about the machine: what it is, where it is, and its power."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import Field

from xenpvd.errors import XenstoreFault
from xenpvd.rpc import results
from xenpvd.rpc.models import InjectParams, NoParams, Params
from xenpvd.rpc.qmp.monitor import Monitor
from xenpvd.rpc.qmp.protocol import VERSION, Refused
from xenpvd.rpc.qmp.registry import COMMANDS, command
from xenpvd.views import Runstate

#: Seconds after which a guest that has not taken the wish to power down is not asked any more.
POWERDOWN_TIME = 300.0

_STATES = {
    Runstate.DEFINED: "prelaunch",
    Runstate.STARTING: "prelaunch",
    Runstate.RUNNING: "running",
    Runstate.PAUSED: "paused",
    Runstate.STOPPING: "shutdown",
    Runstate.STOPPED: "shutdown",
    Runstate.CRASHED: "guest-panicked",
}


class CapabilitiesParams(Params):
    enable: list[str] = Field([], max_length=0)  # none are offered


class HumanParams(Params):
    command_line: str = Field(alias="command-line")
    cpu_index: int | None = Field(None, alias="cpu-index")


@command("qmp_capabilities")
async def qmp_capabilities(monitor: Monitor, params: CapabilitiesParams) -> None:
    """The session does the rest."""


@command("query-version")
async def query_version(monitor: Monitor, params: NoParams) -> dict[str, Any]:
    return VERSION


@command("query-commands")
async def query_commands(monitor: Monitor, params: NoParams) -> list[dict[str, Any]]:
    return [{"name": name} for name in sorted(COMMANDS)]


@command("human-monitor-command")
async def human_monitor_command(monitor: Monitor, params: HumanParams) -> None:
    raise Refused("cannot run a human monitor command: there is no such monitor here. Use xenpvctl.")


@command("query-name")
async def query_name(monitor: Monitor, params: NoParams) -> dict[str, Any]:
    return {"name": monitor.service.guest_status().name}


@command("query-uuid")
async def query_uuid(monitor: Monitor, params: NoParams) -> dict[str, Any]:
    """As the guest reads it; zeros while there is none."""
    domid = monitor.service.guest_status().domid
    try:
        vm = monitor.service.xenstore.read(f"/local/domain/{domid}/vm").decode("ascii", "replace")
    except XenstoreFault:
        vm = ""
    return {"UUID": vm.removeprefix("/vm/") or str(UUID(int=0))}


@command("query-kvm")
async def query_kvm(monitor: Monitor, params: NoParams) -> dict[str, Any]:
    return {"enabled": True, "present": True}


@command("query-status")
async def query_status(monitor: Monitor, params: NoParams) -> dict[str, Any]:
    state = monitor.service.guest_status().state
    return {"status": _STATES[state], "running": state is Runstate.RUNNING}


@command("query-cpus-fast")
async def query_cpus_fast(monitor: Monitor, params: NoParams) -> list[dict[str, Any]]:
    return [
        {
            "cpu-index": cpu.id,
            "qom-path": f"/machine/cpu[{cpu.id}]",
            "thread-id": -1,  # not told: no number that a client could take for a thread's
            "props": {"socket-id": cpu.id, "core-id": 0, "thread-id": 0},
            "target": "x86_64",
        }
        for cpu in await monitor.service.vcpu_list(False)
    ]


@command("stop")
async def stop(monitor: Monitor, params: NoParams) -> None:
    await monitor.service.guest_pause()


@command("cont")
async def cont(monitor: Monitor, params: NoParams) -> None:
    """It begins the boot of a guest that has been defined only, as after ``qemu -S``."""
    if monitor.service.guest_status().state is Runstate.DEFINED:
        await monitor.service.guest_start(None, False)
    else:
        await monitor.service.guest_resume()


@command("system_powerdown")
async def system_powerdown(monitor: Monitor, params: NoParams) -> None:
    asking = monitor.service.guest_shutdown("poweroff", POWERDOWN_TIME, "fail")
    await monitor.begin("system_powerdown", asking)


@command("system_reset")
async def system_reset(monitor: Monitor, params: NoParams) -> None:
    await monitor.service.guest_reset()


@command("quit")
async def quit_(monitor: Monitor, params: NoParams) -> None:
    """At once, as QEMU does: the guest is not asked."""
    await monitor.service.guest_destroy()
    monitor.service.daemon_quit("destroy")


@command("xen-event-list")
async def xen_event_list(monitor: Monitor, params: NoParams) -> list[dict[str, Any]]:
    return [results.evtchn_info(port).model_dump(by_alias=True) for port in monitor.service.evtchn_list()]


@command("xen-event-inject")
async def xen_event_inject(monitor: Monitor, params: InjectParams) -> None:
    monitor.service.evtchn_inject(params.port)
