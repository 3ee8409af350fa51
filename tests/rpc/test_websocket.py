"""A console over a WebSocket: its bytes, and what is told beside them."""

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


@pytest.fixture
async def door(service: FakeService, tmp_path: Path) -> AsyncIterator[HttpServer]:
    door = HttpServer(service, tmp_path / "http.sock")
    await door.start()
    yield door
    await door.stop()
    assert not service.events._subscriptions


@pytest.fixture
async def web(door: HttpServer, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(tmp_path / "http.sock"))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as web:
        yield web


Socket = aiohttp.ClientWebSocketResponse


async def note(ws: Socket) -> dict[str, Any]:
    return dict(await ws.receive_json(timeout=5))


async def read(ws: Socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += await ws.receive_bytes(timeout=5)
    return data


async def test_hello_replay_and_live_both_ways(web: aiohttp.ClientSession, service: FakeService) -> None:
    service.console.print(b"before \xff\0\r\n")
    async with web.ws_connect("/console/0") as ws:
        assert await note(ws) == {
            "type": "hello",
            "console": "0",
            "viewer": service.console.viewers[0].number,
            "role": "rw",
            "offset": 0,
            "live": 11,
            "input": "single",
            "epoch": service.events.epoch,
            "guest": "web1",
            "state": "running",
        }
        assert await read(ws, 11) == b"before \xff\0\r\n"
        service.console.echo = True
        await ws.send_bytes(b"ls\r\x1d")
        assert await read(ws, 4) == b"ls\r\x1d"
    await until(lambda: not service.console.viewers)


async def test_it_goes_on_where_it_was(web: aiohttp.ClientSession, service: FakeService) -> None:
    service.console.print(b"0123456789")
    async with web.ws_connect("/console/0?since=7") as ws:
        assert (await note(ws))["offset"] == 7
        assert await read(ws, 3) == b"789"


async def test_the_keyboard_goes_from_one_to_the_other(
    web: aiohttp.ClientSession, service: FakeService
) -> None:
    async with web.ws_connect("/console/0") as one, web.ws_connect("/console/0") as two:
        assert (await note(one))["role"] == "rw"
        assert (await note(two))["role"] == "ro"
        await two.send_bytes(b"unheard")
        assert "read-only" in (await note(two))["why"]
        await two.send_json({"type": "steal"})
        assert await note(one) == {"type": "role", "role": "ro"}
        assert await note(two) == {"type": "role", "role": "rw"}
        await two.send_bytes(b"heard")
        await service.console.wait_typed(b"heard")
    assert service.console.typed == b"heard"


async def test_what_happens_to_the_guest_is_told(web: aiohttp.ClientSession, service: FakeService) -> None:
    async with web.ws_connect("/console/0?mode=ro") as ws:
        assert (await note(ws))["role"] == "ro"
        service.events.publish("guest.state", from_="running", to="stopped", reason=None)
        assert await note(ws) == {"type": "state", "state": "stopped"}
        service.consoles.kick(service.console.viewers[0].number, "the boss")
        assert await note(ws) == {"type": "end", "why": "ended by the boss"}
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE and ws.close_code == 1008


async def test_where_a_boot_begins_is_told_among_the_bytes(
    web: aiohttp.ClientSession, service: FakeService
) -> None:
    """In a replay, too; and once more to who comes back to that very place."""
    service.console.print(b"first")
    async with web.ws_connect("/console/0") as live:
        await note(live)
        assert await read(live, 5) == b"first"
        service.console.opened()
        service.console.print(b"second")
        for ws, since in ((live, 5), (await web.ws_connect("/console/0?since=3"), 3)):
            if since == 3:
                await note(ws)
                assert await read(ws, 2) == b"st"
            assert await note(ws) == {"type": "opened", "offset": 5, "boot": 1}
            assert await read(ws, 6) == b"second"


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/console/7", "Choose from 0, xen"),
        ("/console/xen?mode=rw", "for reading only"),
        ("/console/0?mode=rw", "has it"),
    ],
)
async def test_denied(web: aiohttp.ClientSession, service: FakeService, place: str, why: str) -> None:
    service.consoles.attach("0", "rw", None, None, "somebody")
    async with web.ws_connect(place) as ws:
        told = await note(ws)
        assert told["type"] == "denied" and why in told["why"]
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE and ws.close_code == 1008


@pytest.mark.parametrize(
    "query",
    [
        "mode=x",
        "since=-1",
        "since=x",
        "since=1e99",
        "other=1",
        "since=1_0",
        "since=%201",
        "since=3.0",
        "since=%D9%A1",
        "since=1&since=2",
        "mode=ro&mode=rw",
    ],
)
async def test_a_query_that_is_none(web: aiohttp.ClientSession, service: FakeService, query: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError, match="400"):
        await web.ws_connect(f"/console/0?{query}")
    assert not service.console.viewers


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("localhost:8080", "http://localhost:8080", True),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("localhost:8080", "http://evil.example", False),
        ("localhost:8080", "http://localhost:9090", False),
        ("evil.example:8080", "http://evil.example:8080", False),
        ("localhost:8080", "null", False),
        ("localhost:8080", "http://[", False),
        ("[", "http://[", False),
    ],
)
async def test_no_foreign_page_reaches_it(
    web: aiohttp.ClientSession, service: FakeService, host: str, origin: str, allowed: bool
) -> None:
    headers = {"Host": host, "Origin": origin}
    if allowed:
        async with web.ws_connect("/console/0", headers=headers) as ws:
            assert (await note(ws))["type"] == "hello"
        return
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await web.ws_connect("/console/0", headers=headers)
    assert not service.console.viewers


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"type": 1}', '{"type": "dance"}', "[" * 60_000])
async def test_what_is_no_wish_ends_it(web: aiohttp.ClientSession, service: FakeService, text: str) -> None:
    async with web.ws_connect("/console/0") as ws:
        await note(ws)
        await ws.send_str(text)
        assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE and ws.close_code == 1003
    await until(lambda: not service.console.viewers)


async def test_the_longest_message(web: aiohttp.ClientSession, service: FakeService) -> None:
    async with web.ws_connect("/console/0") as ws:
        await ws.send_bytes(bytes(1 << 16))
    await until(lambda: len(service.console.typed) == 1 << 16)  # though it left at once


@pytest.mark.parametrize("messages", [1, 100])
async def test_who_leaves_while_the_guest_takes_nothing(
    web: aiohttp.ClientSession, service: FakeService, messages: int
) -> None:
    """Be it that more waits than is read of a socket."""
    service.console.deaf = True
    ws = await web.ws_connect("/console/0?mode=rw")
    sending = Tasks()
    sending.spawn(send(ws, [bytes(1 << 16)] * messages), "paste")
    await service.console.typing.wait()
    transport = ws._response.connection.transport  # type: ignore[union-attr]
    waiting = -1
    # until nothing is read any more
    while waiting != (waiting := transport.get_write_buffer_size()):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert service.console.viewers and (waiting > 0) is (messages > 16)
    ws._response.connection.transport.abort()  # type: ignore[union-attr]
    await until(lambda: not service.console.viewers)
    await sending.cancel()
    await ws.close()


async def send(ws: Socket, messages: list[bytes]) -> None:
    with contextlib.suppress(ConnectionError, aiohttp.ClientConnectionResetError):
        for message in messages:
            await ws.send_bytes(message)


async def test_the_keyboard_is_taken_from_one_whose_paste_waits(
    web: aiohttp.ClientSession, service: FakeService
) -> None:
    service.console.deaf = True
    async with web.ws_connect("/console/0") as one, web.ws_connect("/console/0") as two:
        await note(one), await note(two)
        await one.send_bytes(b"a long paste")
        await service.console.typing.wait()
        await one.ping()
        await two.send_json({"type": "steal"})
        notes = {told["type"]: told for told in (await note(one), await note(one))}
        assert notes["role"]["role"] == "ro" and "read-only" in notes["denied"]["why"]
        assert await note(two) == {"type": "role", "role": "rw"}
        await one.send_json({"type": "steal"})
        assert await note(one) == {"type": "role", "role": "rw"}


async def test_a_message_too_long_ends_it(web: aiohttp.ClientSession, service: FakeService) -> None:
    ws = await web.ws_connect("/console/0")
    await note(ws)
    with contextlib.suppress(ConnectionError):
        await ws.send_bytes(bytes(1 << 20))
    await until(lambda: not service.console.viewers)
    assert not service.console.typed
    await ws.close()


async def test_who_does_not_read_is_cut_off(web: aiohttp.ClientSession, service: FakeService) -> None:
    service.console.history.limit = 4096
    async with web.ws_connect("/console/0") as deaf:
        await note(deaf)
        deaf._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        for _ in range(3000):
            service.console.print(b"x" * 4096)
            await asyncio.sleep(0)
            if not service.console.viewers:
                break
        assert not service.console.viewers
        deaf._response.connection.transport.abort()  # type: ignore[union-attr]
    told = service.events.history(["console.detached"])[-1].data
    assert told["why"].startswith("too slow")


async def test_who_does_not_read_hears_of_its_end_by_that(
    door: HttpServer, web: aiohttp.ClientSession, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenpvd.rpc.websocket.GRACE", 0.05)
    async with web.ws_connect("/console/0") as deaf:
        await note(deaf)
        transport = deaf._response.connection.transport  # type: ignore[union-attr]
        transport.pause_reading()
        for _ in range(200):
            service.console.print(b"x" * 4096)
            await asyncio.sleep(0)
        service.consoles.kick(service.console.viewers[0].number, "the boss")
        assert not service.console.viewers
        await until(lambda: not door._runner.server.connections)  # type: ignore[union-attr]
        transport.resume_reading()
        with pytest.raises((ConnectionError, TypeError, AssertionError)):
            async with asyncio.timeout(5):
                while True:
                    await deaf.receive_bytes()
        assert deaf.close_code == 1006, "nobody said good bye"


async def test_the_page_and_its_files(web: aiohttp.ClientSession) -> None:
    kinds = {"/": "text/html", "/page/console.js": "text/javascript", "/page/xterm.mjs": "text/javascript"}
    for place, kind in kinds.items():
        async with web.get(place) as reply:
            assert (reply.status, reply.content_type) == (200, kind)
            assert "default-src 'self'" in reply.headers["Content-Security-Policy"]
    for place in ("/page/none.js", "/page/..%2f__init__.py", "/page/README.md"):
        async with web.get(place) as reply:
            assert reply.status == 404


async def test_what_was_typed_without_the_keyboard_is_not_typed_with_it(
    web: aiohttp.ClientSession, service: FakeService
) -> None:
    async with web.ws_connect("/console/0") as one, web.ws_connect("/console/0") as two:
        for ws in (one, two):
            await note(ws)
        await two.send_bytes(b"unheard")
        await two.send_json({"type": "steal"})
        notes = [await note(two), await note(two)]
        assert sorted(one["type"] for one in notes) == ["denied", "role"]
        await two.send_bytes(b"heard")
        await service.console.wait_typed(b"heard")
    assert service.console.typed == b"heard"


async def test_a_paste_is_over_when_the_keyboard_was_lost_in_between(
    web: aiohttp.ClientSession, service: FakeService
) -> None:
    service.console.deaf = True
    async with web.ws_connect("/console/0") as one, web.ws_connect("/console/0") as two:
        for ws in (one, two):
            await note(ws)
        for _ in range(3):
            await one.send_bytes(b"old")
        await asyncio.wait_for(service.console.typing.wait(), 5)
        viewer = service.console.viewers[0]
        for thief in (two, one):
            await thief.send_json({"type": "steal"})
            await until(lambda: viewer.mode == ("ro" if thief is two else "rw"))  # noqa: B023
        service.console.hears()
        await one.send_bytes(b"new")
        await service.console.wait_typed(b"new")
    assert service.console.typed == b"new"


async def test_who_says_what_is_no_wish_keeps_no_keyboard(service: FakeService, door: HttpServer) -> None:
    """It does not answer the close, either."""
    reader, writer = await asyncio.open_unix_connection(door._path)
    writer.write(
        b"GET /console/0 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readuntil(b'"running"}')
    assert service.console.writer is not None
    writer.write(bytes([0x81, 0x82, 0, 0, 0, 0]) + b"{}")
    await asyncio.wait_for(until(lambda: service.console.writer is None), 5)
    writer.close()
    await writer.wait_closed()
