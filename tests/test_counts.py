from __future__ import annotations

import pytest

from xenpvd.counts import BUCKETS, Calls, Durations, histogram
from xenpvd.figures import RpcCall

MS = 1_000_000


@pytest.mark.parametrize(
    ("ns", "bucket"),
    [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2), (1023_999, 10), (1024_000, 11), (2**22 * 1000, 23),
     (2**22 * 1000 - 1, 22), (3600 * 10**9, 23)],
)  # fmt: skip
def test_a_duration_is_in_the_bucket_of_its_bounds(ns: int, bucket: int) -> None:
    durations = Durations()
    durations.note(ns)
    view = durations.view()
    assert view.counts.index(1) == bucket and sum(view.counts) == 1
    assert view.sum == ns / 1e9
    if bucket < BUCKETS - 1:
        assert ns / 1e9 < view.bounds[bucket]
    if bucket:
        assert ns / 1e9 >= view.bounds[bucket - 1]


def test_bounds_double_and_the_last_bucket_has_none() -> None:
    view = Durations().view()
    assert len(view.counts) == len(view.bounds) + 1 == BUCKETS
    assert view.bounds[0] == 1e-6
    assert all(after == 2 * before for before, after in zip(view.bounds, view.bounds[1:], strict=False))


def test_flat_counters_add_up_and_come_back() -> None:
    one, other = Durations(), Durations()
    for ns in (10, MS, MS):
        one.note(ns)
    for ns in (MS, 5 * 10**9):
        other.note(ns)
    keys = one.flat().keys() | other.flat().keys()
    both = {key: one.flat().get(key, 0) + other.flat().get(key, 0) for key in keys}
    assert both == {
        "latency_ns": 3 * MS + 10 + 5 * 10**9,
        "under_1_us": 1,
        "under_1024_us": 3,
        "from_4194304_us": 1,
    }
    total = histogram(both | {"reads": 5})
    assert sum(total.counts) == 5 and total.counts[10] == 3
    assert total.sum == pytest.approx(5.00300001)
    assert histogram({}) == Durations().view()


def test_calls() -> None:
    calls = Calls()
    calls.connect()
    calls.connect()
    calls.leave()
    for code in (0, 0, -32602):
        calls.end("guest.status", code)
    calls.end("drive.add", 1005)
    told = calls.view()
    assert (told.connected, told.connections) == (1, 2)
    assert told.calls == (
        RpcCall("drive.add", 1005, 1),
        RpcCall("guest.status", -32602, 1),
        RpcCall("guest.status", 0, 2),
    )
