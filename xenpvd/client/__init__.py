"""A client of xenpvd for asyncio programs: docs/client.md. ``connect`` is where to begin; ``shapes`` has
the types of results."""

from __future__ import annotations

from xenpvd.client.console import Chunk, Console
from xenpvd.client.errors import Closed, ConnectionLost, RpcError, Unreachable
from xenpvd.client.events import Event, Events, EventsLost
from xenpvd.client.guest import Guest, connect
from xenpvd.client.stream import Retry
from xenpvd.client.watch import Watch

__all__ = [
    "Chunk",
    "Closed",
    "ConnectionLost",
    "Console",
    "Event",
    "Events",
    "EventsLost",
    "Guest",
    "Retry",
    "RpcError",
    "Unreachable",
    "Watch",
    "connect",
]
