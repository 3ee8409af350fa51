"""A guest's console as a stream of bytes, each with its number, over lost connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

from xenpvd.client.errors import ConnectionLost, Unreachable
from xenpvd.client.stream import Retry, Stream
from xenpvd.client.wire import Wire
from xenpvd.errors import Busy

Mode = Literal["ro", "rw", "steal"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """``data`` begins at byte ``offset`` of the recording. ``lost`` bytes before it were not kept for us;
    None: the daemon is another one, whose recording begins anew."""

    offset: int
    data: bytes
    lost: int | None = 0


class Console(Stream[Chunk]):
    """Attached once it is entered (``async with``), or iterated; ``mode`` is then rw or ro, ``viewer``
    its number.

    What comes has no gap and no repeat, unless a chunk says so by ``lost``. After a lost connection it
    does not steal the keyboard again: if somebody else has it by then, ``mode`` is ro.
    """

    def __init__(
        self,
        opener: Callable[[], Awaitable[Wire]],
        retry: Retry,
        name: str = "0",
        since: int | None = None,
        mode: Mode = "ro",
    ) -> None:
        super().__init__(opener, retry)
        self.name = name
        self.mode: str = mode
        self.viewer = 0
        self._offset = since
        self._wanted: Mode = mode
        self._epoch: str | None = None
        self._lost: int | None = 0

    @property
    def offset(self) -> int | None:
        """Of the byte that comes next; None while that is not known."""
        return self._offset

    async def __aenter__(self) -> Self:
        """Raises what keeps it from being attached, ``Busy`` if another one has the keyboard."""
        await self._open()
        return self

    async def write(self, data: bytes) -> None:
        """Type ``data``; waits while the guest does not read. That it was taken nobody tells:
        ``console_write`` does. Raises ``Busy`` without the keyboard, and :class:`ConnectionLost`."""
        if self.mode == "ro":
            raise Busy(f"cannot type on console {self.name}: it was attached to look on. Ask for mode rw.")
        if self._wire is None or self._wire.ended:
            raise ConnectionLost(
                f"cannot type on console {self.name}: the connection is lost", maybe_done=False
            )
        self._wire.send(data)
        await self._wire.drain()

    async def _begin(self, wire: Wire) -> None:
        epoch = wire.hello["epoch"]
        again = self._epoch is not None
        if again and epoch != self._epoch:
            self._offset, self._lost = None, None
        params: dict[str, Any] = {"console": self.name, "since": self._offset, "mode": self._wanted}
        try:
            attached = await wire.ask("console.attach", params)
        except Busy:
            if not again:
                raise
            attached = await wire.ask("console.attach", params | {"mode": "ro"})
        match attached:
            case {"mode": str(mode), "offset": int(offset), "viewer": int(viewer)}:
                self.mode, self.viewer = mode, viewer
            case _:
                raise Unreachable(f"cannot read what {wire.path} answers to console.attach. Is it xenpvd's?")
        if self._offset is not None and self._lost is not None:
            self._lost += max(0, offset - self._offset)
        self._epoch, self._offset = epoch, offset
        self._wanted = "rw" if self._wanted == "steal" else self._wanted

    async def _next(self, wire: Wire) -> Chunk:
        data = await wire.receive_raw()
        assert self._offset is not None
        chunk = Chunk(self._offset, data, self._lost)
        self._offset += len(data)
        self._lost = 0
        return chunk
