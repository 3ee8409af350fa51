"""A server over the fake service, and a client that knows nothing of JSON-RPC but lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.fakes.service import FakeService
from tests.rpc import replies
from xenpvd.rpc import http, session
from xenpvd.rpc.dispatch import Reply, dispatch
from xenpvd.rpc.registry import Call
from xenpvd.rpc.server import RpcServer


@pytest.hookimpl(optionalhook=True)  # of pytest-asyncio, since 1.5: every test here runs on both loops
def pytest_asyncio_loop_factories() -> dict[str, Any]:
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def replies_fit_the_document(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test asks for, and at whichever door."""
    broken: list[str] = []

    async def watched(message: Any, call: Call) -> Reply | None:
        reply = await dispatch(message, call)
        if reply is not None:
            broken.extend(replies.broken(message, reply))
        return reply

    for door in (session, http):  # rpc.sock and the WebSocket are sessions
        monkeypatch.setattr(door, "dispatch", watched)
    yield
    assert broken == []


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until ``condition``: for what nothing announces, as a connection's last moment."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, path: Path, greet: bool = True) -> Peer:
        peer = cls(*await asyncio.open_unix_connection(path, limit=8 << 20))
        if greet:
            assert (await peer.receive())["method"] == "daemon.hello"
        return peer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def request(self, method: str, id_: Any = 1, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params, "id": id_}
        self.send(json.dumps(message).encode() + b"\n")

    async def receive(self) -> Any:
        """The next message; None at the end."""
        line = await asyncio.wait_for(self.reader.readline(), 5)
        return json.loads(line) if line else None

    async def call(self, method: str, **params: Any) -> Any:
        self.request(method, **params)
        return await self.receive()

    async def result(self, method: str, **params: Any) -> Any:
        reply = await self.call(method, **params)
        assert "error" not in reply, reply
        return reply["result"]

    async def answers(self, method: str, params: dict[str, Any], expected: dict[str, Any]) -> None:
        """Call it; the result must have ``expected`` among its members."""
        result = await self.result(method, **params)
        assert {key: result[key] for key in expected} == expected

    async def fault(self, method: str, **params: Any) -> dict[str, Any]:
        reply = await self.call(method, **params)
        return dict(reply["error"])

    async def note(self, method: str) -> Any:
        """The params of the next message, a notification of that name."""
        message = await self.receive()
        assert (message.get("method"), "id" in message) == (method, False)
        return message["params"]

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rpc.sock"


@pytest.fixture
async def server(service: FakeService, path: Path) -> AsyncIterator[RpcServer]:
    server = RpcServer(service, path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def peer(server: RpcServer, path: Path) -> AsyncIterator[Peer]:
    peer = await Peer.connect(path)
    yield peer
    await peer.close()
