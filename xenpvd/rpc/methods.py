"""The verbs of the daemon, the guest, its drives, its consoles and its xenstore."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

from xenpvd import config
from xenpvd.config import GuestConfig
from xenpvd.errors import BadConfig, Busy, LimitReached
from xenpvd.rpc import models, schema
from xenpvd.rpc.registry import METHODS, Call, method
from xenpvd.views import DaemonInfo, DriveAdded, DriveInfo, GuestStatus, ShutdownResult, XenstoreNode

__all__ = ["METHODS"]

#: A tree is answered in one message; beyond this a client asks for branches.
TREE_MAX = 10_000


@method("rpc.discover", "viewer")
async def discover(call: Call, params: models.NoParams) -> dict[str, Any]:
    """This API as an OpenRPC document."""
    return document()


@cache
def document() -> dict[str, Any]:
    """The OpenRPC document of :data:`METHODS`."""
    return schema.document(METHODS)


@method("daemon.info", "viewer")
async def daemon_info(call: Call, params: models.NoParams) -> DaemonInfo:
    """What this daemon is and can do."""
    return call.service.daemon_info()


@method("daemon.ping", "viewer")
async def daemon_ping(call: Call, params: models.NoParams) -> models.Pong:
    """Answer at once, with the place in the event log."""
    events = call.service.events
    return models.Pong(epoch=events.epoch, seq=events.seq)


@method("daemon.quit", "admin")
async def daemon_quit(call: Call, params: models.NoParams) -> models.Quitting:
    """Shut the guest down, then end the daemon.

    Answers at once; the connection's end tells when it is done.
    """
    call.service.daemon_quit()
    return models.Quitting(stopping=True)


@method("guest.status", "viewer")
async def guest_status(call: Call, params: models.NoParams) -> GuestStatus:
    """Where the guest is, and what it runs on."""
    return call.service.guest_status()


@method("guest.config", "viewer")
async def guest_config(call: Call, params: models.NoParams) -> GuestConfig:
    """The guest's definition, defaults filled in."""
    return call.service.guest_config()


@method("guest.check", "viewer")
async def guest_check(call: Call, params: models.CheckParams) -> models.Problems:
    """Every problem that guest.start would meet with this definition. No effect."""
    try:
        found = await call.service.guest_check(config.parse(params.config, "the definition"))
    except BadConfig as fault:
        found = fault.problems
    return models.Problems(problems=[models.Problem(loc=loc, msg=msg) for loc, msg in found])


@method("guest.start", "operator")
async def guest_start(call: Call, params: models.StartParams) -> GuestStatus:
    """Start the guest; guest.wait tells how far its boot has come."""
    return await call.service.guest_start(params.config)


@method("guest.shutdown", "operator")
async def guest_shutdown(call: Call, params: models.ShutdownParams) -> ShutdownResult:
    """Ask the guest to shut itself down, and wait until it has."""
    return await call.service.guest_shutdown(params.mode, params.timeout, params.then)


@method("guest.destroy", "operator")
async def guest_destroy(call: Call, params: models.NoParams) -> GuestStatus:
    """End the guest at once, as by pulling the plug."""
    return await call.service.guest_destroy()


@method("guest.wait", "viewer", wait=True)
async def guest_wait(call: Call, params: models.WaitParams) -> GuestStatus:
    """Wait for a boot phase, a state or a text on the console."""
    return await call.service.guest_wait(params.for_, params.timeout, params.since)


@method("drive.list", "viewer")
async def drive_list(call: Call, params: models.NoParams) -> list[DriveInfo]:
    """The disks, as both ends see them."""
    return call.service.drive_list()


@method("drive.add", "operator")
async def drive_add(call: Call, params: models.DriveAddParams) -> DriveAdded:
    """Attach a disk, also while the guest runs.

    The very same drive once more is no fault (``changed`` is false); another one of that name is EXISTS.
    """
    return await call.service.drive_add(params.disk(), params.wait, params.timeout)


@method("drive.remove", "operator")
async def drive_remove(call: Call, params: models.DriveRemoveParams) -> models.Removed:
    """Detach a disk; answers when the guest has let go of it."""
    removed = await call.service.drive_remove(params.vdev, params.force, params.missing_ok, params.timeout)
    return models.Removed(removed=removed)


@method("console.read", "viewer")
async def console_read(call: Call, params: models.ConsoleReadParams) -> models.ConsoleData:
    """A piece of what a console has printed."""
    chunk = call.service.console_read(params.stream, params.since, params.max)
    return models.ConsoleData(start=chunk.start, end=chunk.end, lost=chunk.lost, **models.octets(chunk.data))


@method("console.write", "operator", wait=True)
async def console_write(call: Call, params: models.ConsoleWriteParams) -> models.Written:
    """Type on the guest's console; waits while the guest does not read what was typed before.

    When the time is up it fails with TIMEOUT, whose ``written`` is how many bytes the guest was given: the
    rest is not typed, as it is not if the client leaves meanwhile.
    """
    return models.Written(written=await call.service.console_write(params.data(), params.timeout))


@method("console.attach", "operator")
async def console_attach(call: Call, params: models.ConsoleAttachParams) -> models.Attached:
    """Make this connection the guest's console: after the reply it is raw bytes both ways, until it ends.

    The request must be alone: a single one with an id, no other call under way and no events subscribed. Send
    its newline together with it, or none: what follows is typed.
    """
    stream = call.client.stream
    if not call.alone:
        raise Busy(
            "cannot attach on this connection: it has other work (a batch, calls under way or a "
            "subscription). Open one for the console.",
            by="this connection",
        )
    viewer = call.service.console_attach(params.mode, params.since, stream.who)
    stream.become(viewer)
    return models.Attached(mode=viewer.mode, offset=viewer.offset)


@method("xenstore.read", "viewer")
async def xenstore_read(call: Call, params: models.XenstorePathParams) -> models.XenstoreValue:
    """The value of a node."""
    value = call.service.xenstore_read(params.path)
    return models.XenstoreValue(path=params.path, **models.octets(value))


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


@method("events.subscribe", "viewer")
async def events_subscribe(call: Call, params: models.SubscribeParams) -> models.Subscribed:
    """Send ``event`` notifications of these names on this connection, instead of any asked for before.

    Replayed events come right after this reply. A client that does not read loses the oldest, and is told by
    an event ``events.lost``.
    """
    stream, events = call.client.stream, call.service.events
    subscription, replayed, lost = events.subscribe(params.names, params.since, params.epoch)
    stream.follow(subscription)
    call.after_reply.append(lambda: stream.serve_events(subscription))
    return models.Subscribed(seq=events.seq, epoch=events.epoch, replayed=replayed, lost=lost)


@method("events.unsubscribe", "viewer")
async def events_unsubscribe(call: Call, params: models.NoParams) -> models.Removed:
    """Send no more events on this connection."""
    stream = call.client.stream
    subscribed = stream.subscription is not None
    stream.follow(None)
    return models.Removed(removed=subscribed)


@method("events.history", "viewer")
async def events_history(call: Call, params: models.HistoryParams) -> list[models.EventNote]:
    """The newest kept events of these names, oldest first."""
    log = call.service.events
    return [models.note(log.epoch, event) for event in log.history(params.names)[-params.max :]]
