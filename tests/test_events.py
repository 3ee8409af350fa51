"""The event log: numbers, replay, and what becomes of a subscriber that does not read."""

from __future__ import annotations

import asyncio

import pytest

from xenpvd import events
from xenpvd.events import Event, EventLog, Subscription
from xenpvd.figures import EventStats
from xenpvd.tasks import Tasks


async def take(subscription: Subscription, count: int) -> list[Event]:
    async with asyncio.timeout(5):
        return [await anext(subscription) for _ in range(count)]


def seqs(found: list[Event]) -> list[int]:
    return [event.seq for event in found]


async def test_events_are_numbered_from_one_and_keep_their_data() -> None:
    log = EventLog()
    log.publish("guest.state", from_="starting", to="running")
    log.publish("drive.added", vdev="xvda")
    first, second = log.history()
    assert (first.seq, first.name, first.data) == (1, "guest.state", {"from": "starting", "to": "running"})
    assert (second.seq, second.data) == (2, {"vdev": "xvda"})
    assert 0 < first.time <= second.time and log.seq == 2


@pytest.mark.parametrize(
    "patterns, names",
    [
        (("*",), ["guest.state", "guest.boot", "drive.added"]),
        (("guest.*",), ["guest.state", "guest.boot"]),
        (("guest.boot", "drive.*"), ["guest.boot", "drive.added"]),
        (("guest",), []),
        (("GUEST.*",), []),
        ((), []),
    ],
)
async def test_patterns(patterns: tuple[str, ...], names: list[str]) -> None:
    log = EventLog()
    subscription, _, _ = log.subscribe(patterns)
    for name in ("guest.state", "guest.boot", "drive.added"):
        log.publish(name)
    subscription.close()
    assert [event.name async for event in subscription] == names
    assert [event.name for event in log.history(patterns)] == names


async def test_a_subscriber_waits_for_the_next() -> None:
    log, tasks = EventLog(), Tasks()
    subscription, replayed, lost = log.subscribe()
    task = tasks.spawn(take(subscription, 2), "reader")
    await asyncio.sleep(0)
    assert not task.done() and (replayed, lost) == (0, 0)
    log.publish("a")
    log.publish("b")
    assert [event.name for event in await task] == ["a", "b"]


async def test_what_is_there_can_be_taken_without_waiting() -> None:
    log = EventLog()
    subscription, _, _ = log.subscribe()
    assert subscription.take() is None
    log.publish("one")
    log.publish("two")
    found = subscription.take()
    assert found is not None and found.name == "one"
    assert [event.name for event in await take(subscription, 1)] == ["two"]
    assert subscription.take() is None


async def test_without_since_the_past_is_not_told() -> None:
    log = EventLog()
    log.publish("past")
    subscription, replayed, _ = log.subscribe()
    log.publish("now")
    assert replayed == 0 and [event.name for event in await take(subscription, 1)] == ["now"]


@pytest.mark.parametrize(
    "since, epoch, expected",
    [
        (0, None, [1, 2, 3]),
        (2, None, [3]),
        (3, None, []),
        (99, None, []),
        (2, "same", [3]),
        (2, "x", [1, 2, 3]),
    ],
)
async def test_replay(since: int, epoch: str | None, expected: list[int]) -> None:
    """Another epoch is another daemon's life: all of this one is new."""
    log = EventLog()
    for _ in range(3):
        log.publish("x")
    subscription, replayed, lost = log.subscribe(since=since, epoch=log.epoch if epoch == "same" else epoch)
    log.publish("live")
    assert (replayed, lost) == (len(expected), 0)
    assert seqs(await take(subscription, len(expected) + 1)) == [*expected, 4]


async def test_replay_counts_what_matches() -> None:
    log = EventLog()
    for name in ("a.x", "b.x", "a.y"):
        log.publish(name)
    subscription, replayed, _ = log.subscribe(("a.*",), since=0)
    assert replayed == 2 and seqs(await take(subscription, 2)) == [1, 3]


async def test_what_is_too_old_to_replay_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BACKLOG", 4)
    log = EventLog()
    for _ in range(10):
        log.publish("x")
    subscription, replayed, lost = log.subscribe(since=2)
    assert (replayed, lost) == (4, 4)
    assert seqs(await take(subscription, 4)) == [7, 8, 9, 10]
    assert seqs(log.history()) == [7, 8, 9, 10]


async def test_a_subscriber_that_does_not_read_loses_the_oldest_and_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """N17: the guest never waits, the others see everything."""
    monkeypatch.setattr(events, "QUEUE", 3)
    log = EventLog()
    slow, quick = log.subscribe()[0], log.subscribe()[0]
    for n in range(1, 8):
        log.publish("x")
        assert seqs(await take(quick, 1)) == [n]
    told, *rest = await take(slow, 4)
    assert (told.name, told.data) == ("events.lost", {"from": 1, "to": 4})
    assert seqs(rest) == [5, 6, 7]
    log.publish("x")
    assert [event.name for event in await take(slow, 1)] == ["x"], "told once"
    assert log.stats() == EventStats(published=8, lost=4, subscribers=2)
    slow.close()
    assert log.stats().subscribers == 1


async def test_a_loss_is_counted_among_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUE", 1)
    log = EventLog()
    subscription, _, _ = log.subscribe(("a",))
    for name in ("a", "b", "b", "a", "b"):
        log.publish(name)
    told, event = await take(subscription, 2)
    assert told.data == {"from": 1, "to": 1} and event.seq == 4


async def test_close_ends_the_iteration_and_the_subscription() -> None:
    log, tasks = EventLog(), Tasks()
    subscription, _, _ = log.subscribe()

    async def read() -> list[str]:
        return [event.name async for event in subscription]

    task = tasks.spawn(read(), "reader")
    log.publish("last")
    await asyncio.sleep(0)
    subscription.close()
    subscription.close()
    log.publish("late")
    assert await task == ["last"]


async def test_epochs_differ() -> None:
    assert EventLog().epoch != EventLog().epoch


async def test_a_replay_longer_than_the_queue_counts_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "QUEUE", 3)
    log = EventLog()
    for name in ("guest.a", "drive.x", "guest.b", "guest.c", "guest.d", "drive.y", "drive.z"):
        log.publish(name)
    subscription, replayed, lost = log.subscribe(("guest.*",), since=0)
    assert (replayed, lost) == (3, 1)
    assert seqs(await take(subscription, 3)) == [3, 4, 5]
