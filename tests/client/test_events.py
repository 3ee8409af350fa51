"""Events in order, each once, over lost connections; and what cannot be had is said."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import HELLO, Daemon, Naps, impostor, until
from tests.fakes.service import FakeService
from xenpvd.client import Event, Events, EventsLost, Guest, Retry, connect
from xenpvd.events import BACKLOG, QUEUE


async def begun(events: Events, service: FakeService) -> None:
    """Have it subscribed: nothing comes yet, and waiting may be cancelled."""
    while not service.events._subscriptions:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0.02)


async def test_as_they_happen(guest: Guest, service: FakeService) -> None:
    service.events.publish("drive.added", vdev="xvda")
    events = guest.events("drive.*", "guest.state")
    await begun(events, service)
    service.events.publish("memory.target", asked_mib=1)
    service.events.publish("drive.added", vdev="xvdb")
    service.events.publish("guest.state", from_="running", to="stopped")
    first, second = [await anext(events) for _ in range(2)]
    assert isinstance(first, Event) and isinstance(second, Event)
    assert (first.seq, first.name, first.data) == (3, "drive.added", {"vdev": "xvdb"})
    assert first.epoch == service.events.epoch and first.time > 1e9
    assert second.data == {"from": "running", "to": "stopped"}


async def test_over_lost_connections_each_comes_once(
    guest: Guest, daemon: Daemon, service: FakeService
) -> None:
    events = guest.events("n")
    await begun(events, service)
    got = []
    for round_ in range(5):
        for n in range(20):
            service.events.publish("n", n=20 * round_ + n)
            service.events.publish("other")
        got += [await anext(events) for _ in range(10)]
        daemon.cut()  # with ten more on the way
        got += [await anext(events) for _ in range(5)]
        daemon.cut()  # in the middle of the replay
        got += [await anext(events) for _ in range(5)]
    assert [event.data["n"] for event in got if isinstance(event, Event)] == list(range(100))


async def test_what_was_of_other_names_is_not_missed(
    guest: Guest, daemon: Daemon, service: FakeService
) -> None:
    events = guest.events("n")
    await begun(events, service)
    service.events.publish("n", n=0)
    assert isinstance(await anext(events), Event)
    for _ in range(3):
        daemon.cut()
        await until(lambda: not service.events._subscriptions)
        for _ in range(BACKLOG - 1):
            service.events.publish("other")
        await begun(events, service)
    service.events.publish("n", n=1)
    event = await anext(events)
    assert isinstance(event, Event) and event.data == {"n": 1}


async def test_away_for_too_long(guest: Guest, daemon: Daemon, service: FakeService) -> None:
    events = guest.events("n")
    await begun(events, service)
    daemon.cut()
    await until(lambda: not service.events._subscriptions)
    for n in range(BACKLOG + 5):
        service.events.publish("n", n=n)
    lost = await anext(events)
    assert lost == EventsLost(service.events.epoch, "old", 5 + BACKLOG - QUEUE)
    rest = [await anext(events) for _ in range(QUEUE)]
    assert [e.data["n"] for e in rest if isinstance(e, Event)] == list(
        range(BACKLOG + 5 - QUEUE, BACKLOG + 5)
    )


async def test_a_new_daemon(guest: Guest, daemon: Daemon, service: FakeService, naps: Naps) -> None:
    events = guest.events("n")
    await begun(events, service)
    for n in range(5):
        service.events.publish("n", n=n)
    assert isinstance(await anext(events), Event)
    await daemon.stop()
    new = FakeService()
    new.events.publish("n", n=10)

    async def come() -> None:
        naps.then = None
        await daemon.start(new)

    naps.then = come
    got = [item async for item in _until_lost(events)]
    assert [e.data["n"] for e in got if isinstance(e, Event)] == [1, 2, 3, 4]  # the former's last ones
    assert got[-1] == EventsLost(new.events.epoch, "restart", None)
    new.events.publish("n", n=11)
    assert [(await anext(events)).data["n"] for _ in range(2)] == [10, 11]  # type: ignore[union-attr]


async def _until_lost(events: Events) -> Any:
    async for item in events:
        yield item
        if isinstance(item, EventsLost):
            return


async def test_a_program_that_comes_back(guest: Guest, service: FakeService) -> None:
    for n in range(4):
        service.events.publish("n", n=n)
    epoch = service.events.epoch
    kept = guest.events("n", since=0)
    assert [(await anext(kept)).data["n"] for _ in range(4)] == [0, 1, 2, 3]  # type: ignore[union-attr]
    later = guest.events("n", since=3, epoch=epoch)
    assert (await anext(later)).data["n"] == 3  # type: ignore[union-attr]
    other = guest.events("n", since=3, epoch="another")
    assert await anext(other) == EventsLost(epoch, "restart", None)
    assert (await anext(other)).data["n"] == 0  # type: ignore[union-attr]


async def test_a_slow_consumer_is_told_and_goes_on(guest: Guest, service: FakeService) -> None:
    events = guest.events("n")
    await begun(events, service)
    count = 4 * QUEUE
    for n in range(count):
        service.events.publish("n", n=n, pad="x" * 4096)
        if n % 64 == 0:
            await asyncio.sleep(0)  # the daemon sends what the socket takes
    got: list[Event | EventsLost] = []
    while not (got and isinstance(got[-1], Event) and got[-1].data["n"] == count - 1):
        got.append(await anext(events))
    lost = [item for item in got if isinstance(item, EventsLost)]
    told = sum(item.count or 0 for item in lost)
    numbers = [item.data["n"] for item in got if isinstance(item, Event)]
    assert {item.why for item in lost} == {"slow"} and numbers == sorted(set(numbers))
    assert len(numbers) + told == count


async def test_names_and_members_of_a_newer_daemon(path: Path, naps: Naps) -> None:
    gate = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        while line := await reader.readline():
            request = json.loads(line)
            result = {"epoch": "e", "seq": 0, "replayed": 0, "lost": 0, "new": 1}
            for message in (
                {"jsonrpc": "2.0", "id": request["id"], "result": result},
                {"jsonrpc": "2.0", "method": "daemon.news", "params": {}},
                {"jsonrpc": "2.0", "method": "event", "params": {"seq": "?"}},
                {
                    "jsonrpc": "2.0", "method": "event", "new": 1,
                    "params": {"epoch": "e", "seq": 1, "time": 2, "name": "pet.fed", "data": {"a": 1}},
                },
            ):  # fmt: skip
                writer.write(json.dumps(message).encode() + b"\n")
            await gate.wait()

    async with impostor(path, serve), connect(path, retry=Retry(sleep=naps)) as guest:
        assert await anext(guest.events()) == Event("e", 1, 2.0, "pet.fed", {"a": 1})
        gate.set()


async def test_a_replay_that_is_cut_short_goes_on_where_it_was(path: Path, naps: Naps) -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        if not (line := await reader.readline()):
            return  # the calls' connection
        asked.append(json.loads(line)["params"].get("since"))
        result = {"epoch": "e", "seq": 10, "replayed": 2, "lost": 0}
        params = {"epoch": "e", "seq": 4 + len(asked), "time": 0, "name": "n", "data": {}}
        for message in ({"id": 0, "result": result}, {"method": "event", "params": params}):
            writer.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")

    async with impostor(path, serve), connect(path, retry=Retry(sleep=naps)) as guest:
        events = guest.events("n", since=3, epoch="e")
        assert [(await anext(events)).seq for _ in range(3)] == [5, 6, 7]  # type: ignore[union-attr]
        assert asked == [3, 5, 6]


async def test_an_answer_that_is_none(path: Path, naps: Naps) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await reader.readline()
        writer.write(b'{"jsonrpc":"2.0","id":0,"result":7}\n')

    async with impostor(path, serve), connect(path, retry=Retry(sleep=naps, patience=0.1)) as guest:
        with pytest.raises(Exception, match=r"cannot read what .* answers to events\.subscribe"):
            await anext(guest.events())
