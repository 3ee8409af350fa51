"""http.sock: the same dispatch by POST, the probes, and clients of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import until
from tests.rpc.test_dispatch import ROWS, bare
from xenpvd.access import Role
from xenpvd.errors import HostError
from xenpvd.rpc import http
from xenpvd.rpc import web as manners
from xenpvd.rpc.framing import MESSAGE_MAX
from xenpvd.rpc.http import HttpServer
from xenpvd.rpc.metrics import CONTENT_TYPE
from xenpvd.rpc.session import CONNECTIONS_MAX, RESERVED
from xenpvd.tasks import Tasks
from xenpvd.views import Runstate

PING = {"jsonrpc": "2.0", "method": "daemon.ping", "id": 1}
WAIT = {"jsonrpc": "2.0", "method": "guest.wait", "params": {"for": "stopped"}, "id": 1}
ADD = {"jsonrpc": "2.0", "method": "drive.add", "params": {"vdev": "xvdb", "target": "/b"}, "id": 1}
SECRET = "/etc/shadow"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "http.sock"


@pytest.fixture
async def door(service: FakeService, path: Path) -> AsyncIterator[HttpServer]:
    door = HttpServer(service, path)
    await door.start()
    yield door
    await door.stop()


@pytest.fixture
async def web(door: HttpServer, path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A well-behaved client; after the case it is served as ever."""
    async with aiohttp.ClientSession("http://web1", connector=aiohttp.UnixConnector(str(path))) as web:
        yield web
        async with web.get("/healthz") as reply:
            assert (reply.status, await reply.text()) == (200, "ok\n")


async def test_metrics(web: aiohttp.ClientSession, service: FakeService) -> None:
    service.labels = {"tenant": "größe"}
    async with web.get("/metrics") as reply:
        assert (reply.status, reply.headers["Content-Type"]) == (200, CONTENT_TYPE)
        text = (await reply.read()).decode()
    assert 'xenpvd_guest_boots_total{guest="web1",tenant="größe"} 3\n' in text
    await post(web, PING)
    await post(web, {**PING, "params": {"x": 1}})
    await post(web, {**PING, "method": "no.such"})
    await post(web, {"method": "daemon.ping"})
    async with web.get("/metrics") as reply:
        text = await reply.text()
    calls = [line.split('method="')[1] for line in text.splitlines() if line.startswith("xenpvd_rpc_calls")]
    assert calls == [
        'daemon.ping",code="-32602"} 1',
        'daemon.ping",code="0"} 1',
        'none",code="-32601"} 1',
        'none",code="-32600"} 1',
    ]


async def post(web: aiohttp.ClientSession, message: Any) -> Any:
    async with web.post("/rpc", json=message) as reply:
        assert (reply.status, reply.content_type) == (200, "application/json")
        return await reply.json()


class Raw:
    """A client that sends bytes."""

    @classmethod
    async def connect(cls, path: Path) -> Raw:
        raw = cls()
        raw.reader, raw.writer = await asyncio.open_unix_connection(path)
        return raw

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def post(self, message: Any) -> None:
        body = json.dumps(message).encode()
        self.writer.write(head(f"Content-Length: {len(body)}") + body)

    async def status(self) -> int:
        """Of the next answer, which is read whole; 0 at the end."""
        async with asyncio.timeout(5):
            line = await self.reader.readline()
            if not line:
                return 0
            length = 0
            while (field := await self.reader.readline()).strip():
                if field.lower().startswith(b"content-length:"):
                    length = int(field.split(b":")[1])
            await self.reader.readexactly(length)
        return int(line.split()[1])

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def head(*fields: str) -> bytes:
    lines = ["POST /rpc HTTP/1.1", "Host: x", "Content-Type: application/json", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.fixture
async def raw(door: HttpServer, path: Path) -> AsyncIterator[Raw]:
    raw = await Raw.connect(path)
    yield raw
    await raw.close()


# ---- the socket


async def test_the_socket(door: HttpServer, path: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert [entry.name for entry in tmp_path.iterdir()] == ["http.sock"]
    await door.stop()
    assert not list(tmp_path.iterdir())
    await door.stop()


async def test_a_place_that_cannot_be(service: FakeService, tmp_path: Path) -> None:
    door = HttpServer(service, tmp_path / "missing/http.sock")
    with pytest.raises(HostError, match="cannot listen at"):
        await door.start()
    await door.stop()


# ---- POST /rpc


@pytest.mark.parametrize(("message", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
async def test_json_rpc(web: aiohttp.ClientSession, message: Any, expected: Any) -> None:
    body = message if isinstance(message, str) else json.dumps(message)
    async with web.post("/rpc", data=body.encode(), headers={"Content-Type": "application/json"}) as reply:
        if expected is None:
            assert (reply.status, await reply.read()) == (204, b"")
            return
        assert reply.status == 200
        got = bare(await reply.json())
    assert got.get("result", {}).keys() == {"epoch", "seq"} if expected == "pong" else got == expected


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"NaN", b"[1e400]", b'{"a":1,"a":2}', b"\xff\xfe{}", b'"\\ud800"', b"[" * 100_000],
    ids=repr,
)
async def test_bad_json_is_an_rpc_answer(web: aiohttp.ClientSession, body: bytes) -> None:
    """N1."""
    async with web.post("/rpc", data=body, headers={"Content-Type": "application/json"}) as reply:
        assert reply.status == 200
        assert (await reply.json())["error"]["data"] == {"reason": "PARSE_ERROR"}


@pytest.mark.parametrize("method", ["console.attach", "events.subscribe", "events.unsubscribe"])
async def test_no_streams(web: aiohttp.ClientSession, service: FakeService, method: str) -> None:
    console = service.consoles.attach("0", "rw", None, None, "somebody")
    request = {"jsonrpc": "2.0", "method": method, "id": 1}
    if method == "console.attach":
        request["params"] = {"mode": "steal"}
    single, batch = await post(web, request), await post(web, [request, PING])
    for reply in (single, batch[0]):
        assert reply["error"]["code"] == 1008 and "or rpc.sock" in reply["error"]["message"]
        assert reply["error"]["data"] == {"reason": "UNSUPPORTED", "feature": "stream", "hint": "rpc.sock"}
    assert "result" in batch[1]
    assert service.console.viewers == (console,) and console.mode == "rw"
    assert not service.events._subscriptions


async def test_the_longest_body(web: aiohttp.ClientSession) -> None:
    """N4."""
    body = json.dumps(PING).encode().ljust(MESSAGE_MAX)
    kind = {"Content-Type": "application/json"}
    async with web.post("/rpc", data=io.BytesIO(body), headers=kind) as reply:
        assert (await reply.json())["id"] == 1
    async with web.post("/rpc", data=io.BytesIO(body + b" "), headers=kind) as reply:
        assert reply.status == 413


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
async def test_kinds_of_body(web: aiohttp.ClientSession, fields: dict[str, str], status: int) -> None:
    async with web.post("/rpc", data=json.dumps(PING).encode(), headers=fields) as reply:
        assert reply.status == status


# ---- the other routes


async def test_openrpc(web: aiohttp.ClientSession) -> None:
    async with web.get("/openrpc.json") as reply:
        assert reply.content_type == "application/json"
        assert await reply.json() == (await post(web, {**PING, "method": "rpc.discover"}))["result"]


@pytest.mark.parametrize("state", list(Runstate))
async def test_readyz(web: aiohttp.ClientSession, service: FakeService, state: Runstate) -> None:
    service.state = state
    async with web.get("/readyz") as reply:
        assert reply.status == (200 if state is Runstate.RUNNING else 503)
        told = await reply.json()
    phase = "devices" if state in (Runstate.RUNNING, Runstate.PAUSED) else None
    assert told == {"name": "web1", "state": state.value, "phase": phase, "ready": state is Runstate.RUNNING}


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/rpc", 400),
        ("POST", "/healthz", 405),
        ("HEAD", "/healthz", 200),
        ("GET", "/none", 404),
        ("GET", "/../rpc.sock", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
    ],
)
async def test_what_there_is_not(
    web: aiohttp.ClientSession, raw: Raw, method: str, target: str, status: int
) -> None:
    raw.writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(5):
        answer = await raw.reader.read()
    assert int(answer.split()[1]) == status


async def test_a_fault_of_ours_keeps_its_text(
    web: aiohttp.ClientSession, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.get_running_loop().set_debug(True)  # in which aiohttp would send the traceback
    service.faults["guest_status"] = ValueError(SECRET)
    async with web.get("/readyz") as reply:
        assert reply.status == 500
        text = await reply.text()
    assert "incident" in text and SECRET not in text and "Traceback" not in text
    assert SECRET in caplog.text
    answer = await post(web, {**PING, "method": "guest.status"})
    assert answer["error"]["data"]["reason"] == "INTERNAL" and SECRET not in str(answer)


# ---- clients that leave


@pytest.mark.parametrize("how", ["close", "half-close", "while nobody reads"])
async def test_a_wait_ends_with_its_client(
    web: aiohttp.ClientSession, door: HttpServer, raw: Raw, service: FakeService, how: str
) -> None:
    gate = service.hold("guest_wait")
    raw.post(WAIT)
    await gate.entered.wait()
    if how == "half-close":
        raw.writer.write_eof()
    else:
        if how == "while nobody reads":
            raw.writer.write(head("Content-Length: 1000000") + b" " * 900_000)
            for _ in range(100):
                await asyncio.sleep(0)
            assert raw.writer.transport.get_write_buffer_size(), "it is held back"
        raw.writer.transport.abort()
    await until(lambda: not door._callers)
    assert service.done == []


async def test_an_effect_outlives_its_client_and_the_wait_behind_it_does_not_begin(
    web: aiohttp.ClientSession, door: HttpServer, raw: Raw, service: FakeService
) -> None:
    adding = service.hold("drive_add")
    service.hold("guest_wait")
    raw.post([ADD, WAIT])
    await adding.entered.wait()
    await raw.close()
    (caller,) = door._callers
    await until(lambda: caller._gone)
    adding.open.set()
    await until(lambda: not door._callers)
    assert service.done == ["drive_add"]


async def test_what_leavers_began_is_bounded(
    web: aiohttp.ClientSession, door: HttpServer, path: Path, service: FakeService
) -> None:
    gate = service.hold("drive_add")
    for _ in range(CONNECTIONS_MAX):
        raw, before = await Raw.connect(path), len(door._callers)
        raw.post(ADD)
        await until(lambda before=before: len(door._callers) > before)  # type: ignore[misc]
        await raw.close()
    async with web.post("/rpc", json=PING) as reply:
        assert reply.status == 429
    gate.open.set()
    await until(lambda: not door._callers)
    assert "result" in await post(web, PING)


async def test_a_body_cut_short(
    web: aiohttp.ClientSession, door: HttpServer, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    raw.writer.write(head("Content-Length: 100") + b'{"jsonrpc"')
    http_server = door._runner.server
    assert http_server is not None
    await until(lambda: len(http_server.connections) == 1 and http_server.requests_count == 1)
    await raw.close()
    await until(lambda: not http_server.connections)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


# ---- hostile ones


BODY = json.dumps(PING)
GARBAGE = [
    b"\0" * 100,
    bytes(range(256)) * 40,
    BODY.encode() + b"\n",
    b"GET /healthz HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
    head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    head("Content-Length: 5", "Content-Length: 6") + b"123456",
    head("Content-Length: -1"),
    head("Content-Length: 1_0") + b"0123456789",
    head("Transfer-Encoding: chunked") + b"zz\r\n\r\n",
    head("Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
    head("Transfer-Encoding: xchunked") + b"0\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda data: repr(data[-24:]))
async def test_garbage(
    web: aiohttp.ClientSession, raw: Raw, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """N19."""
    raw.writer.write(garbage)
    assert await raw.status() == 400
    assert await raw.status() == 0, "and the connection ends"
    assert "Traceback" not in caplog.text


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    # the first one runs from the connection on, and a busy machine may take its time until a test sends
    for module, limit, seconds in (
        (http, "IDLE_MAX", 1.0),
        (http, "LINGER", 0.05),
        (manners, "BODY_TIME", 0.05),
    ):
        monkeypatch.setattr(module, limit, seconds)


async def test_a_body_that_goes_wrong_on_the_way(
    hurry: None, door: HttpServer, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    raw.writer.write(head("Transfer-Encoding: chunked") + b"1\r\n{\r\n")
    http_server = door._runner.server
    assert http_server is not None
    await until(lambda: http_server.requests_count == 1)
    raw.writer.write(b"zz\r\n")
    # aiohttp's C parser does not tell who reads the body, so its time runs out; the one in Python does.
    assert await raw.status() in (400, 408)
    assert "Traceback" not in caplog.text


async def test_a_body_without_end(hurry: None, door: HttpServer, raw: Raw) -> None:
    """N4."""

    async def flood() -> None:
        while True:
            raw.writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            await raw.writer.drain()

    raw.writer.write(head("Transfer-Encoding: chunked"))
    flooding = Tasks().spawn(flood(), "flood")
    assert await raw.status() == 413
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(5):
            await flooding


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"", 0), (b"POST /rpc HT", 0), (head("Content-Length: 10") + b"{", 408)],
    ids=["silent", "half a head", "half a body"],
)
async def test_slow_clients(hurry: None, door: HttpServer, raw: Raw, sent: bytes, status: int) -> None:
    """N11."""
    raw.writer.write(sent)
    assert await raw.status() == status
    if status:
        assert await raw.status() == 0


async def test_a_slow_second_head(hurry: None, door: HttpServer, raw: Raw) -> None:
    raw.post(PING)
    assert await raw.status() == 200
    raw.writer.write(b"POST /rpc HT")
    assert await raw.status() == 0


async def test_too_many_clients(door: HttpServer, path: Path) -> None:
    """N12."""
    raws = [await Raw.connect(path) for _ in range(200)]
    for raw in raws[CONNECTIONS_MAX:]:
        assert await raw.status() == 429
        assert await raw.status() == 0
    for raw in raws[:CONNECTIONS_MAX]:
        raw.post(PING)
    assert {await raw.status() for raw in raws[:CONNECTIONS_MAX]} == {200}
    await raws[0].close()
    assert door._runner.server is not None
    await until(lambda: len(door._runner.server.connections) < CONNECTIONS_MAX)  # type: ignore[union-attr]
    raws.append(await Raw.connect(path))
    raws[-1].post(PING)
    assert await raws[-1].status() == 200
    for raw in raws[1:]:
        await raw.close()


# ---- the end


async def test_stop_flushes_replies_and_ends_waits(
    monkeypatch: pytest.MonkeyPatch, service: FakeService, path: Path
) -> None:
    monkeypatch.setattr(http, "GRACE", 30)  # waits must not use it up
    door = HttpServer(service, path)
    await door.start()
    adder, waiter, idle = [await Raw.connect(path) for _ in range(3)]
    waiting, adding = service.hold("guest_wait"), service.hold("drive_add")
    adder.post(ADD)
    waiter.post(WAIT)
    await waiting.entered.wait()
    await adding.entered.wait()
    asyncio.get_running_loop().call_soon(adding.open.set)
    async with asyncio.timeout(5):
        await door.stop()
    assert await adder.status() == 200, "an effect gets a moment to answer"
    assert await waiter.status() == await idle.status() == 0
    assert service.done == ["drive_add"]
    for raw in (adder, waiter, idle):
        await raw.close()


async def test_stop_does_not_wait_for_ever(
    service: FakeService, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call that never ends, and one client that never reads."""
    monkeypatch.setattr(http, "GRACE", 0.05)
    door = HttpServer(service, path)
    await door.start()
    raw = await Raw.connect(path)
    gate = service.hold("drive_add")
    raw.post(ADD)
    await gate.entered.wait()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        deaf.connect(str(path))
        try:
            while True:
                deaf.send(b"GET /openrpc.json HTTP/1.1\r\nHost: x\r\n\r\n")
                await asyncio.sleep(0)
        except BlockingIOError:
            pass
        async with asyncio.timeout(5):
            await door.stop()
        assert not door._callers
    assert await raw.status() == 0
    await raw.close()


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8080", "http://localhost:8080", 200),
        ("x", None, 200),  # no browser
        ("evil.example:8080", "http://evil.example:8080", 403),  # a name of its own that points at us
        ("localhost:8080", "http://evil.example", 403),
        ("localhost:8080", "null", 403),
        ("localhost:8080", "http://[", 403),
    ],
)
@pytest.mark.parametrize("what", ["POST /rpc", "GET /", "GET /openrpc.json", "GET /readyz"])
async def test_no_foreign_page_has_an_answer(
    web: aiohttp.ClientSession, service: FakeService, host: str, origin: str | None, status: int, what: str
) -> None:
    method, path = what.split()
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    async with web.request(method, path, headers=headers, json=PING if method == "POST" else None) as reply:
        assert reply.status == status


async def test_roles(service: FakeService, path: Path) -> None:
    roles: list[Role | None] = ["viewer", None]
    door = HttpServer(service, path, lambda peer: roles[0], 0o666)
    await door.start()
    async with aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(path))) as web:
        async with web.post("/rpc", json=ADD) as reply:
            assert (await reply.json())["error"]["data"]["need"] == "operator"
        async with web.post("/rpc", json=PING) as reply:
            assert "error" not in await reply.json()
        for mode in ("rw", "steal"):
            async with web.ws_connect(f"/console/0?mode={mode}") as ws:
                told = await ws.receive_json(timeout=5)
                assert told["type"] == "denied" and "that takes operator" in told["why"]
        async with web.ws_connect("/console/0") as ws:
            assert (await ws.receive_json(timeout=5))["role"] == "ro"
            await ws.send_json({"type": "steal"})
            assert "that takes operator" in (await ws.receive_json(timeout=5))["why"]
        roles.pop(0)
        for place in ("/", "/healthz", "/openrpc.json", "/console/0"):
            async with web.get(place) as reply:
                assert reply.status == 403 and "no role" in await reply.text()
        async with web.post("/rpc", json=PING) as reply:
            assert reply.status == 403
    await door.stop()


async def test_who_has_no_role_takes_no_place(service: FakeService, path: Path) -> None:
    role: Role | None = None
    door = HttpServer(service, path, lambda peer: role)
    await door.start()
    strangers = [await Raw.connect(path) for _ in range(CONNECTIONS_MAX)]
    assert {await stranger.status() for stranger in strangers} == {403}
    role = "viewer"
    viewers = [await Raw.connect(path) for _ in range(CONNECTIONS_MAX)]
    for viewer in viewers[-RESERVED:]:
        assert await viewer.status() == 429
    role = "admin"
    admin = await Raw.connect(path)
    admin.post(PING)
    assert await admin.status() == 200
    for raw in (*strangers, *viewers, admin):
        await raw.close()
    await door.stop()
