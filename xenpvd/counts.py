"""What is counted of durations and calls: plain integers that only ever grow, so that any number of scrapers
may look at them. Counting takes no lock: each is counted in one thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from xenpvd.figures import Histogram, RpcCall, RpcStats

#: Of microseconds, each twice as many as the one before; the last one takes all that is longer. native.c has
#: the same
BUCKETS = 24
_LONGEST = 1 << BUCKETS - 2
_KEYS = (*(f"under_{1 << n}_us" for n in range(BUCKETS - 1)), f"from_{_LONGEST}_us")
_BOUNDS = tuple((1 << n) / 1e6 for n in range(BUCKETS - 1))


class Durations:
    """How often something took how long."""

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._sum = 0

    def note(self, ns: int) -> None:
        self._counts[min((ns // 1000).bit_length(), BUCKETS - 1)] += 1
        self._sum += ns

    def flat(self) -> dict[str, int]:
        return flat(self._counts, self._sum)

    def view(self) -> Histogram:
        return Histogram(_BOUNDS, tuple(self._counts), self._sum / 1e9)


def flat(counts: Sequence[int], ns: int) -> dict[str, int]:
    """Counts of the buckets among other counters of a disk, without those that are 0."""
    return {"latency_ns": ns} | {key: count for key, count in zip(_KEYS, counts, strict=True) if count}


def histogram(stats: Mapping[str, int]) -> Histogram:
    """What :func:`flat` has made, again, maybe added up over several."""
    return Histogram(_BOUNDS, tuple(stats.get(key, 0) for key in _KEYS), stats.get("latency_ns", 0) / 1e9)


class Calls:
    """What clients asked for by RPC, over whichever socket. Loop thread only."""

    def __init__(self) -> None:
        #: that were greeted: those that are there, and all that ever were
        self.connected = self.connections = 0
        self._ended: Counter[tuple[str, int]] = Counter()

    def connect(self) -> None:
        self.connected += 1
        self.connections += 1

    def leave(self) -> None:
        self.connected -= 1

    def end(self, method: str, code: int = 0) -> None:
        """``method`` is one of ours, never a client's word; ``code`` an error's, 0 for none."""
        self._ended[method, code] += 1

    def view(self) -> RpcStats:
        calls = (RpcCall(method, code, count) for (method, code), count in sorted(self._ended.items()))
        return RpcStats(self.connected, self.connections, tuple(calls))
