"""A console through the gateway: the daemon's own messages, by people of every role."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.client.conftest import HELLO, impostor
from tests.fakes.service import FakeService
from tests.gateway.conftest import Host, Web, bearer, until
from xenpvd.gateway import console

CONSOLE = "/v1/guests/web1/console"

Socket = aiohttp.ClientWebSocketResponse


async def note(ws: Socket) -> dict[str, Any]:
    return dict(await ws.receive_json(timeout=5))


async def read(ws: Socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        data += await ws.receive_bytes(timeout=5)
    return data


async def ended(ws: Socket, code: int) -> None:
    assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE and ws.close_code == code


async def test_hello_replay_and_live_both_ways(web: Web, host: Host, service: FakeService) -> None:
    service.console.print(b"before \xff\0\r\n")
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator")) as ws:
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
    await until(lambda: not service.console.viewers and host.connections("web1") == [0, 0])


async def test_it_goes_on_where_it_was(web: Web, service: FakeService) -> None:
    service.console.print(b"0123456789")
    async with web.ws_connect(f"{CONSOLE}/0?since=7", headers=bearer("viewer")) as ws:
        assert (await note(ws))["offset"] == 7
        assert await read(ws, 3) == b"789"


async def test_a_viewer_looks_on(web: Web, host: Host, service: FakeService) -> None:
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("viewer")) as ws:
        assert (await note(ws))["role"] == "ro"
        assert host.connections("web1") == [0, 2], "the socket for looking"
        await ws.send_bytes(b"rm -rf /\r")
        assert "read-only" in (await note(ws))["why"]
        await ws.send_json({"type": "steal"})
        assert "that takes operator" in (await note(ws))["why"]
        service.console.print(b"on")
        assert await read(ws, 2) == b"on", "and nothing is lost by that"
    for mode in ("rw", "steal"):
        async with web.ws_connect(f"{CONSOLE}/0?mode={mode}", headers=bearer("viewer")) as ws:
            assert "that takes operator" in (await note(ws))["why"]
            await ended(ws, 1008)
    assert service.console.typed == b""


@pytest.mark.parametrize("mode", ["rw", "steal"])
async def test_a_viewer_has_no_keyboard_whatever_its_socket_would_let_it(
    web: Web, host: Host, service: FakeService, mode: str
) -> None:
    await host.stop("web1")
    await host.start("web1", looking="admin")
    async with web.ws_connect(f"{CONSOLE}/0?mode={mode}", headers=bearer("viewer")) as ws:
        assert (await note(ws))["type"] == "denied"
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("viewer")) as ws:
        assert (await note(ws))["role"] == "ro"


async def test_the_keyboard_goes_from_one_to_the_other(web: Web, host: Host, service: FakeService) -> None:
    async with (
        web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator")) as one,
        web.ws_connect(f"{CONSOLE}/0", headers=bearer("admin")) as two,
    ):
        roles = [(await note(ws))["role"] for ws in (one, two)]
        assert roles == ["rw", "ro"]
        for thief, victim in ((two, one), (one, two), (two, one)):
            service.console.print(b"between")
            for ws in (one, two):
                assert await read(ws, 7) == b"between"
            await thief.send_json({"type": "steal"})
            assert await note(thief) == {"type": "role", "role": "rw"}
            assert await note(victim) == {"type": "role", "role": "ro"}
        await two.send_bytes(b"heard")
        await service.console.wait_typed(b"heard")
        await one.send_bytes(b"not heard")
        assert (await note(one))["type"] == "denied"
        await until(lambda: len(service.console.viewers) == 2)  # nobody is left behind
        service.console.print(b"end")
        for ws in (one, two):
            assert await read(ws, 3) == b"end"
    await until(lambda: host.connections("web1") == [0, 0])
    assert service.console.typed == b"heard"


async def test_who_loses_the_keyboard_to_nobody_is_told(web: Web, service: FakeService) -> None:
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator")) as ws:
        assert (await note(ws))["role"] == "rw"
        service.console.viewers[0].release()
        assert await note(ws) == {"type": "role", "role": "ro"}


async def test_what_happens_to_the_guest_is_told(web: Web, service: FakeService) -> None:
    async with web.ws_connect(f"{CONSOLE}/0?mode=ro", headers=bearer("admin")) as ws:
        await note(ws)
        service.events.publish("guest.state", from_="running", to="stopped", reason=None)
        assert await note(ws) == {"type": "state", "state": "stopped"}
        service.consoles.kick(service.console.viewers[0].number, "the boss")
        assert await note(ws) == {"type": "end", "why": "ended by the boss"}
        await ended(ws, 1008)


async def test_another_viewers_end_is_not_ours(web: Web, service: FakeService) -> None:
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator")) as one:
        await note(one)
        async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator")) as two:
            service.consoles.kick((await note(two))["viewer"], "the boss")
            assert (await note(two))["type"] == "end"
        service.console.print(b"on")
        assert await read(one, 2) == b"on"


async def test_where_a_boot_begins_is_told_among_the_bytes(web: Web, service: FakeService) -> None:
    service.console.print(b"first")
    service.console.opened()
    service.console.print(b"second")
    async with web.ws_connect(f"{CONSOLE}/0?since=3", headers=bearer("viewer")) as ws:
        await note(ws)
        assert await read(ws, 2) == b"st"
        assert await note(ws) == {"type": "opened", "offset": 5, "boot": 1}
        assert await read(ws, 6) == b"second"
        service.console.opened()
        service.console.print(b"third")
        kinds = sorted([(await ws.receive(timeout=5)).type for _ in range(2)])
        assert kinds == [aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY]


@pytest.mark.parametrize(
    ("place", "why"),
    [("7", "Choose from 0, xen"), ("xen?mode=rw", "for reading only"), ("0?mode=rw", "has it")],
)
async def test_denied(web: Web, place: str, why: str) -> None:
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator")) as first:
        await note(first)
        async with web.ws_connect(f"{CONSOLE}/{place}", headers=bearer("operator")) as ws:
            told = await note(ws)
            assert told["type"] == "denied" and why in told["why"]
            await ended(ws, 1008)


async def test_the_console_of_xen(web: Web) -> None:
    async with web.ws_connect(f"{CONSOLE}/xen", headers=bearer("operator")) as ws:
        assert (await note(ws))["role"] == "ro"
        assert (await ws.receive_bytes(timeout=5)).startswith(b"(XEN)")


@pytest.mark.parametrize("query", ["since=x", "mode=root", "mode=ro&mode=rw", "foo=1"])
async def test_a_query_that_is_none(web: Web, query: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError, match="400"):
        await web.ws_connect(f"{CONSOLE}/0?{query}", headers=bearer("admin"))


@pytest.mark.parametrize("text", ["{", "[]", '{"type":"dance"}'])
async def test_what_is_no_wish_ends_it(web: Web, text: str) -> None:
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("admin")) as ws:
        await note(ws)
        await ws.send_str(text)
        await ended(ws, 1003)


async def test_a_guest_that_goes_and_comes(web: Web, host: Host) -> None:
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("viewer")) as ws:
        await note(ws)
        await host.stop("web1")
        assert await note(ws) == {"type": "end", "why": "the daemon has ended it"}
        await ended(ws, 1001)
    with pytest.raises(aiohttp.WSServerHandshakeError, match="404"):
        await web.ws_connect(f"{CONSOLE}/0", headers=bearer("viewer"))
    await host.start("web1")
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("viewer")) as ws:
        assert (await note(ws))["type"] == "hello"


@pytest.mark.parametrize("said", [b"", b'{"id":0,"result":7}\n', b'{"id":0,"result":{"seq":1}}\n' * 9])
async def test_a_daemon_that_hangs_or_lies(
    web: Web, host: Host, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(console, "GREETING", 0.5)
    (host.run_dir / "web2").mkdir()
    gate = asyncio.Event()

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO + said)
        await gate.wait()

    async with impostor(host.run_dir / "web2/rpc.sock", lie):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="502"):
            await web.ws_connect("/v1/guests/web2/console/0", headers=bearer("admin"))
        gate.set()


async def test_a_keyboard_that_cannot_be_had_is_told_and_nothing_is_lost(
    web: Web, service: FakeService
) -> None:
    async with web.ws_connect(f"{CONSOLE}/xen", headers=bearer("operator")) as ws:
        await note(ws)
        await ws.receive_bytes(timeout=5)
        await ws.send_json({"type": "steal"})
        assert "for reading only" in (await note(ws))["why"]
        service.consoles.xen.history.append(b"(XEN) on")
        assert await read(ws, 8) == b"(XEN) on"


async def test_with_a_keyboard_for_everybody(web: Web, service: FakeService) -> None:
    service.console.input = "shared"
    async with (
        web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator")) as one,
        web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator")) as two,
    ):
        assert [(await note(ws))["role"] for ws in (one, two)] == ["rw", "rw"]
        for ws, text in ((one, b"one"), (two, b"two")):
            await ws.send_bytes(text)
            await service.console.wait_typed(text)


async def test_a_slow_reader_takes_the_keyboard_and_nothing_is_lost(web: Web, service: FakeService) -> None:
    service.console.history.limit = 1 << 24
    first = service.console.attach("rw", None, "first")
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator"), compress=0) as ws:
        viewer = (await note(ws))["viewer"]
        text = b"".join(b"%07d\n" % n for n in range(1 << 20))
        for at in range(0, len(text), 1 << 16):  # more than all the sockets in between take
            service.console.print(text[at : at + (1 << 16)])
        await ws.send_json({"type": "steal"})
        await until(lambda: first.mode == "ro")
        data, notes = b"", []
        while len(data) < len(text):
            message = await ws.receive(timeout=10)
            if message.type is aiohttp.WSMsgType.BINARY:
                data += message.data
            else:
                notes.append(message.json())
        assert data == text and notes == [{"type": "role", "role": "rw"}]
        service.consoles.kick(viewer, "the boss")
        assert await note(ws) == {"type": "end", "why": "ended by the boss"}


async def test_one_who_was_too_slow_takes_no_keyboard(web: Web, service: FakeService) -> None:
    first = service.console.attach("rw", None, "first")
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator")) as ws:
        await note(ws)
        service.console.detach(service.console.viewers[1], "too slow: 7 bytes were lost")
        await ws.send_json({"type": "steal"})
        told = [await note(ws)]
        if told[0]["type"] == "denied":
            told.append(await note(ws))
        assert told[-1] == {"type": "end", "why": "too slow: 7 bytes were lost"}
    assert first.mode == "rw"


async def test_who_leaves_amid_a_paste_that_the_guest_does_not_take(web: Web, service: FakeService) -> None:
    service.console.deaf = True
    ws = await web.ws_connect(f"{CONSOLE}/0", headers=bearer("operator"))
    await note(ws)
    for _ in range(console.TYPED_MAX + 60):  # the sockets in between take some
        await ws.send_bytes(bytes(1 << 16))
    told = await note(ws)
    assert told["type"] == "denied" and "the guest takes no input" in told["why"]
    assert ws._conn is not None
    ws._conn.transport.abort()
    await ws.close()
    await until(lambda: service.console.writer is None)


async def test_a_boot_that_is_told_of_while_its_bytes_are_sent() -> None:
    """Events have a connection of their own: they may come while a slow client takes the bytes."""
    sent: list[Any] = []

    class Slow:
        async def send_json(self, note: dict[str, Any]) -> None:
            sent.append(note)

        async def send_bytes(self, data: bytes) -> None:
            sent.append(data)
            if len(sent) == 1:
                await seat._tell("console.opened", {"console": "0", "offset": 5, "boot": 2})

    nothing: Any = None
    slow: Any = Slow()
    seat = console._Seat(nothing, "web1", "0", nothing, slow)
    seat._rest = b"first" + b"second"
    await seat._show()
    assert sent == [b"firstsecond", {"type": "opened", "offset": 5, "boot": 2}]


async def test_a_viewer_types_nothing_whoever_gives_it_the_keyboard(
    web: Web, host: Host, service: FakeService
) -> None:
    await host.stop("web1")
    service = await host.start("web1", looking="admin")
    async with web.ws_connect(f"{CONSOLE}/0", headers=bearer("viewer")) as ws:
        service.consoles.steal((await note(ws))["viewer"])
        assert await note(ws) == {"type": "role", "role": "rw"}
        await ws.send_bytes(b"rm -rf /\r")
        assert "read-only" in (await note(ws))["why"]
    assert service.console.typed == b""
