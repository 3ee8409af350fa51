from __future__ import annotations

from tests.fakes.house import Clock
from xenpvd.backoff import Backoff


def test_each_end_in_a_row_waits_longer_up_to_a_minute() -> None:
    clock = Clock()
    backoff = Backoff(clock.now, clock.sleep)
    waits = []
    for _ in range(10):
        backoff.life_begins()
        waits.append(backoff.life_ended())
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_good_life_and_the_operator_are_new_beginnings() -> None:
    clock = Clock()
    backoff = Backoff(clock.now, clock.sleep)
    waits = []
    for lived in (59.9, 59.9, 60.0, 1.0):
        backoff.life_begins()
        clock.advance(lived)
        waits.append(backoff.life_ended())
    assert waits == [0, 1, 0, 1]
    backoff.forget()
    assert backoff.life_ended() == 0


def test_a_crash_loop_of_weeks_overflows_nothing() -> None:
    backoff = Backoff(lambda: 0.0)
    assert {backoff.life_ended() for _ in range(5000)} == {0, 1, 2, 4, 8, 16, 32, 60}


def test_a_life_that_was_no_failure_is_followed_at_once() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.life_ended() for _ in range(3)] == [0, 1, 2]
    assert {backoff.life_ended(good=True) for _ in range(100)} == {0}
    assert backoff.life_ended() == 1
