"""A QMP server over the fake service, and a client that knows nothing of QMP but lines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.service import FakeService
from tests.rpc import conftest
from xenpvd.rpc.qmp.server import QmpServer


class Peer(conftest.Peer):
    """Events are put aside while it waits for a reply, and replies are never expected among events."""

    def __init__(self, *ends: Any) -> None:
        super().__init__(*ends)
        self.events: list[dict[str, Any]] = []

    @classmethod
    async def greeted(cls, path: Path) -> Peer:
        peer = await cls.connect(path, greet=False)
        assert isinstance(peer, cls)
        assert "QMP" in await peer.receive()
        return peer

    @classmethod
    async def negotiated(cls, path: Path) -> Peer:
        peer = await cls.greeted(path)
        assert await peer.execute("qmp_capabilities") == {}
        return peer

    def command(self, name: str, arguments: dict[str, Any] | None = None, id_: Any = 1) -> None:
        message = {"execute": name, "id": id_, **({} if arguments is None else {"arguments": arguments})}
        self.send(json.dumps(message).encode())  # no newline, as qemu.qmp

    async def reply(self) -> Any:
        while "event" in (message := await self.receive()):
            self.events.append(message)
        return message

    async def execute(self, name: str, /, **arguments: Any) -> Any:
        """The result."""
        self.command(name, arguments)
        reply = await self.reply()
        assert reply.keys() == {"return", "id"}, reply
        return reply["return"]

    async def refused(self, name: str, /, **arguments: Any) -> tuple[str, str]:
        """The class and the words."""
        self.command(name, arguments)
        reply = await self.reply()
        assert reply.keys() == {"error", "id"} and reply["error"].keys() == {"class", "desc"}, reply
        return reply["error"]["class"], reply["error"]["desc"]

    async def event(self, name: str) -> Any:
        """The data of the next event, which must be ``name``."""
        event = self.events.pop(0) if self.events else await self.receive()
        assert event["event"] == name, event
        assert event["timestamp"].keys() == {"seconds", "microseconds"}
        return event.get("data")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


@pytest.fixture
async def server(service: FakeService, path: Path) -> AsyncIterator[QmpServer]:
    server = QmpServer(service, path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def peer(server: QmpServer, path: Path) -> AsyncIterator[Peer]:
    peer = await Peer.negotiated(path)
    yield peer
    await peer.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "data.img"
    image.write_bytes(bytes(8192))
    return image
