"""The outer Xen from inside: event channels, grants, hypercalls."""

from __future__ import annotations

from xenpvd.rpc import models, results
from xenpvd.rpc.registry import Call, method
from xenpvd.views import GrantInfo, HypercallStats


@method("evtchn.list", "viewer")
async def evtchn_list(call: Call, params: models.NoParams) -> list[results.EvtchnInfo]:
    """The guest's event-channel ports, with the names of QEMU's xen-event-list."""
    return [results.evtchn_info(port) for port in call.service.evtchn_list()]


@method("evtchn.inject", "admin")
async def evtchn_inject(call: Call, params: models.InjectParams) -> results.EvtchnInfo:
    """Raise an event on a port of the guest's, as a lost one would have been; answers with the port."""
    return results.evtchn_info(call.service.evtchn_inject(params.port))


@method("grant.list", "viewer")
async def grant_list(call: Call, params: models.NoParams) -> list[GrantInfo]:
    """What the guest grants, and which of it is in use."""
    return call.service.grant_list()


@method("hypercall.stats", "viewer")
async def hypercall_stats(call: Call, params: models.StatsParams) -> HypercallStats:
    """The hypercalls that have reached the daemon since this boot, by operation and outcome."""
    return call.service.hypercall_stats(params.recent)
