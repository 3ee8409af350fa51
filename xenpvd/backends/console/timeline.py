"""When which bytes of a recording came, to a second or so, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

#: Seconds that a span takes together, and how many are kept before two and two become one
SPAN = 1.0
SPANS_MAX = 4096


@dataclass(slots=True)
class _Span:
    """Bytes from offset ``start`` to the next span's came between ``first`` and ``last``."""

    start: int
    first: float
    last: float


class Timeline:
    """Times are seconds of any one clock; one that jumps back makes the answers less exact, no more."""

    def __init__(self) -> None:
        self._spans: list[_Span] = []

    def note(self, offset: int, now: float) -> None:
        """Bytes come at ``offset``."""
        if self._spans and 0 <= now - self._spans[-1].first < SPAN:
            self._spans[-1].last = now
            return
        if len(self._spans) >= SPANS_MAX:
            self._spans = [
                _Span(one.start, one.first, two.last)
                for one, two in zip(self._spans[::2], self._spans[1::2], strict=True)
            ]
        self._spans.append(_Span(offset, now, now))

    def offset(self, since: float, end: int) -> int:
        """Where to begin to see all that came from ``since`` on, and little more; ``end`` if nothing did."""
        return next((span.start for span in self._spans if span.last >= since), end)
