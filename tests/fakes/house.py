"""A guest with its events, on machines without KVM and on a clock that only tests advance."""

from __future__ import annotations

import asyncio
from typing import Any

from xenpvd.backoff import Backoff
from xenpvd.events import EventLog
from xenpvd.guest import Guest
from xenpvd.views import Runstate


class Clock:
    """Seconds for a Backoff; who sleeps is woken by :meth:`advance`."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        #: what was slept, in order
        self.slept: list[float] = []
        self._advanced = asyncio.Event()
        self._asleep = asyncio.Event()

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._asleep.set()
        until = self.seconds + seconds
        while self.seconds < until:
            await self._advanced.wait()

    async def until_slept(self, times: int) -> None:
        """Wait until somebody has begun to sleep for the ``times``-th time."""
        async with asyncio.timeout(5):
            while len(self.slept) < times:
                self._asleep.clear()
                await self._asleep.wait()

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self._advanced.set()
        self._advanced = asyncio.Event()


class House:
    """``over`` counts how often the guest said that its daemon is over."""

    def __init__(self) -> None:
        self.events = EventLog()
        self.clock = Clock()
        self.over = 0
        self.guest = Guest(self.events.publish, self._on_end, Backoff(self.clock.now, self.clock.sleep))

    def _on_end(self) -> None:
        self.over += 1

    @property
    def states(self) -> list[str]:
        return [data["to"] for data in self.told("guest.state")]

    @property
    def reason(self) -> str | None:
        return self.guest.status("web1").reason

    def told(self, name: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events.history((name,))]

    async def event(self, name: str) -> dict[str, Any]:
        """The first event of that name, past or to come."""
        subscription, _, _ = self.events.subscribe((name,), since=0)
        try:
            async with asyncio.timeout(5):
                return (await anext(subscription)).data
        finally:
            subscription.close()

    async def until(self, state: Runstate) -> None:
        await self.guest.wait(state, 5)

    async def until_reason(self, reason: str) -> None:
        async with asyncio.timeout(5):
            await self.guest.progress.until(lambda: self.guest.progress.reason == reason)
