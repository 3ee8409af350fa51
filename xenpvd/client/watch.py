"""What changes in a guest's xenstore."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from xenpvd.client.stream import Retry, Stream
from xenpvd.client.wire import Wire


class Watch(Stream[str]):
    """The paths that have changed at ``path`` and below. ``path`` itself comes first, and after a lost
    connection: look at all of it then."""

    def __init__(self, opener: Callable[[], Awaitable[Wire]], retry: Retry, path: str) -> None:
        super().__init__(opener, retry)
        self._path = path

    async def _begin(self, wire: Wire) -> None:
        await wire.ask("xenstore.watch", {"path": self._path})

    async def _next(self, wire: Wire) -> str | None:
        match await wire.receive():
            case {"method": "xenstore.changed", "params": {"path": str(path)}}:
                return path
            case _:
                return None
