"""The messages that wait for a slow reader, and the bounds on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from xenpvd.abi.io_xs_wire import XS_WATCH_EVENT, XSD_SOCKMSG
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.wire import Message, encode

#: Bytes that wait for one reader, whoever it is, before its events are dropped
BYTES_MAX = 4 << 20


class _Waiting(NamedTuple):
    message: Message
    since: float

    @property
    def is_event(self) -> bool:
        return self.message.type == XS_WATCH_EVENT

    @property
    def size(self) -> int:
        return XSD_SOCKMSG.size + len(self.message.payload)


class Outbox:
    """First in, first out. An event equal to one that waits is merged with it, except for ``@name``s.

    Events are dropped beyond the quotas, or when they have waited for too long by ``clock`` (seconds) and
    another one comes; ``on_drop`` is called for the first since the reader last took something, and may
    :meth:`clear` it. The connection is deaf from an event that had no room until the reader takes something,
    or the oldest event has waited for too long.
    Replies are never dropped: whoever handles requests must stop while the reader is :attr:`behind`.
    """

    def __init__(
        self, connection: Connection, clock: Callable[[], float], on_drop: Callable[[], None]
    ) -> None:
        self._connection = connection
        connection.clock = clock
        self._domain = connection.domain
        self._clock = clock
        self._on_drop = on_drop
        self._queue: deque[_Waiting] = deque()
        self._events: set[bytes] = set()
        #: what is left of the message that is on its way
        self._sending = memoryview(b"")
        self._sending_reply = False
        self._replies = 0
        self._bytes = 0  # of all that waits
        self._dropping = False

    @property
    def empty(self) -> bool:
        return not (self._queue or self._sending)

    @property
    def outstanding(self) -> int:
        """Replies that are not wholly sent."""
        return self._replies + self._sending_reply

    @property
    def behind(self) -> bool:
        """So much waits that no more requests are to be taken, until something is read."""
        domain = self._domain
        return not self.empty and (
            self.outstanding >= domain.quota.outstanding or domain.memory > domain.quota.memory
        )

    def put(self, message: Message) -> None:
        waiting = _Waiting(message, self._clock())
        if not waiting.is_event:
            self._replies += 1
            self._domain.outstanding += 1
            self._append(waiting)
            return
        if message.payload in self._events:
            return
        dropped = self._expire(waiting.since - self._domain.quota.event_timeout)
        full = not self._has_room(waiting.size)
        if full:
            self._connection.deaf_until = self._oldest_event() + self._domain.quota.event_timeout
        else:
            self._connection.deaf_until = 0.0
            if not message.payload.startswith(b"@"):
                self._events.add(message.payload)
            self._append(waiting)
        if (full or dropped) and not self._dropping:
            self._dropping = True
            self._on_drop()  # last, as it may end with :meth:`clear`

    def _has_room(self, size: int) -> bool:
        """For one more event. There always is for one, as a domain that owns too much must get on, too."""
        domain = self._domain
        no_event = len(self._queue) == self._replies and (not self._sending or self._sending_reply)
        return no_event or (
            len(self._queue) - self._replies < domain.quota.watch_events
            and self._bytes < BYTES_MAX
            and domain.memory + size <= domain.quota.memory
        )

    def _append(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        self._charge(waiting.size)

    def _charge(self, size: int) -> None:
        self._bytes += size
        self._domain.memory += size

    def head(self) -> memoryview:
        """The bytes to send next, empty if there are none."""
        if not self._sending and self._queue:
            waiting = self._queue.popleft()
            self._charge(-waiting.size)
            self._sending = memoryview(encode(waiting.message))
            self._sending_reply = not waiting.is_event
            if self._sending_reply:
                self._replies -= 1
            else:
                self._events.discard(waiting.message.payload)
        return self._sending

    def sent(self, length: int) -> None:
        """``length`` bytes of :meth:`head` have gone."""
        self._dropping, self._connection.deaf_until = False, 0.0
        self._sending = self._sending[length:]
        if not self._sending and self._sending_reply:
            self._sending_reply = False
            self._domain.outstanding -= 1

    def clear(self) -> None:
        """Forget everything: the reader has gone, or begins anew."""
        self._charge(-self._bytes)
        self._domain.outstanding -= self.outstanding
        self._queue.clear()
        self._events.clear()
        self._sending = memoryview(b"")
        self._sending_reply = self._dropping = False
        self._connection.deaf_until = 0.0
        self._replies = 0

    def _oldest_event(self) -> float:
        """Since when it waits."""
        return next((waiting.since for waiting in self._queue if waiting.is_event), inf)

    def _expire(self, before: float) -> bool:
        """Drop the events that wait since before that time; were there any?"""
        if self._oldest_event() >= before:
            return False
        kept = deque(waiting for waiting in self._queue if not waiting.is_event or waiting.since >= before)
        self._charge(sum(waiting.size for waiting in kept) - self._bytes)
        self._queue = kept
        self._events = {w.message.payload for w in kept if w.is_event and w.message.payload[:1] != b"@"}
        return True
