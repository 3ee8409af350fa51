"""Clients of http.sock that break its protocols; tests/rpc/test_http.py has the others."""

from __future__ import annotations

import asyncio
import base64
import os
import struct

import aiohttp
import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import until
from tests.rpc.test_http import BODY, Raw, door, head, hurry, path, raw, web
from xenpvd.rpc.http import HttpServer

__all__ = ["door", "hurry", "path", "raw", "web"]  # fixtures


def frame(
    opcode: int, data: bytes = b"", *, first: int = 0x80, mask: bool = True, says: int | None = None
) -> bytes:
    """RFC 6455: ``first`` has FIN and the reserved bits, ``says`` is another length than the true one."""
    length = len(data) if says is None else says
    if length < 126:
        head = bytes([first | opcode, mask << 7 | length])
    elif length < 1 << 16:
        head = struct.pack(">BBH", first | opcode, mask << 7 | 126, length)
    else:
        head = struct.pack(">BBQ", first | opcode, mask << 7 | 127, length)
    if not mask:
        return head + data
    key = b"\1\2\3\4"
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(data))


PING = frame(1, BODY.encode())


class WebSocket:
    """The bare protocol: what aiohttp's own client could not be made to send."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw

    async def open(self) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        fields = [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        ]
        self.raw.writer.write("\r\n".join(["GET /rpc HTTP/1.1", "Host: x", *fields, "", ""]).encode())
        assert b" 101 " in await self.raw.reader.readuntil(b"\r\n\r\n")
        assert (await self.receive())[0] == 1

    async def receive(self) -> tuple[int, bytes]:
        """Opcode and data of the next frame; (8, b"") also where the connection ends without one."""
        try:
            async with asyncio.timeout(5):
                first, length = await self.raw.reader.readexactly(2)
                if length == 126:
                    (length,) = struct.unpack(">H", await self.raw.reader.readexactly(2))
                return first & 15, await self.raw.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 8, b""


@pytest.fixture
async def ws(raw: Raw) -> WebSocket:
    ws = WebSocket(raw)
    await ws.open()
    return ws


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(9, b"x", first=0), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(3, b"x"), 1002),
        (frame(1, b"x", first=0xC0), 1002),
        (frame(0, b"x"), 1002),
        (frame(1, b"{", first=0) + frame(1, b"}"), 1002),
        (frame(8, b"\3"), 1002),
        (frame(8, struct.pack(">H", 1005)), 1002),
        (frame(1, b"\xff\xfe"), 1007),
        (frame(1, b"", says=(1 << 20) + 2), 1009),
        (frame(1, b"", says=(1 << 63) - 1), 1009),
    ],
    ids=["fragmented control", "long control", "opcode", "reserved bit", "nothing to continue", "begun twice",
         "half a code", "code for nobody", "no UTF-8", "too long", "much too long"],
)  # fmt: skip
async def test_frames_that_cannot_be(
    web: aiohttp.ClientSession, door: HttpServer, ws: WebSocket, sent: bytes, code: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """N18: the connection ends with the code of RFC 6455, and nobody else's."""
    ws.raw.writer.write(sent)
    assert await ws.receive() == (8, struct.pack(">H", code))
    await until(lambda: not door._sockets)
    assert "Traceback" not in caplog.text


async def test_a_message_of_pieces_without_end(
    web: aiohttp.ClientSession, door: HttpServer, ws: WebSocket
) -> None:
    """N18: the limit is the message's."""
    with pytest.raises(ConnectionError):
        for number in range(100):
            ws.raw.writer.write(frame(0 if number else 1, b"x" * (1 << 16), first=0))
            await ws.raw.writer.drain()
    await until(lambda: not door._sockets)


async def test_a_flood_of_pings(web: aiohttp.ClientSession, ws: WebSocket) -> None:
    """N18: each has its pong, and others are served in between."""
    for number in range(20):
        ws.raw.writer.write(frame(9, b"%d" % number) * 500)
        async with web.get("/healthz") as reply:
            assert reply.status == 200
        for _ in range(500):
            assert await ws.receive() == (10, b"%d" % number)


async def test_pieces_and_pings_between_them(ws: WebSocket) -> None:
    """N18: a message in as many frames as bytes."""
    data = BODY.encode()
    for at in range(len(data)):
        last = at == len(data) - 1
        ws.raw.writer.write(frame(0 if at else 1, data[at : at + 1], first=0x80 if last else 0))
        if not last:
            ws.raw.writer.write(frame(9))
    while (answer := await ws.receive())[0] == 10:
        pass
    assert b'"result"' in answer[1]


@pytest.mark.parametrize(
    "smuggled",
    [
        head("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n",
        head("Transfer-Encoding: chunked", "Transfer-Encoding: identity") + b"0\r\n\r\n",
        head("Transfer-Encoding:\x0bchunked") + b"0\r\n\r\n",
        head("Content-Length: +2") + b"{}",
        head("Content-Length: 0x2") + b"{}",
        head(f"Content-Length: {1 << 63}"),
        head("Content-Length: 2\0") + b"{}",
        b"POST /rpc HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: b\nContent-Length: 1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
    ],
    ids=["both", "two codings", "vertical tab", "plus", "hex", "2^63", "NUL", "bare LF", "bare LF in a field",
         "10,000 fields", "a field of 100 KB"],
)  # fmt: skip
async def test_two_readings_of_one_request(
    hurry: None, web: aiohttp.ClientSession, raw: Raw, service: FakeService, smuggled: bytes
) -> None:
    """N19, N4: there is one answer, a refusal, and the connection ends."""
    raw.writer.write(smuggled)
    assert await raw.status() in (400, 413)
    assert await raw.status() == 0
