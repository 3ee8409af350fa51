"""console.attach: the connection becomes raw bytes, and ends cleanly from either side."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import Peer, until
from xenpvd.rpc.server import RpcServer


def attach(newline: bytes = b"\n", **params: object) -> bytes:
    request = {"jsonrpc": "2.0", "method": "console.attach", "params": params, "id": 1}
    return json.dumps(request).encode() + newline


async def test_replay_then_live_both_ways(peer: Peer, service: FakeService) -> None:
    """M6."""
    service.console.print(b"before \xff\0\r\n")
    told = await peer.result("console.attach")
    assert told == {"mode": "rw", "offset": 0, "viewer": service.console.viewers[0].number}
    assert await peer.reader.readexactly(11) == b"before \xff\0\r\n"
    service.console.echo = True
    peer.send(b'{"x"}\n\x1d\x00')
    assert await peer.reader.readexactly(8) == b'{"x"}\n\x1d\x00'
    assert service.console.viewers[0].who.startswith("uid ")


async def test_since(peer: Peer, service: FakeService) -> None:
    service.console.print(b"0123456789")
    assert (await peer.result("console.attach", since=7))["offset"] == 7
    assert await peer.reader.readexactly(3) == b"789"


@pytest.mark.parametrize("newline", [b"", b"\n", b"\r\n"])
async def test_what_follows_the_request_is_typed(peer: Peer, service: FakeService, newline: bytes) -> None:
    peer.send(attach(newline) + b'{"jsonrpc"\n')
    await asyncio.wait_for(service.console.wait_typed(b'{"jsonrpc"\n'), 5)
    assert service.console.typed == b'{"jsonrpc"\n'


async def test_a_reader_types_nothing(peer: Peer, service: FakeService) -> None:
    assert (await peer.result("console.attach", mode="ro"))["mode"] == "ro"
    peer.send(b"rm -rf /\r")
    peer.writer.write_eof()
    service.console.print(b"still here")
    assert await peer.reader.readexactly(10) == b"still here", "it watches on after its end of input"
    assert not service.console.typed


async def test_busy_steal(peer: Peer, server: RpcServer, path: Path, service: FakeService) -> None:
    await peer.result("console.attach")
    second = await Peer.connect(path)
    told = await second.fault("console.attach")
    assert told["data"]["reason"] == "BUSY"
    assert (await second.result("console.attach", mode="steal"))["mode"] == "rw", "a refusal leaves it JSON"
    second.send(b"mine")
    await asyncio.wait_for(service.console.wait_typed(b"mine"), 5)
    peer.send(b"no more")
    service.console.print(b"for all")
    assert await peer.reader.readexactly(7) == b"for all"
    assert service.console.typed == b"mine"
    await second.close()


async def test_the_viewer_ends(peer: Peer, service: FakeService) -> None:
    await peer.result("console.attach")
    service.console.print(b"last words")
    service.console.close()
    assert await asyncio.wait_for(peer.reader.read(), 5) == b"last words"
    assert not service.console.viewers


async def test_the_client_leaves(peer: Peer, service: FakeService) -> None:
    await peer.result("console.attach")
    viewer = service.console.viewers[0]
    await peer.close()
    await until(lambda: viewer.ended is not None)
    assert not service.console.viewers


async def test_the_client_leaves_while_the_guest_takes_no_input(
    server: RpcServer, peer: Peer, service: FakeService
) -> None:
    """M10."""
    service.console.deaf = True
    await peer.result("console.attach")
    viewer = service.console.viewers[0]
    peer.send(b"x")
    await service.console.typing.wait()
    await peer.close()
    await until(lambda: viewer.ended is not None)
    await until(lambda: not server._connections)


async def test_the_request_must_be_alone(peer: Peer, service: FakeService) -> None:
    peer.send(b"[" + attach(b"") + b"]\n")
    (reply,) = await peer.receive()
    assert reply["error"]["data"]["reason"] == "BUSY"
    peer.send(b'{"jsonrpc":"2.0","method":"console.attach"}\n')  # nobody could know that it is raw now
    gate = service.hold("guest_wait")
    peer.request("guest.wait", id_="wait", **{"for": "stopped"})
    await gate.entered.wait()
    assert (await peer.fault("console.attach"))["data"]["reason"] == "BUSY"
    gate.open.set()
    assert (await peer.receive())["id"] == "wait"
    await peer.result("events.subscribe")
    assert (await peer.fault("console.attach"))["data"]["reason"] == "BUSY"
    await peer.result("events.unsubscribe")
    await peer.result("console.attach")


async def test_a_viewer_is_not_left_behind_by_a_client_that_is_gone(
    server: RpcServer, path: Path, service: FakeService, peer: Peer
) -> None:
    """M8, N15."""
    for _ in range(50):
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(attach())
        writer.transport.abort()
    async with asyncio.timeout(5):
        while len(server._connections) > 1 or service.console.viewers:
            await peer.call("daemon.ping")
