"""What goes on and on, on a connection of its own, and comes back when that is lost."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from xenpvd.client.errors import ConnectionLost, Unreachable
from xenpvd.client.wire import Wire
from xenpvd.errors import LimitReached

T = TypeVar("T")

#: What may be otherwise in a moment.
PASSING = (ConnectionLost, Unreachable, LimitReached)


@dataclass(frozen=True)
class Retry:
    """How to wait for a daemon that is away: not at all at first, then ``first`` seconds, then twice as
    long each time, at most ``longest``. After ``patience`` seconds of that it is given up; None:
    never."""

    first: float = 0.1
    longest: float = 5.0
    patience: float | None = None
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep

    def pauses(self) -> Iterator[float]:
        waited, pause = 0.0, 0.0
        while self.patience is None or waited < self.patience:
            yield pause
            waited += pause
            pause = min(max(2 * pause, self.first), self.longest)


class Stream(ABC, Generic[T]):
    """An async iterator, for one reader. It may be cancelled while it waits, and asked again; it is also
    an async context manager, whose end closes the connection.

    Iterating raises what a daemon refuses, and what keeps it away when ``retry`` gives up.
    """

    def __init__(self, opener: Callable[[], Awaitable[Wire]], retry: Retry) -> None:
        self._opener = opener
        self._retry = retry
        self._pauses = retry.pauses()
        self._wire: Wire | None = None
        self._closed = False

    @abstractmethod
    async def _begin(self, wire: Wire) -> None:
        """Ask on a new connection for what shall come."""

    @abstractmethod
    async def _next(self, wire: Wire) -> T | None:
        """The next item; None for something that is none."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._closed:
            try:
                wire = self._wire or await self._open()
                item = await self._next(wire)
            except PASSING as fault:
                await self._drop()
                await self._pause(fault)
                continue
            if item is not None:
                self._pauses = self._retry.pauses()  # all is well
                return item
        raise StopAsyncIteration

    async def _open(self) -> Wire:
        wire = await self._opener()
        try:
            await self._begin(wire)
        except BaseException:
            await wire.close()
            raise
        if self._closed:
            await wire.close()
        self._wire = wire
        return wire

    async def _pause(self, fault: Exception) -> None:
        if self._closed:
            return
        pause = next(self._pauses, None)
        if pause is None:
            raise fault
        await self._retry.sleep(pause)

    async def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    async def aclose(self) -> None:
        """End the connection, and the iteration. Idempotent."""
        self._closed = True
        await self._drop()

    def __del__(self) -> None:
        if self._wire is not None:  # left by a break
            self._wire.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
