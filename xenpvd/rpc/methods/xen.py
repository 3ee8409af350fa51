"""The outer Xen from inside: event channels, grants, hypercalls, xenstore."""

from __future__ import annotations

from itertools import islice

from xenpvd.errors import LimitReached
from xenpvd.rpc import models, results
from xenpvd.rpc.registry import Call, method
from xenpvd.views import GrantInfo, HypercallStats, XenstoreNode

#: A tree is answered in one message; beyond this a client asks for branches.
TREE_MAX = 10_000


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


@method("xenstore.read", "viewer")
async def xenstore_read(call: Call, params: models.XenstorePathParams) -> results.XenstoreValue:
    """The value of a node."""
    value = call.service.xenstore_read(params.path)
    return results.XenstoreValue(path=params.path, **results.octets(value))


@method("xenstore.list", "viewer")
async def xenstore_list(call: Call, params: models.XenstorePathParams) -> list[str]:
    """The names of a node's children."""
    return call.service.xenstore_list(params.path)


@method("xenstore.tree", "viewer")
async def xenstore_tree(call: Call, params: models.XenstoreTreeParams) -> list[XenstoreNode]:
    """A node and what is below it, parents first."""
    nodes = list(islice(call.service.xenstore_tree(params.path, params.depth), TREE_MAX + 1))
    if len(nodes) > TREE_MAX:
        raise LimitReached(
            f"cannot list {params.path}: more than {TREE_MAX} nodes. Ask for less depth or a branch of it.",
            limit=TREE_MAX,
        )
    return nodes


@method("xenstore.write", "admin")
async def xenstore_write(call: Call, params: models.XenstoreWriteParams) -> results.XenstoreValue:
    """Set the value of a node, as domain 0; what is missing of it and above it is made."""
    call.service.xenstore_write(params.path, params.data())
    return results.XenstoreValue(path=params.path, **results.octets(params.data()))


@method("xenstore.remove", "admin")
async def xenstore_remove(call: Call, params: models.XenstorePathParams) -> None:
    """Remove a node and what is below it, as domain 0. If its parent is there, it need not be."""
    call.service.xenstore_remove(params.path)
