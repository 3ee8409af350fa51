"""JSON-RPC through the gateway: what a daemon says of it, what it never comes to hear of, and every end."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.client.conftest import HELLO, impostor
from tests.fakes.service import FakeService
from tests.gateway.conftest import ADD, PING, TOKENS, Host, Web, bearer, post, until
from tests.rpc.test_dispatch import ROWS, bare
from xenpvd.gateway import guests

QUIT = {"jsonrpc": "2.0", "method": "daemon.quit", "params": {"guest": "destroy"}, "id": 3}
WAIT = {"jsonrpc": "2.0", "method": "guest.wait", "params": {"for": "stopped"}, "id": 4}


@pytest.mark.parametrize(("message", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
async def test_it_is_the_daemons_answer(web: Web, message: Any, expected: Any) -> None:
    """The very cases that the daemon's own tests have."""
    body = message if isinstance(message, str) else json.dumps(message)
    headers = {"Content-Type": "application/json", **bearer("admin")}
    async with web.post("/v1/guests/web1/rpc", data=body.encode(), headers=headers) as reply:
        if expected is None:
            assert (reply.status, await reply.read()) == (204, b"")
        else:
            assert reply.status == 200
            answer = bare(await reply.json())
            assert answer == expected or (expected == "pong" and answer["result"]["epoch"])


async def test_roles(web: Web, service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "xenpvd")
    assert "result" in await post(web, "viewer", PING)
    assert (await post(web, "viewer", ADD))["error"]["data"]["need"] == "operator"
    assert (await post(web, "operator", QUIT))["error"]["data"]["need"] == "admin"
    assert not service.done and not service.quitting.is_set()
    assert "result" in await post(web, "operator", ADD)
    assert "result" in await post(web, "admin", QUIT)
    assert service.quitting.is_set()
    assert "was refused 'drive.add' on web1" in caplog.text and "calls 'drive.add' on web1" in caplog.text
    assert "daemon.ping" not in caplog.text, "looking is not worth a line"
    assert not any(token in caplog.text for token in TOKENS.values())


async def test_a_batch_with_one_request_too_many_does_nothing(web: Web, service: FakeService) -> None:
    first, second = await post(web, "operator", [ADD, QUIT])
    assert (first["id"], second["id"]) == (2, 3) and "nothing of this batch" in first["error"]["message"]
    assert not service.drives and not service.quitting.is_set()
    assert len(await post(web, "operator", [ADD, PING])) == 2 and service.drives


async def test_a_key_that_is_there_twice_is_not_read_in_two_ways(web: Web, service: FakeService) -> None:
    body = b'{"jsonrpc":"2.0","method":"daemon.ping","method":"daemon.quit","id":1}'
    headers = {"Content-Type": "application/json", **bearer("viewer")}
    async with web.post("/v1/guests/web1/rpc", data=body, headers=headers) as reply:
        assert (await reply.json())["error"]["code"] == -32700
    assert not service.quitting.is_set()


async def test_large_numbers_and_text_pass_whole(web: Web, service: FakeService) -> None:
    message = {**ADD, "params": {"vdev": "xvdb", "target": "/\x7fü\n\U0001f600"}, "id": 1 << 70}
    assert (await post(web, "operator", message))["id"] == 1 << 70
    assert service.asked_for["xvdb"].target == "/\x7fü\n\U0001f600"


@pytest.mark.parametrize(
    ("fields", "size", "status"),
    [
        ({"Content-Type": "text/plain"}, 2, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 2, 415),
        ({"Content-Type": "application/json"}, (1 << 20) + 1, 413),
    ],
)
async def test_bodies(web: Web, fields: dict[str, str], size: int, status: int) -> None:
    headers = {**fields, **bearer("admin")}
    async with web.post("/v1/guests/web1/rpc", data=io.BytesIO(b" " * size), headers=headers) as reply:
        assert reply.status == status


@pytest.mark.parametrize(("guest", "status"), [("web2", 404), ("No%20Name", 404), ("..%2fweb1", 404)])
async def test_guests_that_are_none(web: Web, guest: str, status: int) -> None:
    path = f"/v1/guests/{guest}/rpc"
    async with web.post(URL(path, encoded=True), json=PING, headers=bearer("admin")) as reply:
        assert reply.status == status
    with pytest.raises(aiohttp.WSServerHandshakeError, match=str(status)):
        await web.ws_connect(URL(path, encoded=True), headers=bearer("admin"))


async def test_one_that_dies_on_the_way(web: Web, host: Host) -> None:
    (host.run_dir / "web2").mkdir()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await reader.readline()

    async with impostor(host.run_dir / "web2/rpc.sock", die):
        async with web.post("/v1/guests/web2/rpc", json=ADD, headers=bearer("admin")) as reply:
            assert reply.status == 502 and "It may be done" in await reply.text()


async def test_one_that_hangs(web: Web, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "GREETING", 0.2)
    (host.run_dir / "web2").mkdir()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(host.run_dir / "web2/rpc.sock"))
        deaf.listen(0)
        async with web.post("/v1/guests/web2/rpc", json=PING, headers=bearer("admin")) as reply:
            assert reply.status == 502 and "does not answer within 0.2 s" in await reply.text()
        for door in ("rpc", "console/0"):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="502"):
                await web.ws_connect(f"/v1/guests/web2/{door}", headers=bearer("admin"))


async def test_no_more_connections_than_a_guest_has_for_us(
    web: Web, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "PER_GUEST_MAX", 1)
    async with web.ws_connect("/v1/guests/web1/rpc", headers=bearer("viewer")) as ws:
        await ws.receive_json(timeout=5)
        async with web.post("/v1/guests/web1/rpc", json=PING, headers=bearer("viewer")) as reply:
            assert reply.status == 429
        assert "result" in await post(web, "operator", PING), "at another socket"


async def test_a_client_that_leaves_gives_up_what_waits(web: Web, host: Host, service: FakeService) -> None:
    gate = service.hold("guest_wait")
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0.3):
            await web.post("/v1/guests/web1/rpc", json=WAIT, headers=bearer("viewer"))
    await asyncio.wait_for(gate.left.wait(), 5)
    await until(lambda: host.connections("web1") == [0, 0])


# ---- by WebSocket


async def test_a_websocket(web: Web, host: Host, service: FakeService) -> None:
    async with web.ws_connect("/v1/guests/web1/rpc", headers=bearer("viewer")) as ws:
        hello = await ws.receive_json(timeout=5)
        assert hello["method"] == "daemon.hello" and hello["params"]["role"] == "viewer"
        assert host.connections("web1") == [0, 1]
        await ws.send_json(PING)
        assert (await ws.receive_json(timeout=5))["id"] == 1
        await ws.send_json(ADD)
        assert (await ws.receive_json(timeout=5))["error"]["data"]["need"] == "operator"
        await ws.send_json({"jsonrpc": "2.0", "method": "drive.add", "params": ADD["params"]})
        await ws.send_json({"jsonrpc": "2.0", "method": "events.subscribe", "id": 5})
        assert (await ws.receive_json(timeout=5))["id"] == 5
        service.events.publish("drive.removed", vdev="xvdz", forced=False)
        event = await ws.receive_json(timeout=5)
        assert event["params"]["data"] == {"vdev": "xvdz", "forced": False}
        await ws.send_str("{")
        assert (await ws.receive_json(timeout=5))["error"]["code"] == -32700
    await until(lambda: host.connections("web1") == [0, 0])
    assert not service.drives


async def test_an_operators_websocket(web: Web, service: FakeService) -> None:
    async with web.ws_connect("/v1/guests/web1/rpc", headers=bearer("operator")) as ws:
        assert (await ws.receive_json(timeout=5))["params"]["role"] == "operator"
        for message, reason in ((QUIT, "PERMISSION"), ([PING, QUIT], "PERMISSION")):
            await ws.send_json(message)
            told = await ws.receive_json(timeout=5)
            assert (told[1] if isinstance(told, list) else told)["error"]["data"]["reason"] == reason
        await ws.send_json({"jsonrpc": "2.0", "method": "console.attach", "id": 9})
        assert (await ws.receive_json(timeout=5))["error"]["data"]["reason"] == "UNSUPPORTED"
        await ws.send_json(ADD)
        assert "result" in await ws.receive_json(timeout=5)
    assert service.drives and not service.console.viewers


async def test_the_daemons_end_ends_it(web: Web, host: Host) -> None:
    async with web.ws_connect("/v1/guests/web1/rpc", headers=bearer("admin")) as ws:
        await ws.receive_json(timeout=5)
        await host.stop("web1")
        assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE and ws.close_code == 1001
    await host.start("web1")
    assert "result" in await post(web, "viewer", PING)


async def test_what_is_no_text_ends_it(web: Web) -> None:
    async with web.ws_connect("/v1/guests/web1/rpc", headers=bearer("admin")) as ws:
        await ws.receive_json(timeout=5)
        await ws.send_bytes(b"x")
        assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE and ws.close_code == 1003


async def test_a_message_too_long_ends_it(web: Web) -> None:
    async with web.ws_connect("/v1/guests/web1/rpc", headers=bearer("admin")) as ws:
        await ws.receive_json(timeout=5)
        await ws.send_str(" " * ((1 << 20) + 1))
        assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE and ws.close_code == 1009
