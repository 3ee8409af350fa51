"""When bytes came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenpvd.backends.console.timeline import SPANS_MAX, Timeline


def test_to_a_second() -> None:
    timeline = Timeline()
    for offset, now in ((0, 100.0), (10, 100.5), (20, 101.1), (30, 200.0)):
        timeline.note(offset, now)
    asked = {50.0: 0, 100.5: 0, 100.6: 20, 101.1: 20, 102.0: 30, 200.0: 30, 200.1: 40}
    assert {since: timeline.offset(since, 40) for since in asked} == asked


def test_it_is_bounded_and_still_begins_early_enough() -> None:
    timeline = Timeline()
    for n in range(3 * SPANS_MAX):
        timeline.note(n, 2.0 * n)
    assert len(timeline._spans) <= SPANS_MAX
    for n in range(0, 3 * SPANS_MAX, 97):
        assert n - 16 <= timeline.offset(2.0 * n, 1 << 30) <= n


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 5)), max_size=30), st.floats(0, 60))
def test_nothing_that_came_since_is_left_out(pieces: list[tuple[int, float]], since: float) -> None:
    """And nothing is shown that is older by more than a second."""
    timeline, offset, now = Timeline(), 0, 0.0
    came: list[float] = []
    for length, later in pieces:
        now += later
        timeline.note(offset, now)
        came += [now] * length
        offset += length
    begin = timeline.offset(since, offset)
    assert all(at < since for at in came[:begin])
    assert all(at >= since - 1 for at in came[begin:])
