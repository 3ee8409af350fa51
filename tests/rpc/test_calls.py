"""JSON-RPC on a WebSocket of http.sock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import until
from xenpvd.rpc.http import HttpServer
from xenpvd.tasks import Tasks

Socket = aiohttp.ClientWebSocketResponse


@pytest.fixture
async def door(service: FakeService, tmp_path: Path) -> AsyncIterator[HttpServer]:
    door = HttpServer(service, tmp_path / "http.sock")
    await door.start()
    yield door
    await door.stop()
    assert not door._sockets and not service.events._subscriptions


@pytest.fixture
async def web(door: HttpServer, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(tmp_path / "http.sock"))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as web:
        yield web


@pytest.fixture
async def ws(web: aiohttp.ClientSession) -> AsyncIterator[Socket]:
    async with web.ws_connect("/rpc", max_msg_size=0) as ws:
        yield ws


async def receive(ws: Socket) -> Any:
    return await ws.receive_json(timeout=5)


async def ask(ws: Socket, method: str, id_: int = 1, **params: Any) -> None:
    await ws.send_json({"jsonrpc": "2.0", "method": method, "params": params, "id": id_})


async def test_greeting_calls_batches_and_events(ws: Socket, service: FakeService) -> None:
    hello = await receive(ws)
    assert hello["method"] == "daemon.hello" and hello["params"]["role"] == "admin"
    await ask(ws, "daemon.ping")
    assert (await receive(ws))["id"] == 1
    await ws.send_str('[{"jsonrpc":"2.0","method":"daemon.ping","id":2},1]')
    assert [one.get("id") for one in await receive(ws)] == [2, None]
    await ws.send_str("{")
    assert (await receive(ws))["error"]["code"] == -32700
    await ask(ws, "events.subscribe", names=["guest.*"])
    assert "result" in await receive(ws)
    service.events.publish("guest.state", from_="running", to="paused", reason=None)
    told = await receive(ws)
    assert told["method"] == "event" and told["params"]["name"] == "guest.state"


async def test_calls_beside_each_other(ws: Socket, service: FakeService) -> None:
    await receive(ws)
    gate = service.hold("guest_wait")
    await ask(ws, "guest.wait", 1, **{"for": "stopped"})
    await gate.entered.wait()
    await ask(ws, "daemon.ping", 2)
    assert (await receive(ws))["id"] == 2
    gate.open.set()
    assert (await receive(ws))["id"] == 1


async def test_who_leaves_gives_up_waiting_and_nothing_else(
    web: aiohttp.ClientSession, door: HttpServer, service: FakeService
) -> None:
    wait, add = service.hold("guest_wait"), service.hold("drive_add")
    async with web.ws_connect("/rpc") as ws:
        await receive(ws)
        await ask(ws, "guest.wait", 1, **{"for": "stopped"})
        await ask(ws, "drive.add", 2, vdev="xvdb", target="/b")
        await wait.entered.wait()
        await add.entered.wait()
        ws._response.connection.transport.abort()  # type: ignore[union-attr]
        await wait.left.wait()
        assert not add.left.is_set()
        add.open.set()
        await until(lambda: not door._sockets)
    assert "drive_add" in service.done


async def test_no_console_here(ws: Socket, service: FakeService) -> None:
    await receive(ws)
    await ask(ws, "console.attach")
    error = (await receive(ws))["error"]
    assert error["data"]["hint"] == "/console/0" and not service.console.viewers


@pytest.mark.parametrize("data", [b"{}", "x" * ((1 << 20) + 1)], ids=["binary", "too long"])
async def test_what_is_no_message_ends_it(ws: Socket, door: HttpServer, data: bytes | str) -> None:
    """N18."""
    await receive(ws)
    if isinstance(data, bytes):
        await ws.send_bytes(data)
        assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE and ws.close_code == 1003
    else:  # it is not read to its end
        with contextlib.suppress(ConnectionError):
            await ws.send_str(data)
    await until(lambda: not door._sockets)


async def test_the_daemon_ends_with_the_last_replies(
    web: aiohttp.ClientSession, door: HttpServer, service: FakeService
) -> None:
    async with web.ws_connect("/rpc") as ws:
        await receive(ws)
        gate = service.hold("drive_add")
        await ask(ws, "events.subscribe", 1)
        await receive(ws)
        await ask(ws, "drive.add", 2, vdev="xvdb", target="/b")
        await gate.entered.wait()
        tasks = Tasks()
        stop = tasks.spawn(door.stop(), "stop")
        gate.open.set()
        replies = [await receive(ws)]
        while "id" not in replies[-1]:
            replies.append(await receive(ws))
        assert replies[-1]["id"] == 2 and "result" in replies[-1]
        assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE and ws.close_code == 1001
        await ws.close()
        await stop


async def test_one_who_does_not_read_is_held_up_alone(
    web: aiohttp.ClientSession, ws: Socket, service: FakeService
) -> None:
    await receive(ws)
    service.console.print(b"x" * (1 << 19))
    async with web.ws_connect("/rpc", max_msg_size=0) as deaf:
        await receive(deaf)
        deaf._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        for number in range(200):
            await ask(deaf, "console.read", number, max=1 << 19)
        for number in range(20):
            await ask(ws, "daemon.ping", number)
            assert (await receive(ws))["id"] == number
        deaf._response.connection.transport.abort()  # type: ignore[union-attr]
    await asyncio.sleep(0)
