"""What happens to a guest, in order, over lost connections and over restarts of its daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from xenpvd.client.errors import ConnectionLost
from xenpvd.client.stream import Retry, Stream
from xenpvd.client.wire import Wire


@dataclass(frozen=True, slots=True)
class Event:
    """``seq`` grows by one within ``epoch``, one life of the daemon; ``time`` is Unix seconds. Names that are
    newer than this client come as any other."""

    epoch: str
    seq: int
    time: float
    name: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventsLost:
    """Events are missing here: look at the guest's state itself.

    ``why``: "slow", this client did not read them in time; "old", it was away for longer than the daemon
    keeps them; "restart", the daemon is another one (of ``epoch``), and how the former ended nobody
    knows. All that the new one has kept follows. ``count`` is how many at most, of whatever name; None:
    unknown.
    """

    epoch: str
    why: Literal["slow", "old", "restart"]
    count: int | None


class Events(Stream[Event | EventsLost]):
    """The events whose names fit ``names`` (``drive.*``), from ``since`` of ``epoch`` on; None: from now
    on."""

    def __init__(
        self,
        opener: Callable[[], Awaitable[Wire]],
        retry: Retry,
        names: tuple[str, ...],
        since: int | None = None,
        epoch: str | None = None,
    ) -> None:
        super().__init__(opener, retry)
        self._names = list(names or ("*",))
        self._since = since
        self._epoch = epoch
        self._lost: EventsLost | None = None  # to be told first
        self._replaying = 0  # replayed events that are still to come
        self._up_to = 0  # where the daemon was when it began to replay

    async def _begin(self, wire: Wire) -> None:
        params: dict[str, Any] = {"names": self._names}
        if self._since is not None:
            params |= {"since": self._since, "epoch": self._epoch}
        match await wire.ask("events.subscribe", params):
            case {"epoch": str(epoch), "seq": int(seq), "replayed": int(replayed), "lost": int(lost)}:
                pass
            case _:
                raise ConnectionLost(f"cannot read what {wire.path} answers to events.subscribe", False)
        if self._epoch is not None and epoch != self._epoch:
            self._lost = EventsLost(epoch, "restart", None)
            self._since = 0
        elif lost:
            self._lost = EventsLost(epoch, "old", lost)
        if self._since is None:
            self._since = seq
        self._epoch = epoch
        self._replaying, self._up_to = replayed, seq
        self._replayed()

    async def _next(self, wire: Wire) -> Event | EventsLost | None:
        if self._lost is not None:
            lost, self._lost = self._lost, None
            return lost
        match await wire.receive():
            case {
                "method": "event",
                "params": {
                    "epoch": str(epoch), "seq": int(seq), "time": int() | float() as time, "name": str(name),
                    "data": dict(data),
                },
            }:  # fmt: skip
                pass
            case _:
                return None
        self._since = seq
        if name == "events.lost":
            first, last = data.get("from"), data.get("to")
            count = last - first + 1 if isinstance(first, int) and isinstance(last, int) else None
            return EventsLost(epoch, "slow", count)
        self._replaying -= 1
        self._replayed()
        return Event(epoch, seq, float(time), name, data)

    def _replayed(self) -> None:
        """What the daemon had and did not send was of other names: it is not missed."""
        if self._replaying <= 0:
            self._since = max(self._since or 0, self._up_to)
