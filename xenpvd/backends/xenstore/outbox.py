"""The messages that wait for a slow reader, and the bounds on them."""

from __future__ import annotations

from collections import deque

from xenpvd.abi.io_xs_wire import XS_WATCH_EVENT
from xenpvd.backends.xenstore.quota import Quota
from xenpvd.backends.xenstore.wire import Message, encode


class Outbox:
    """First in, first out. An event equal to one that waits is merged with it, except for ``@name``s;
    beyond the quota events are dropped (``dropped`` counts them). Replies are never dropped: whoever handles
    requests must stop while ``outstanding`` has reached the quota."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._queue: deque[Message] = deque()
        self._events: set[bytes] = set()
        #: what is left of the message that is on its way
        self._sending = memoryview(b"")
        self._sending_reply = False
        self._replies = 0
        self.dropped = 0

    @property
    def outstanding(self) -> int:
        """Replies that are not wholly sent."""
        return self._replies + self._sending_reply

    def put(self, message: Message) -> None:
        if message.type != XS_WATCH_EVENT:
            self._replies += 1
        elif message.payload in self._events:
            return
        elif len(self._queue) - self._replies >= self._quota.watch_events:
            self.dropped += 1
            return
        elif not message.payload.startswith(b"@"):
            self._events.add(message.payload)
        self._queue.append(message)

    def head(self) -> memoryview:
        """The bytes to send next, empty if there are none."""
        if not self._sending and self._queue:
            message = self._queue.popleft()
            self._sending = memoryview(encode(message))
            self._sending_reply = message.type != XS_WATCH_EVENT
            if self._sending_reply:
                self._replies -= 1
            else:
                self._events.discard(message.payload)
        return self._sending

    def sent(self, length: int) -> None:
        """``length`` bytes of :meth:`head` have gone."""
        self._sending = self._sending[length:]
        if not self._sending:
            self._sending_reply = False
