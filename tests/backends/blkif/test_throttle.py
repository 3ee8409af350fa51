from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.backends.blkif.throttle import Throttle
from xenpvd.views import NO_LIMITS, DriveLimits


def test_no_limits_no_wait() -> None:
    throttle = Throttle()
    assert [throttle.take(0.0, 1 << 40) for _ in range(3)] == [0.0] * 3


@pytest.mark.parametrize(
    ("limits", "length", "waits"),
    [
        (DriveLimits(ops_per_second=10, burst=0), 0, [0, 0.1, 0.2, 0.3]),
        (DriveLimits(ops_per_second=10, burst=0.2), 0, [0, 0, 0, 0.1]),
        (DriveLimits(bytes_per_second=1000, burst=0), 500, [0, 0.5, 1.0, 1.5]),
        (DriveLimits(bytes_per_second=1000, burst=1), 500, [0, 0, 0, 0.5]),
        (DriveLimits(bytes_per_second=1000, ops_per_second=1, burst=0), 500, [0, 1.0, 2.0, 3.0]),
        (DriveLimits(bytes_per_second=1, burst=0), 1 << 20, [0, 1 << 20, 2 << 20, 3 << 20]),
    ],
)
def test_requests_that_come_at_once(limits: DriveLimits, length: int, waits: list[float]) -> None:
    throttle = Throttle(limits)
    assert [throttle.take(100.0, length) for _ in waits] == pytest.approx(waits)


def test_who_was_idle_has_saved_up_one_burst_and_no_more() -> None:
    throttle = Throttle(DriveLimits(ops_per_second=10, burst=0.5))
    for n in range(10):
        throttle.take(n / 100, 0)
    assert [throttle.take(1000.0, 0) for _ in range(7)] == pytest.approx([0, 0, 0, 0, 0, 0, 0.1])


def test_new_limits_forget_what_was_owed() -> None:
    throttle = Throttle(DriveLimits(ops_per_second=1, burst=0))
    for _ in range(100):
        throttle.take(0.0, 0)
    throttle.set(DriveLimits(ops_per_second=2, burst=0))
    assert [throttle.take(0.0, 0) for _ in range(2)] == pytest.approx([0, 0.5])
    throttle.set(NO_LIMITS)
    assert throttle.take(0.0, 0) == 0


@given(
    rate=st.integers(1, 10**6),
    burst=st.floats(0, 10),
    requests=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**6)), min_size=1, max_size=50),
)
def test_no_more_gets_through_than_the_rate_and_one_burst(
    rate: int, burst: float, requests: list[tuple[float, int]]
) -> None:
    throttle = Throttle(DriveLimits(bytes_per_second=rate, burst=burst))
    now, through = 0.0, 0
    for pause, length in requests:
        now += pause + throttle.take(now + pause, length)
        assert through <= rate * (now + burst) * (1 + 1e-9) + 1e-6, "before this one"
        through += length
