"""Clients of every kind: in a hurry, slow, rude, gone. Each harms itself only."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.console_frontend import IN_SIZE, ConsoleFrontend
from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer, until
from xenpvd.backends.console.backend import Console
from xenpvd.consoles import Consoles
from xenpvd.rpc.framing import MESSAGE_MAX
from xenpvd.rpc.models import API
from xenpvd.rpc.server import RpcServer
from xenpvd.rpc.session import CONNECTIONS_MAX, IN_FLIGHT_MAX


@pytest.fixture
async def others_live(server: RpcServer, peer: Peer) -> Any:
    """After the case another client is served as ever."""
    yield
    assert (await peer.call("daemon.ping"))["result"]["seq"] >= 0


async def test_greeting(server: RpcServer, path: Path, service: FakeService) -> None:
    peer = await Peer.connect(path, greet=False)
    hello = await peer.receive()
    assert hello == {
        "jsonrpc": "2.0",
        "method": "daemon.hello",
        "params": {
            "name": "xenpvd",
            "version": "0.1.0",
            "api": API,
            "features": ["console"],
            "epoch": service.events.epoch,
            "guest": "web1",
            "state": "running",
            "role": "admin",
            "limits": {"message": 1048576, "batch": 64, "in_flight": 32, "connections": 64, "queue": 1024},
        },
    }
    await peer.close()


async def test_answers_come_in_the_order_of_completion(peer: Peer, service: FakeService) -> None:
    gates = [service.hold("guest_wait"), service.hold("guest_shutdown")]
    peer.request("guest.wait", id_="wait", **{"for": "stopped"})
    peer.request("guest.shutdown", id_="shutdown")
    for gate in gates:
        await gate.entered.wait()
    assert (await peer.call("guest.status"))["id"] == 1
    gates[1].open.set()
    assert (await peer.receive())["id"] == "shutdown"
    gates[0].open.set()
    assert (await peer.receive())["id"] == "wait"


async def test_in_flight_limit_holds_back_and_loses_nothing(peer: Peer, service: FakeService) -> None:
    """N13."""
    entered = 0
    go = asyncio.Event()
    full = asyncio.Event()

    async def wait(for_: str, timeout: float, since: int) -> Any:
        nonlocal entered
        entered += 1
        if entered == IN_FLIGHT_MAX:
            full.set()
        await go.wait()
        return service.guest_status()

    service.guest_wait = wait  # type: ignore[method-assign]
    for id_ in range(100):
        peer.request("guest.wait", id_=id_, **{"for": "stopped"})
    await asyncio.wait_for(full.wait(), 5)
    for _ in range(20):
        await asyncio.sleep(0)
    assert entered == IN_FLIGHT_MAX
    go.set()
    assert {(await peer.receive())["id"] for _ in range(100)} == set(range(100))


async def test_a_client_without_newlines(peer: Peer) -> None:
    for id_ in range(3):
        peer.send(json.dumps({"jsonrpc": "2.0", "method": "daemon.ping", "id": id_}).encode())
        assert (await peer.receive())["id"] == id_


async def test_one_byte_at_a_time(peer: Peer) -> None:
    """N11."""
    for byte in b'{"jsonrpc":"2.0","method":"daemon.ping","id":1}\n':
        peer.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await peer.receive())["id"] == 1


async def test_half_close_is_answered(
    server: RpcServer, path: Path, service: FakeService, others_live: None
) -> None:
    """N14: as ``echo … | socat - rpc.sock`` does, also while it waits."""
    peer = await Peer.connect(path)
    gate = service.hold("guest_wait")
    peer.request("guest.wait", **{"for": "stopped"})
    peer.writer.write_eof()
    await gate.entered.wait()
    gate.open.set()
    assert (await peer.receive())["result"]["state"] == "running"
    assert await peer.receive() is None
    await peer.close()


async def test_half_close_goes_on_to_see_events(server: RpcServer, path: Path, service: FakeService) -> None:
    peer = await Peer.connect(path)
    peer.request("events.subscribe")
    peer.writer.write_eof()
    assert (await peer.receive())["id"] == 1
    service.events.publish("later")
    assert (await peer.receive())["params"]["name"] == "later"
    await peer.close()
    await until(lambda: not server._connections)
    assert not service.events._subscriptions


async def test_a_wait_ends_with_its_client(
    server: RpcServer, path: Path, service: FakeService, others_live: None
) -> None:
    """N15."""
    peer = await Peer.connect(path)
    gate = service.hold("guest_wait")
    for id_ in range(
        IN_FLIGHT_MAX + 5
    ):  # the reader itself is held back: the hangup must be seen all the same
        peer.request("guest.wait", id_=id_, **{"for": "stopped"})
    await gate.entered.wait()
    others = set(server._connections)
    await peer.close()
    await until(lambda: not others <= server._connections)
    assert "guest_wait" not in service.done


async def test_an_effect_outlives_its_client(
    server: RpcServer, path: Path, service: FakeService, others_live: None
) -> None:
    """N15."""
    peer = await Peer.connect(path)
    gate = service.hold("drive_add")
    peer.request("drive.add", vdev="xvdb", target="/b")
    await gate.entered.wait()
    await peer.close()
    (gone,) = (connection for connection in server._connections if connection._session._calls)
    await gone._session.gone.wait()
    gate.open.set()
    await until(lambda: gone not in server._connections)
    assert service.done == ["drive_add"]


@pytest.fixture
async def stuck(service: FakeService) -> AsyncIterator[Console]:
    """The service has the real console, of a guest that does not read it."""
    console, guest = Console(service.events.publish, 1 << 16), ConsoleFrontend()
    console.connect(guest.page, guest.port)

    service.consoles = Consoles(service.events.publish, console)
    yield console
    await console.disconnect()


async def test_a_guest_that_does_not_read_locks_nobody_out(
    server: RpcServer, path: Path, service: FakeService, peer: Peer, stuck: Console
) -> None:
    for _ in range(CONNECTIONS_MAX - 1):
        typist = await Peer.connect(path)
        typist.request("console.write", text="x" * 60_000, timeout=86400)
        await typist.close()
    await until(lambda: len(server._connections) == 1)
    assert (await peer.result("guest.status"))["state"] == "running"
    told = await peer.fault("console.write", text="x" * 60_000, timeout=0.01)
    assert told["data"] == {"reason": "TIMEOUT", "written": 0}, "those who left have filled it"
    other = await Peer.connect(path)
    assert (await other.result("guest.destroy"))["state"] == "stopped"
    await other.close()


async def test_a_short_text_is_typed_though_its_client_does_not_wait(
    server: RpcServer, path: Path, stuck: Console
) -> None:
    peer = await Peer.connect(path)
    peer.request("console.write", text="x" * 2000)
    await peer.close()
    await until(lambda: not server._connections)
    assert stuck._typed == b"x" * (2000 - IN_SIZE)


GARBAGE = [
    b"",
    b"\0",
    b"\n" * 70_000,
    bytes(range(256)) * 40,
    b"GET /rpc HTTP/1.1\r\nHost: x\r\n\r\n",
    b'{"jsonrpc":"2.0","method":"daemon.pi',
    b"]" * 5000 + b"\n",
    b"{}" * 3000,
    b'""\n' * 3000,
    b'{"jsonrpc":"2.0","method":"daemon.ping"}' * 3000,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda data: repr(data[:12]))
async def test_garbage(server: RpcServer, path: Path, others_live: None, garbage: bytes) -> None:
    peer = await Peer.connect(path)
    peer.send(garbage)
    peer.writer.write_eof()
    while (reply := await peer.receive()) is not None:
        assert reply["error"]["code"] in (-32700, -32600)
    await peer.close()


async def test_no_end(server: RpcServer, path: Path, others_live: None) -> None:
    """N5: 100 MB without a newline: one error, and no more than a message's length is ever kept."""
    reader, writer = await asyncio.open_unix_connection(path)
    peer = Peer(reader, writer)
    await peer.receive()
    sent = 0
    with pytest.raises(ConnectionError):
        for _ in range(100):
            writer.write(b"x" * 1_000_000)
            await writer.drain()
            sent += 1
    assert sent * 1_000_000 < MESSAGE_MAX + 5_000_000
    await peer.close()


async def test_too_long_is_said_before_the_end(server: RpcServer, path: Path, others_live: None) -> None:
    """N5."""
    peer = await Peer.connect(path)
    gate_free = {"jsonrpc": "2.0", "method": "daemon.ping", "id": "first"}
    peer.send(json.dumps(gate_free).encode() + b'["' + b"x" * MESSAGE_MAX)
    replies = [await peer.receive(), await peer.receive()]
    assert {reply["id"] for reply in replies} == {"first", None}
    (refused,) = (reply for reply in replies if reply["id"] is None)
    assert refused["error"]["code"] == 1006
    assert await peer.receive() is None
    await peer.close()


@pytest.mark.parametrize("request_first", [False, True])
async def test_reset(
    server: RpcServer, path: Path, service: FakeService, others_live: None, request_first: bool
) -> None:
    """N15: gone with its greeting and replies unread: the kernel resets the connection."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    if request_first:
        sock.sendall(b'{"jsonrpc":"2.0","method":"guest.config","id":1}\n' * 100)
    sock.close()
    await until(lambda: len(server._connections) == 2)
    await until(lambda: len(server._connections) == 1)


async def test_a_subscriber_that_does_not_read_loses_events_only(
    server: RpcServer, path: Path, service: FakeService, peer: Peer
) -> None:
    """N17."""
    slow = await Peer.connect(path)
    await slow.result("events.subscribe", names=["n"])
    slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
    for i in range(200):
        for j in range(100):
            service.events.publish("n", i=i, j=j, pad="x" * 100)
        assert (await peer.call("daemon.ping"))["id"] == 1, "others are served meanwhile"
    slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
    seen: list[int] = []
    lost: list[tuple[int, int]] = []
    while not seen or seen[-1] < service.events.seq:
        params = (await slow.receive())["params"]
        if params["name"] == "events.lost":
            lost.append((params["data"]["from"], params["data"]["to"]))
        else:
            seen.append(params["seq"])
    assert lost
    told = sum(last - first + 1 for first, last in lost)
    assert len(seen) + told == service.events.seq, "every event is either sent or said to be lost"
    await slow.close()


async def test_a_client_that_never_reads_replies_stops_itself(
    server: RpcServer, path: Path, service: FakeService, others_live: None
) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    sock.connect(str(path))
    line = b'{"jsonrpc":"2.0","method":"rpc.discover","id":1}\n'
    sent = 0
    for _ in range(300):
        try:
            sent += sock.send(line * 100)
        except BlockingIOError:
            break
        for _ in range(10):
            await asyncio.sleep(0)
    else:
        pytest.fail(f"took {sent} bytes of requests and never held back")
    sock.close()
    await until(lambda: len(server._connections) == 1)


async def test_a_service_that_cannot_greet_ends_that_connection(
    server: RpcServer, path: Path, service: FakeService, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    service.faults["daemon_info"] = ValueError("broken")
    second = await Peer.connect(path, greet=False)
    assert await second.receive() is None
    await second.close()
    assert "broken" in caplog.text
    assert (await peer.call("daemon.ping"))["id"] == 1
