"""A client's calls without any socket; tests/rpc/test_connection.py and test_calls.py have the real ones."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import until
from xenpvd.rpc.session import IN_FLIGHT_MAX, Session
from xenpvd.tasks import Tasks


class FakeCarrier:
    """``reading`` is cleared by a peer that does not read."""

    raw = False

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.fault: Exception | None = None
        self.aborted = False

    async def send(self, message: bytes) -> None:
        await self.reading.wait()
        if self.fault is not None:
            raise self.fault
        self.sent.append(json.loads(message))

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def carrier() -> FakeCarrier:
    return FakeCarrier()


@pytest.fixture
def session(service: FakeService, carrier: FakeCarrier) -> Session:
    return Session(service, "a test", "operator", carrier)


def request(method: str, id_: int = 1, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": id_}).encode()


async def test_it_greets_with_its_role_and_answers(session: Session, carrier: FakeCarrier) -> None:
    await session.greet()
    await session.take(request("daemon.ping"))
    await session.take(b"{")
    await session.finish()
    hello, *replies = carrier.sent
    assert hello["params"]["role"] == "operator"
    assert {reply["id"] for reply in replies} == {1, None}
    await session.close()


async def test_one_who_does_not_read_is_not_read_any_more(session: Session, carrier: FakeCarrier) -> None:
    carrier.reading.clear()
    tasks, taken = Tasks(), 0

    async def ask() -> None:
        nonlocal taken
        while True:
            await session.take(request("daemon.ping", taken))
            taken += 1

    tasks.spawn(ask(), "client")
    await until(lambda: taken == IN_FLIGHT_MAX)
    for _ in range(20):
        await asyncio.sleep(0)
    assert taken == IN_FLIGHT_MAX
    carrier.reading.set()
    await until(lambda: taken > IN_FLIGHT_MAX)
    await tasks.cancel()
    await session.finish()
    assert [reply["id"] for reply in carrier.sent] == [*range(len(carrier.sent))]
    await session.close()


async def test_when_the_peer_has_left_only_waiting_ends(
    session: Session, carrier: FakeCarrier, service: FakeService
) -> None:
    wait, add = service.hold("guest_wait"), service.hold("drive_add")
    await session.take(request("guest.wait", **{"for": "stopped"}))
    await session.take(request("drive.add", vdev="xvdb", target="/b"))
    await add.entered.wait()
    session.left()
    await wait.left.wait()
    await session.take(request("guest.wait", **{"for": "stopped"}))  # it was read before
    assert not add.left.is_set()
    add.open.set()
    await session.finish()
    assert service.done == ["drive_add"] and not carrier.sent
    await session.close()


async def test_a_mistake_of_ours_ends_this_client(
    session: Session, carrier: FakeCarrier, caplog: pytest.LogCaptureFixture
) -> None:
    carrier.fault = RuntimeError("a bug")
    await session.take(request("daemon.ping"))
    await session.finish()
    await until(lambda: carrier.aborted)
    assert "a bug" in caplog.text
    await session.close()


async def test_feeds_end_with_it(session: Session, carrier: FakeCarrier, service: FakeService) -> None:
    await session.take(request("events.subscribe", names=["*"]))
    await session.finish()
    assert session.feeds and session.ending() and not session.feeds
    service.events.publish("daemon.ready")
    await session.close()
    assert [message for message in carrier.sent if message.get("method") == "event"] == []
    assert not service.events._subscriptions
