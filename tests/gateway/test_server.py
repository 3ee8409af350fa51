"""Who comes in and who does not, by which door, and what the list says to whom."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.service import FakeService
from tests.gateway.conftest import PING, TOKENS, Host, Web, bearer, post
from xenpvd.gateway import config, listen, server
from xenpvd.gateway.access import TICKETS_MAX, Tokens
from xenpvd.gateway.guests import Guests
from xenpvd.gateway.server import Gateway
from xenpvd.tasks import Tasks

#: every door that is not for everybody
DOORS = [
    ("GET", "/v1/guests"),
    ("GET", "/metrics"),
    ("POST", "/v1/tickets"),
    ("POST", "/v1/guests/web1/rpc"),
    ("GET", "/v1/guests/web1/rpc"),
    ("GET", "/v1/guests/web1/console/0"),
]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {TOKENS['admin']}"},
        {"Authorization": TOKENS["admin"]},
    ],
)
@pytest.mark.parametrize(("method", "path"), DOORS)
async def test_nobody_comes_in_unknown(
    web: Web, host: Host, method: str, path: str, headers: dict[str, str]
) -> None:
    for query in ("", f"?token={TOKENS['admin']}", "?ticket=", "?ticket=x"):
        async with web.request(method, path + query, headers=headers) as reply:
            assert reply.status == 401 and reply.headers["WWW-Authenticate"].startswith("Bearer")
    assert host.connections("web1") == [0, 0]


def test_no_door_was_forgotten(host: Host) -> None:
    gateway = Gateway(Guests(host.run_dir), Tokens())
    routes = {route.name for route in gateway._runner.app.router.routes()}
    assert routes == {*server.OPEN, "guests", "metrics", "tickets", "rpc", "calls", "console"}
    assert len(DOORS) == len(routes) - len(server.OPEN)


def test_the_doors_are_documented(host: Host, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/gateway.md").read_text()
    gateway = Gateway(Guests(host.run_dir), Tokens())
    for resource in gateway._runner.app.router.resources():
        path = resource.canonical
        for word, example in (("{guest}", "NAME"), ("{console}", "0"), ("{name}", "FILE")):
            path = path.replace(word, example)
        assert re.search(rf"^\| .*`(GET |POST )?{path}`", text, re.MULTILINE), path
    one, two, three = re.findall(
        r"^# (?:echo '(.*)' > gateway.toml|cat >> gateway.toml <<END\n((?:.*\n)*?)END)$", text, re.MULTILINE
    )
    file = tmp_path / "gateway.toml"
    file.write_text(f"{one[0]}\n{two[1]}client_ca = 'clients.crt'\n{three[1]}")
    assert config.load(file).client[0].name == "alice"


async def test_the_list(web: Web, host: Host) -> None:
    await host.start("db1")
    found = {}
    for who in TOKENS:
        async with web.get("/v1/guests", headers=bearer(who)) as reply:
            told = await reply.json()
            found[who] = (told["role"], [guest["name"] for guest in told["guests"]])
    assert found == {
        "viewer": ("viewer", ["db1", "web1"]),
        "operator": ("operator", ["db1", "web1"]),
        "admin": ("admin", ["db1", "web1"]),
        "web": ("operator", ["web1"]),
    }
    assert told["guests"][0]["memory_mib"] == 512 and told["guests"][0]["why"] is None


async def test_guests_that_are_not_for_somebody(web: Web, host: Host) -> None:
    await host.start("db1")
    assert "result" in await post(web, "web", PING)
    for guest in ("db1", "db2"):  # one that is there looks like one that is not
        async with web.post(f"/v1/guests/{guest}/rpc", json=PING, headers=bearer("web")) as reply:
            assert (reply.status, await reply.text()) == (404, f"there is no guest '{guest}' for you here.\n")
        for door in ("rpc", "console/0"):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="404"):
                await web.ws_connect(f"/v1/guests/{guest}/{door}", headers=bearer("web"))
    async with web.get("/metrics", headers=bearer("web")) as reply:
        assert "db1" not in await reply.text()


async def test_tickets(web: Web, service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def ticket(who: str) -> str:
        async with web.post("/v1/tickets", headers=bearer(who)) as reply:
            told = await reply.json()
        assert told["seconds"] == 30
        return str(told["ticket"])

    for door, kind in (("rpc", "method"), ("console/0", "type")):
        first = await ticket("viewer")
        async with web.ws_connect(f"/v1/guests/web1/{door}?ticket={first}") as ws:
            hello = await ws.receive_json(timeout=5)
            assert kind in hello and hello.get("role", "ro") == "ro"
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await web.ws_connect(f"/v1/guests/web1/{door}?ticket={first}")
        assert first not in caplog.text
    with pytest.raises(aiohttp.WSServerHandshakeError, match="404"):
        await web.ws_connect(f"/v1/guests/db1/rpc?ticket={await ticket('web')}")
    async with web.get(f"/v1/guests?ticket={await ticket('admin')}") as reply:
        assert reply.status == 401, "for WebSockets only"
    for _ in range(TICKETS_MAX - 1):
        await ticket("admin")
    async with web.post("/v1/tickets", headers=bearer("admin")) as reply:
        assert reply.status == 429


@pytest.mark.parametrize(
    ("host_", "origin", "status"),
    [
        ("localhost:1", "http://localhost:1", 200),
        ("xen.example.org", "https://xen.example.org", 200),
        ("evil.example", "http://evil.example", 403),  # a name of its own that points at us
        ("localhost:1", "http://evil.example", 403),
        ("localhost:1", "null", 403),
    ],
)
async def test_no_foreign_page_has_an_answer(
    host: Host, host_: str, origin: str, status: int, gateway: tuple[Gateway, str]
) -> None:
    named = Gateway(Guests(host.run_dir), gateway[0]._tokens, names=("xen.example.org",))
    place = listen.bind("127.0.0.1:0")
    await named.start([place])
    headers = {"Host": host_, "Origin": origin, **bearer("admin")}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{place.getsockname()[1]}") as web:
        async with web.post("/v1/guests/web1/rpc", json=PING, headers=headers) as reply:
            assert reply.status == status
        async with web.get("/v1/guests", headers=headers) as reply:
            assert reply.status == status
    await named.stop()


async def test_the_pages(web: Web) -> None:
    for path, part in (
        ("/", "guests.js"),
        ("/page/guests.js", "/v1/guests"),
        ("/page/console.css", ".badge"),
        ("/v1/guests/web1/", "console.js"),
        ("/v1/guests/web1/page/console.js", "admit(url)"),
        ("/v1/guests/web1/page/admit.mjs", "/v1/tickets"),  # ours, not the daemon's
    ):
        async with web.get(path) as reply:
            assert reply.status == 200 and part in await reply.text()
            assert "default-src 'self'" in reply.headers["Content-Security-Policy"]
    for path in ("/page/LICENSE.xterm", "/page/..%2fserver.py", "/page/", "/nothing", "/v1/"):
        async with web.get(path) as reply:
            assert reply.status == 404


async def test_too_many_clients(
    gateway: tuple[Gateway, str], web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)
    port = int(gateway[1].rpartition(":")[2])
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    assert (await asyncio.wait_for(held[2][0].read(), 5)).startswith(b"HTTP/1.1 429 ")
    for _, writer in held:
        writer.close()
        await writer.wait_closed()


async def test_slow_clients(
    host: Host, gateway: tuple[Gateway, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_MAX", 0.2)
    hasty, place = Gateway(Guests(host.run_dir), gateway[0]._tokens), listen.bind("127.0.0.1:0")
    await hasty.start([place])
    for sent in (b"", b"GET /healthz HT"):
        reader, writer = await asyncio.open_connection(*place.getsockname())
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()
    await hasty.stop()


async def test_a_fault_of_ours_is_a_number(
    web: Web, service: FakeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(self: Guests) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Guests, "look", fail)
    async with web.get("/v1/guests", headers=bearer("viewer")) as reply:
        assert reply.status == 500
        assert "incident" in (text := await reply.text()) and "secret" not in text
    assert "ZeroDivisionError" in caplog.text


async def test_the_end_ends_everybody(host: Host, gateway: tuple[Gateway, str]) -> None:
    async with aiohttp.ClientSession(gateway[1]) as web:
        calls = await web.ws_connect("/v1/guests/web1/rpc", headers=bearer("viewer"))
        seat = await web.ws_connect("/v1/guests/web1/console/0", headers=bearer("viewer"))
        for ws in (calls, seat):
            await ws.receive_json(timeout=5)
        tasks = Tasks()
        waiting = [tasks.spawn(ws.receive(timeout=5), "client") for ws in (calls, seat)]
        async with asyncio.timeout(5):
            await gateway[0].stop()
        assert {(await one).type for one in waiting} == {aiohttp.WSMsgType.CLOSE}
        assert (calls.close_code, seat.close_code) == (1001, 1001)
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", int(gateway[1].rpartition(":")[2]))) != 0
