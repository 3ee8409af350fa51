"""What was asked of the store lately: who, what, when, and what came of it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.wire import Message
from xenpvd.figures import XenstoreCount
from xenpvd.views import XenstoreOperation

#: Operations that are kept, and how much of the payload of each
KEPT = 1024
BYTES_MAX = 256

_OTHER = -1
_NAMES = {value: name[3:] for name, value in vars(abi).items() if name.startswith("XS_")}


class _Operation(NamedTuple):
    """As cheap as can be: every request makes one."""

    seq: int
    time: float
    who: str
    domid: int
    type: int
    tx_id: int
    payload: bytes
    result: str

    def for_people(self) -> XenstoreOperation:
        name = _NAMES.get(self.type, str(self.type))
        parts = self.payload.removesuffix(b"\0").split(b"\0") if self.payload else []
        words = tuple(ascii(part)[2:-1] for part in parts)
        return XenstoreOperation(
            self.seq, self.time, self.who, self.domid, name, self.tx_id, words, self.result
        )


class History:
    """The last ``KEPT`` operations. ``now`` gives Unix seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kept: deque[_Operation] = deque(maxlen=KEPT)
        self._seq = 0
        self._counts: Counter[tuple[int, str]] = Counter()  # by type and result

    def record(self, connection: Connection, message: Message, type_: int, payload: bytes) -> None:
        """A request and the type and payload of its reply."""
        self._seq += 1
        result = "OK" if type_ != abi.XS_ERROR else payload[:-1].decode("ascii")
        self._counts[message.type if message.type in _NAMES else _OTHER, result] += 1
        self._kept.append(
            _Operation(
                self._seq,
                self._now(),
                connection.name,
                connection.domain.domid,
                message.type,
                message.tx_id,
                message.payload[:BYTES_MAX],
                result,
            )
        )

    def counts(self) -> tuple[XenstoreCount, ...]:
        """Of all requests so far; those of no type of ours together, as anybody can make up many."""
        return tuple(
            XenstoreCount(_NAMES.get(type_, "unknown"), result, count)
            for (type_, result), count in sorted(self._counts.items())
        )

    def last(self) -> str:
        """The newest one, on a line."""
        newest = self._kept[-1].for_people()
        words = " ".join((newest.op, *newest.arguments))
        return f"d{newest.domid} {newest.who} tx {newest.tx}: {words} -> {newest.result}"

    def newest_first(self) -> Iterator[XenstoreOperation]:
        """Nothing may be recorded meanwhile."""
        return (operation.for_people() for operation in reversed(self._kept))
