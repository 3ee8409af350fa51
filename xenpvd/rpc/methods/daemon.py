"""The daemon itself, its API and its events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cache
from typing import Any

from xenpvd.events import Subscription
from xenpvd.rpc import models, results, schema
from xenpvd.rpc.registry import METHODS, Call, Note, method
from xenpvd.views import DaemonInfo, LogRecord, Reloaded


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
async def daemon_ping(call: Call, params: models.NoParams) -> results.Pong:
    """Answer at once, with the place in the event log."""
    events = call.service.events
    return results.Pong(epoch=events.epoch, seq=events.seq)


@method("daemon.quit", "admin")
async def daemon_quit(call: Call, params: models.QuitParams) -> results.Quitting:
    """End the daemon; with a guest that is not over, only if it is said what becomes of it.

    Answers at once; the connection's end tells when it is done. Once it has begun, ``destroy`` hurries it.
    """
    call.service.daemon_quit(params.guest)
    return results.Quitting(stopping=True)


@method("daemon.reload", "admin")
async def daemon_reload(call: Call, params: models.NoParams) -> Reloaded:
    """Read the definition's file anew, and open log files anew.

    What may change while the guest runs counts at once, the rest with its next start or with a new
    daemon. A file that cannot be used changes nothing. Who is connected keeps its role; [access] is for those
    who come.
    """
    return await call.service.daemon_reload()


@method("log.set_level", "admin")
async def log_set_level(call: Call, params: models.LogLevelParams) -> results.LevelSet:
    """How much the daemon writes into its own log, or a part of it, from now on."""
    call.service.log_set_level(params.logger, params.level)
    return results.LevelSet(logger=params.logger, level=params.level)


@method("log.tail", "viewer")
async def log_tail(call: Call, params: models.LogTailParams) -> list[LogRecord]:
    """The newest records of the daemon's own log, oldest first; the last 1000 are kept."""
    return call.service.log_tail(params.max, params.level, params.logger)


@method("events.subscribe", "viewer")
async def events_subscribe(call: Call, params: models.SubscribeParams) -> results.Subscribed:
    """Send ``event`` notifications of these names on this connection, instead of any asked for before.

    Replayed events come right after this reply. A client that does not read loses the oldest, and is told by
    an event ``events.lost``.
    """
    stream, events = call.client.stream, call.service.events
    subscription, replayed, lost = events.subscribe(params.names, params.since, params.epoch)
    stream.feed(call, "events", _notes(events.epoch, subscription), subscription.close)
    return results.Subscribed(seq=events.seq, epoch=events.epoch, replayed=replayed, lost=lost)


async def _notes(epoch: str, subscription: Subscription) -> AsyncIterator[Note]:
    async for event in subscription:
        yield "event", results.note(epoch, event)


@method("events.unsubscribe", "viewer")
async def events_unsubscribe(call: Call, params: models.NoParams) -> results.Removed:
    """Send no more events on this connection."""
    return results.Removed(removed=call.client.stream.end_feed("events"))


@method("events.history", "viewer")
async def events_history(call: Call, params: models.HistoryParams) -> list[results.EventNote]:
    """The newest kept events of these names, oldest first."""
    log = call.service.events
    return [results.note(log.epoch, event) for event in log.history(params.names)[-params.max :]]
