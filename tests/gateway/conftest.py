"""A host with guests: real RPC servers over fake services, and a gateway before them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.service import FakeService
from tests.gateway.openssl import make_certificates
from tests.rpc.conftest import pytest_asyncio_loop_factories, replies_fit_the_document, until
from xenpvd.access import Role
from xenpvd.gateway import listen
from xenpvd.gateway.access import Tokens
from xenpvd.gateway.guests import Guests
from xenpvd.gateway.server import Gateway
from xenpvd.rpc.server import RpcServer

__all__ = [
    "ADD",
    "PING",
    "TOKENS",
    "Host",
    "Web",
    "bearer",
    "pytest_asyncio_loop_factories",
    "replies_fit_the_document",
    "until",
]

PING = {"jsonrpc": "2.0", "method": "daemon.ping", "id": 1}
ADD = {"jsonrpc": "2.0", "method": "drive.add", "params": {"vdev": "xvdb", "target": "/b"}, "id": 2}

#: by role; "web" is an operator of web* only
TOKENS = {"viewer": "secret-v", "operator": "secret-o", "admin": "secret-a", "web": "secret-w"}

Web = aiohttp.ClientSession


def bearer(who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[who]}"}


class Host:
    """``services`` by name."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.services: dict[str, FakeService] = {}
        self._servers: dict[str, list[RpcServer]] = {}

    async def start(self, name: str, looking: Role = "viewer") -> FakeService:
        """``looking`` is what rpc-ro.sock grants."""
        place = self.run_dir / name
        place.mkdir(exist_ok=True)
        service = self.services[name] = FakeService(name)
        self._servers[name] = [
            RpcServer(service, place / "rpc.sock"),
            RpcServer(service, place / "rpc-ro.sock", lambda peer: looking, 0o666),
        ]
        for server in self._servers[name]:
            await server.start()
        return service

    async def stop(self, name: str) -> None:
        for server in self._servers.pop(name, ()):
            await server.stop()

    def connections(self, name: str) -> list[int]:
        """At rpc.sock and rpc-ro.sock."""
        return [len(server._connections) for server in self._servers[name]]

    async def close(self) -> None:
        for name in tuple(self._servers):
            await self.stop(name)


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """A gateway sets that of the whole process's log."""
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: see :func:`make_certificates`."""
    place = tmp_path_factory.mktemp("tls")
    make_certificates(place)
    return place


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """With one guest, web1."""
    (tmp_path / "run").mkdir()
    host = Host(tmp_path / "run")
    await host.start("web1")
    yield host
    await host.close()


@pytest.fixture
def service(host: Host) -> FakeService:
    return host.services["web1"]


def tokens() -> Tokens:
    return Tokens(
        f"{hashlib.sha256(token.encode()).hexdigest()} {'operator web*' if who == 'web' else who}"
        for who, token in TOKENS.items()
    )


@pytest.fixture
async def gateway(host: Host) -> AsyncIterator[tuple[Gateway, str]]:
    """And its address."""
    gateway, place = Gateway(Guests(host.run_dir), tokens()), listen.bind("127.0.0.1:0")
    await gateway.start([place])
    yield gateway, f"http://127.0.0.1:{place.getsockname()[1]}"
    await gateway.stop()


@pytest.fixture
async def web(gateway: tuple[Gateway, str]) -> AsyncIterator[Web]:
    """Somebody without a token; afterwards the gateway serves as ever."""
    async with aiohttp.ClientSession(gateway[1]) as web:
        yield web
        async with web.get("/healthz") as reply:
            assert (reply.status, await reply.text()) == (200, "ok\n")


async def post(web: Web, who: str, message: Any, guest: str = "web1") -> Any:
    async with web.post(f"/v1/guests/{guest}/rpc", json=message, headers=bearer(who)) as reply:
        assert (reply.status, reply.content_type) == (200, "application/json"), await reply.text()
        return await reply.json()
