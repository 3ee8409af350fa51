"""The guest's xenstore, as domain 0 sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count, islice

from xenpvd.errors import LimitReached, NotFound, XenstoreFault
from xenpvd.rpc import models, results
from xenpvd.rpc.registry import Call, Note, method
from xenpvd.rpc.service import StoreTx, StoreWatch
from xenpvd.views import XenstoreNode, XenstoreOperation, XenstoreQuota

#: A tree is answered in one message; beyond this a client asks for branches.
TREE_MAX = 10_000
#: Watches of one connection
WATCHES_MAX = 128

_WATCH = "watch "
_numbers = count(1)


@method("xenstore.read", "viewer")
async def xenstore_read(call: Call, params: models.XenstorePathParams) -> results.XenstoreValue:
    """The value of a node."""
    value = call.service.xenstore.read(params.path)
    return results.XenstoreValue(path=params.path, **results.octets(value))


@method("xenstore.list", "viewer")
async def xenstore_list(call: Call, params: models.XenstorePathParams) -> list[str]:
    """The names of a node's children."""
    return call.service.xenstore.directory(params.path)


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
    call.service.xenstore.write(params.path, params.data())
    return results.XenstoreValue(path=params.path, **results.octets(params.data()))


@method("xenstore.remove", "admin")
async def xenstore_remove(call: Call, params: models.XenstorePathParams) -> None:
    """Remove a node and what is below it, as domain 0. If its parent is there, it need not be."""
    call.service.xenstore.remove(params.path)


@method("xenstore.transaction", "admin")
async def xenstore_transaction(
    call: Call, params: models.XenstoreTransactionParams
) -> list[results.XenstoreStep]:
    """Do all of these operations at once, or none of them.

    An ``expect`` that does not hold ends it as a conflict does in xenstore, with error EAGAIN: look again,
    and decide anew. What failed is number ``step`` in the error's data, from 0 on.
    """
    answers = []
    with call.service.xenstore.transaction() as tx:
        for number, step in enumerate(params.steps):
            try:
                answers.append(_do(tx, step))
            except XenstoreFault as fault:
                fault.data["step"] = number
                raise
    return answers


def _do(tx: StoreTx, step: models.XenstoreStep) -> results.XenstoreStep:
    value: bytes | None = None
    names: list[str] | None = None
    match step:
        case models.WriteStep():
            tx.write(step.path, step.data())
        case models.ExpectStep():
            _expect(tx, step)
        case models.SetPermsStep():
            tx.set_perms(step.path, step.perms)
        case models.PathStep(op="read"):
            value = tx.read(step.path)
        case models.PathStep(op="list"):
            names = tx.directory(step.path)
        case models.PathStep(op="get_perms"):
            names = tx.get_perms(step.path)
        case models.PathStep(op="mkdir"):
            tx.mkdir(step.path)
        case models.PathStep(op="remove"):
            tx.remove(step.path)
    octets = results.octets(value) if value is not None else {"text": None, "base64": None}
    return results.XenstoreStep(path=step.path, names=names, **octets)


def _expect(tx: StoreTx, step: models.ExpectStep) -> None:
    wanted = step.wanted()
    try:
        found: bytes | None = tx.read(step.path)
    except XenstoreFault as fault:
        if fault.data["error"] != "ENOENT":
            raise
        found = None
    if found != wanted:
        why = (
            "it is not there"
            if found is None
            else "it is there"
            if wanted is None
            else "it has another value"
        )
        raise XenstoreFault(
            f"nothing was changed: {step.path} is not as expected, {why}. Look again.", "EAGAIN", step.path
        )


@method("xenstore.watch", "viewer")
async def xenstore_watch(call: Call, params: models.XenstorePathParams) -> results.XenstoreWatching:
    """Send ``xenstore.changed`` on this connection when a node changes, or what is below it.

    The first one comes at once, with the path itself. For a client that does not read, equal ones are merged,
    and very many different ones become the path itself: look at all of it then.
    """
    stream = call.client.stream
    if sum(name.startswith(_WATCH) for name in stream.feeds) >= WATCHES_MAX:
        raise LimitReached(
            f"cannot watch {params.path}: this connection has {WATCHES_MAX} watches. End one.",
            limit=WATCHES_MAX,
        )
    watch = call.service.xenstore.watch(params.path)
    number = next(_numbers)
    stream.feed(call, f"{_WATCH}{number}", _changes(number, watch), watch.close)
    return results.XenstoreWatching(watch=number)


async def _changes(number: int, watch: StoreWatch) -> AsyncIterator[Note]:
    async for path in watch:
        yield "xenstore.changed", results.XenstoreChanged(watch=number, path=path)


@method("xenstore.unwatch", "viewer")
async def xenstore_unwatch(call: Call, params: models.XenstoreUnwatchParams) -> None:
    """End a watch of this connection."""
    if not call.client.stream.end_feed(f"{_WATCH}{params.watch}"):
        raise NotFound(
            f"cannot end watch {params.watch}: this connection has none of that number.",
            "watch",
            str(params.watch),
        )


@method("xenstore.history", "viewer")
async def xenstore_history(call: Call, params: models.XenstoreHistoryParams) -> list[XenstoreOperation]:
    """What was asked of the store lately, by whom, and what came of it; oldest first."""
    wanted = (
        operation
        for operation in call.service.xenstore_history()
        if params.domid in (None, operation.domid)
        and any(params.match in argument for argument in operation.arguments or ("",))
    )
    return list(islice(wanted, params.max))[::-1]


@method("xenstore.quotas", "viewer")
async def xenstore_quotas(call: Call, params: models.NoParams) -> list[XenstoreQuota]:
    """How much of the store the guest may take, and what it has taken."""
    return call.service.xenstore_quotas()


@method("xenstore.set_quota", "admin")
async def xenstore_set_quota(call: Call, params: models.XenstoreQuotaParams) -> None:
    """Set one of the guest's quotas. It holds from now on, over reboots too, until the daemon ends."""
    call.service.xenstore_set_quota(params.name, params.limit)
