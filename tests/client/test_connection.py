"""Many calls on one connection: which answer is whose, and what becomes of them when it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import HELLO, Daemon, impostor
from tests.fakes.service import FakeService
from xenpvd.client.connection import Connection
from xenpvd.client.errors import ConnectionLost
from xenpvd.client.wire import Wire
from xenpvd.errors import BadConfig, NotFound
from xenpvd.tasks import Tasks


@pytest.fixture
async def connection(daemon: Daemon, path: Path) -> AsyncIterator[Connection]:
    connection = Connection(await Wire.open(path, 5))
    yield connection
    await connection.close()


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    tasks = Tasks(lambda name, fault: None)
    yield tasks
    await tasks.cancel()


async def test_answers_come_as_they_are_ready(
    connection: Connection, service: FakeService, tasks: Tasks
) -> None:
    gate = service.hold("guest_wait")
    held = tasks.spawn(connection.call("guest.wait", {"for": "devices"}), "held")
    await gate.entered.wait()
    with pytest.raises(NotFound, match="no such drive"):
        await connection.call("drive.remove", {"vdev": "xvdb"})
    assert (await connection.call("guest.status", {}))["name"] == "web1"
    assert not held.done()
    gate.open.set()
    assert (await held)["state"] == "running"


async def test_more_calls_than_the_daemon_takes_wait(
    connection: Connection, service: FakeService, tasks: Tasks
) -> None:
    gate = service.hold("guest_wait")
    held = [
        tasks.spawn(connection.call("guest.wait", {"for": "devices"}), f"held {n}")
        for n in range(connection.hello["limits"]["in_flight"])
    ]
    await gate.entered.wait()
    more = [tasks.spawn(connection.call("daemon.ping", {}), f"more {n}") for n in range(100)]
    await asyncio.wait(more, timeout=0.05)
    assert not any(task.done() for task in more)
    gate.open.set()
    answers = await asyncio.gather(*held, *more)
    assert [set(answer) for answer in answers[32:]] == [{"epoch", "seq"}] * 100
    assert service.done.count("guest_wait") == 32


async def test_a_cancelled_caller_disturbs_nobody(
    connection: Connection, service: FakeService, tasks: Tasks
) -> None:
    gate = service.hold("drive_add")
    params = {"vdev": "xvdb", "target": "/b"}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await connection.call("drive.add", params)
    queued = [tasks.spawn(connection.call("drive.add", params), "drive.add") for _ in range(40)]
    await asyncio.wait(queued, timeout=0.05)
    for task in queued:
        task.cancel()  # some were sent, some were not
    await asyncio.wait(queued)
    gate.open.set()
    pings = await asyncio.gather(*(connection.call("daemon.ping", {}) for _ in range(40)))
    assert len(pings) == 40
    assert service.done == ["drive_add"]  # the daemon went on with it; the others found it there


async def test_a_connection_lost_in_the_middle(
    connection: Connection, daemon: Daemon, service: FakeService, tasks: Tasks
) -> None:
    gate = service.hold("drive_add")
    calls = [
        tasks.spawn(connection.call("drive.add", {"vdev": f"xvd{chr(98 + n % 20)}", "target": "/b"}), "add")
        for n in range(33)
    ]
    await gate.entered.wait()
    await asyncio.wait(calls, timeout=0.05)
    daemon.cut()
    faults = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(fault, ConnectionLost) for fault in faults), faults
    assert [fault.maybe_done for fault in faults if isinstance(fault, ConnectionLost)] == [True] * 32 + [
        False
    ]
    assert "drive.add was not answered" in str(faults[0]) and "may have been done" in str(faults[0])
    assert "drive.add was not called" in str(faults[32])
    assert connection.lost is not None
    with pytest.raises(ConnectionLost, match="was not called"):
        await connection.call("daemon.ping", {})
    gate.open.set()


async def test_the_last_answers_of_a_daemon_that_ends(
    connection: Connection, daemon: Daemon, service: FakeService, tasks: Tasks
) -> None:
    gate = service.hold("drive_flush")
    call = tasks.spawn(connection.call("drive.flush", {"vdev": "xvda"}), "flush")
    await gate.entered.wait()
    stopping = tasks.spawn(daemon.stop(), "stop")
    gate.open.set()
    assert await call is None
    await stopping


async def test_what_cannot_be_sent_takes_no_place(connection: Connection) -> None:
    for _ in range(40):
        with pytest.raises(BadConfig):
            await connection.call("guest.wait", {"timeout": float("inf")})
    assert await connection.call("daemon.ping", {})


async def test_closing_ends_the_calls(connection: Connection, service: FakeService, tasks: Tasks) -> None:
    gate = service.hold("guest_wait")
    call = tasks.spawn(connection.call("guest.wait", {"for": "devices"}), "wait")
    await gate.entered.wait()
    await connection.close()
    with pytest.raises(ConnectionLost, match="was closed"):
        await call
    await asyncio.wait_for(gate.left.wait(), 5)


def answers(*replies: Callable[[Any], bytes]) -> Callable[..., Awaitable[None]]:
    """A server that greets and gives the n-th request the n-th reply, made from its id; then it leaves."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        for reply in replies:
            writer.write(reply(json.loads(await reader.readline())["id"]))

    return serve


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (b"no json\n", "no JSON-RPC"),
        (b'{"jsonrpc":"2.0"}\n', "answers what was not asked"),
        (b'{"jsonrpc":"2.0","id":77,"result":1}\n', "answers what was not asked"),
        (b'{"jsonrpc":"2.0","id":[1],"result":1}\n', "answers what was not asked"),
        (b'{"jsonrpc":"2.0","id":1}\n', "without code or message"),
        (b'{"jsonrpc":"2.0","id":1,"error":"no"}\n', "without code or message"),
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"what?"}}\n', "was lost: what[?]"),
        (b'{"jsonrpc":"2.0","id":1,"resu', "the daemon ended it"),
    ],
)
async def test_garbage(path: Path, words: bytes, why: str) -> None:
    async with impostor(path, answers(lambda id_: words)):
        connection = Connection(await Wire.open(path, 5))
        with pytest.raises(ConnectionLost, match=why) as lost:
            await connection.call("daemon.ping", {})
        assert lost.value.maybe_done
        await connection.close()


async def test_what_a_newer_daemon_adds(path: Path) -> None:
    def reply(id_: Any) -> bytes:
        note = {"jsonrpc": "2.0", "method": "guest.new", "params": {"x": 1}}
        answer = {"jsonrpc": "2.0", "id": id_, "result": {"epoch": "e", "seq": 1, "new": {"a": 1}}, "took": 1}
        return b"".join(json.dumps(one).encode() + b"\n" for one in (note, answer))

    async with impostor(path, answers(reply)):
        connection = Connection(await Wire.open(path, 5))
        assert (await connection.call("daemon.ping", {}))["seq"] == 1
        await connection.close()
