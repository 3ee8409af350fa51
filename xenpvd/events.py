"""The event log: what happened, in order, with a number; kept for replay and handed to subscribers.

Publishing never blocks and never fails: a subscriber that does not read loses its oldest events and is
told so by ``events.lost``; the guest is never the one to wait.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from xenpvd.figures import EventStats

#: The door that everything inside gets: ``publish("guest.state", from_="running", to="stopped")``.
Publish = Callable[..., None]

BACKLOG = 4096
QUEUE = 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. ``seq`` grows by one within ``EventLog.epoch``; ``time`` is Unix seconds."""

    seq: int
    time: float
    name: str
    data: dict[str, Any] = field(default_factory=dict)


class Subscription:
    """A bounded queue of events whose names match any of ``patterns`` (``fnmatch``, "drive.*").

    Iterate it with ``async for``; ``close()`` ends the iteration.
    """

    def __init__(self, log: EventLog, patterns: Iterable[str], limit: int = QUEUE) -> None:
        self._log = log
        self._patterns = tuple(patterns)
        self._limit = limit
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._lost: tuple[int, int] | None = None
        self._closed = False

    def matches(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._patterns)

    def offer(self, event: Event) -> None:
        if not self.matches(event.name):
            return
        if len(self._queue) >= self._limit:
            dropped = self._queue.popleft().seq
            self._log.lost += 1
            self._lost = (self._lost[0] if self._lost else dropped, dropped)
        self._queue.append(event)
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._log.forget(self)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while (event := self.take()) is None:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return event

    def take(self) -> Event | None:
        """The next one, if it is there already."""
        if not self._queue:
            return None
        if self._lost is not None:
            first, last = self._lost
            self._lost = None
            return Event(last, time.time(), "events.lost", {"from": first, "to": last})
        return self._queue.popleft()


class EventLog:
    """Numbers, keeps (the last ``BACKLOG``) and distributes events. Loop thread only."""

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(8)
        self.seq = 0
        #: events that a subscriber did not read in time
        self.lost = 0
        self._backlog: deque[Event] = deque(maxlen=BACKLOG)
        self._subscriptions: list[Subscription] = []

    def publish(self, name: str, /, **data: Any) -> None:
        """Record an event and offer it to every subscriber. A trailing underscore is dropped from a key
        (``from_`` becomes ``from``)."""
        self.seq += 1
        event = Event(self.seq, time.time(), name, {key.rstrip("_"): value for key, value in data.items()})
        self._backlog.append(event)
        for subscription in tuple(self._subscriptions):
            subscription.offer(event)

    def subscribe(
        self, patterns: Iterable[str] = ("*",), since: int | None = None, epoch: str | None = None
    ) -> tuple[Subscription, int, int]:
        """Subscribe, replaying what came after ``since`` (of ``epoch``; another epoch replays all).

        Returns the subscription, the number of events replayed and the number lost (too old to replay).
        """
        subscription = Subscription(self, patterns, limit=QUEUE)
        replayed = lost = 0
        if since is not None:
            if epoch is not None and epoch != self.epoch:
                since = 0
            oldest = self._backlog[0].seq if self._backlog else self.seq + 1
            kept = [e for e in self._backlog if e.seq > since and subscription.matches(e.name)]
            lost = max(0, oldest - 1 - since) + max(0, len(kept) - QUEUE)
            for event in kept[-QUEUE:]:
                subscription.offer(event)
            replayed = min(len(kept), QUEUE)
        self._subscriptions.append(subscription)
        return subscription, replayed, lost

    def stats(self) -> EventStats:
        return EventStats(self.seq, self.lost, len(self._subscriptions))

    def forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def history(self, patterns: Iterable[str] = ("*",)) -> list[Event]:
        """The kept events whose names match, oldest first."""
        patterns = tuple(patterns)
        return [e for e in self._backlog if any(fnmatchcase(e.name, p) for p in patterns)]
