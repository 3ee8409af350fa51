"""The unix socket: sections F and I of bad clients, with real sockets."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore import quota
from xenpvd.backends.xenstore import socket as module
from xenpvd.backends.xenstore.domain import Domain
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.backends.xenstore.socket import XenstoreSocket


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def put(self, type_: int, payload: bytes, req_id: int = 1) -> None:
        self.writer.write(struct.pack("<4I", type_, req_id, 0, len(payload)) + payload)

    async def get(self) -> tuple[int, int, bytes]:
        """(type, req_id, payload) of the next message."""
        async with asyncio.timeout(10):
            type_, req_id, _, length = struct.unpack("<4I", await self.reader.readexactly(16))
            return type_, req_id, await self.reader.readexactly(length)

    async def ask(self, type_: int, payload: bytes) -> bytes | str:
        self.put(type_, payload)
        kind, _, answer = await self.get()
        return answer.decode().rstrip("\0") if kind == abi.XS_ERROR else answer

    async def ended(self) -> bool:
        async with asyncio.timeout(10):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True


class Rig:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Xenstore(lambda name, **data: None)
        self.server = XenstoreSocket(self.store, path)
        self.clients: list[Client] = []

    async def client(self, path: Path | None = None) -> Client:
        client = Client(*await asyncio.open_unix_connection(path or self.path))
        self.clients.append(client)
        return client

    async def left(self) -> None:
        """Wait until the server has seen that all have gone."""
        async with asyncio.timeout(10):
            while self.server.peers:  # noqa: ASYNC110
                await asyncio.sleep(0)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path / "s")
    await rig.server.start()
    yield rig
    await rig.server.stop()
    for client in rig.clients:
        client.writer.close()


async def test_clients_share_the_tree_and_hear_of_it(rig: Rig):
    one, two = await rig.client(), await rig.client()
    assert await one.ask(abi.XS_WATCH, b"/a\0t\0") == b"OK\0"
    assert await one.get() == (abi.XS_WATCH_EVENT, 0, b"/a\0t\0")
    assert await two.ask(abi.XS_WRITE, b"/a/b\0\0\xff") == b"OK\0"
    assert await one.get() == (abi.XS_WATCH_EVENT, 0, b"/a/b\0t\0")
    assert await one.ask(abi.XS_READ, b"/a/b\0") == b"\0\xff"
    assert rig.store.client.read("/a/b") == b"\0\xff"


async def test_requests_in_pieces(rig: Rig):
    """F1, F2: also none that waits for its end holds up another."""
    slow, other = await rig.client(), await rig.client()
    whole = struct.pack("<4I", abi.XS_DIRECTORY, 9, 0, 2) + b"/\0"
    for n in range(len(whole) - 1):
        slow.writer.write(whole[n : n + 1])
        await slow.writer.drain()
        assert await other.ask(abi.XS_READ, b"/\0") == b""
    slow.writer.write(whole[-1:])
    assert await slow.get() == (abi.XS_DIRECTORY, 9, b"")


@pytest.mark.parametrize("length", [4097, 2**31, 2**32 - 1])
async def test_a_message_that_is_too_long_ends_its_client_only(rig: Rig, length: int):
    """F3."""
    bad, good = await rig.client(), await rig.client()
    bad.writer.write(struct.pack("<4I", abi.XS_READ, 1, 0, length))
    assert await bad.ended()
    assert await good.ask(abi.XS_READ, b"/\0") == b""


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0", b"/a", b"/a\0\0", b"/a\0b\0", b"/a/\0", b"//\0", b"/a%b\0", b"/local/domain/\0"],
)
async def test_paths_that_are_none(rig: Rig, payload: bytes):
    """F5, F6, G1, G2, G4: a relative one is only a domain's."""
    assert await (await rig.client()).ask(abi.XS_READ, payload) == "EINVAL"


async def test_who_does_not_read_is_not_read_from(rig: Rig):
    """F9, I8: what waits for a client is bounded, and comes in order once it reads."""
    rig.store.client.write("/big", bytes(4000))
    client, other = await rig.client(), await rig.client()
    assert await other.ask(abi.XS_READ, b"/\0") == b""
    sent = 0
    while not (held := [peer for peer in rig.server.peers if peer._full]):
        client.put(abi.XS_READ, b"/big\0", sent)
        sent += 1
        await asyncio.sleep(0)
        assert sent < 100_000, "it takes all"
    for _ in range(1000):
        client.put(abi.XS_READ, b"/big\0", sent)
        sent += 1
        await asyncio.sleep(0)
    assert held[0]._outbox.outstanding <= 20 and len(held[0]._parser._buffer) < 1 << 20
    assert await other.ask(abi.XS_READ, b"/\0") == b""
    for n in range(sent):
        assert await client.get() == (abi.XS_READ, n, bytes(4000))


async def test_who_does_not_read_its_events_is_cut_off(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """I6, K8: never in silence, and nobody else suffers."""
    monkeypatch.setattr(quota.DOM0, "watch_events", 100)
    deaf, other = await rig.client(), await rig.client()
    await deaf.ask(abi.XS_WATCH, b"/a\0t\0")
    n = 0
    while len(rig.server.peers) == 2:
        assert await other.ask(abi.XS_WRITE, b"/a/%0900d\0" % n) == b"OK\0"
        n += 1
    assert await other.ask(abi.XS_READ, b"/\0") == b""


async def test_a_half_closed_client_is_answered(rig: Rig):
    """F10."""
    client = await rig.client()
    for n in range(100):
        client.put(abi.XS_READ, b"/\0", n)
    client.writer.write(b"half a hea")
    client.writer.write_eof()
    assert [(await client.get())[1] for _ in range(100)] == list(range(100))
    assert await client.ended()


async def test_who_leaves_takes_watches_and_transactions_along(rig: Rig):
    """F11, J7."""
    client = await rig.client()
    await client.ask(abi.XS_WATCH, b"/a\0t\0")
    await client.get()
    await client.ask(abi.XS_TRANSACTION_START, b"\0")
    client.put(abi.XS_READ, b"/\0")
    client.writer.write(struct.pack("<4I", abi.XS_READ, 1, 0, 100) + b"unfinished")
    client.writer.transport.abort()
    await rig.left()
    rig.store.client.write("/a", "1")
    assert rig.store._state.watches._by_connection.keys() == set()
    assert len(rig.store._outlets) == 1, "domain 0's own"


async def test_one_client_has_no_more_than_its_turn(rig: Rig):
    busy, other = await rig.client(), await rig.client()
    for n in range(20 * module.BURST):
        busy.put(abi.XS_READ, b"/\0", n)
    assert await other.ask(abi.XS_READ, b"/\0") == b""
    for n in range(20 * module.BURST):
        assert (await busy.get())[1] == n


async def test_too_many_clients(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CLIENTS_MAX", 2)
    one, _ = await rig.client(), await rig.client()
    assert await one.ask(abi.XS_READ, b"/\0") == b""
    assert await (await rig.client()).ended()
    assert await one.ask(abi.XS_READ, b"/\0") == b""


async def test_our_own_fault_ends_the_client_only(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    bad, good = await rig.client(), await rig.client()
    await good.ask(abi.XS_READ, b"/\0")
    monkeypatch.setattr("xenpvd.backends.xenstore.server.call", lambda *_: 1 / 0)
    bad.put(abi.XS_READ, b"/\0")
    assert await bad.ended()
    monkeypatch.undo()
    assert await good.ask(abi.XS_READ, b"/\0") == b""


async def test_a_guests_socket(rig: Rig, tmp_path: Path):
    rig.store.introduce(3)
    server = XenstoreSocket(rig.store, tmp_path / "g", 3, 0o600)
    await server.start()
    guest = await rig.client(tmp_path / "g")
    assert await guest.ask(abi.XS_WRITE, b"data/x\0mine") == b"OK\0"
    assert rig.store.client.read("/local/domain/3/data/x") == b"mine"
    assert await guest.ask(abi.XS_WRITE, b"x\0mine") == "EACCES"
    assert await guest.ask(abi.XS_READ, b"/\0") == "EACCES"
    assert await guest.ask(abi.XS_CONTROL, b"help\0") == "EACCES"
    assert (tmp_path / "g").stat().st_mode & 0o777 == 0o600
    await server.stop()
    assert await guest.ended() and not (tmp_path / "g").exists()
    await server.stop()


@pytest.mark.parametrize("looks", [1, 2, 3])
async def test_a_rest_that_ends_while_it_is_looked_at(rig: Rig, monkeypatch: pytest.MonkeyPatch, looks: int):
    client = await rig.client()
    assert await client.ask(abi.XS_READ, b"/\0") == b""
    left = [0.001] * looks
    monkeypatch.setattr(Domain, "resting", lambda domain, now: left.pop() if left else None)
    assert await client.ask(abi.XS_READ, b"/\0") == b""
