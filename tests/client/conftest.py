"""Real servers over the fake service that can be cut off and begun anew, and servers that are none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes.service import FakeService
from tests.rpc.conftest import pytest_asyncio_loop_factories, replies_fit_the_document, until
from xenpvd.client import Guest, Retry, connect
from xenpvd.rpc.server import RpcServer

__all__ = ["Daemon", "Naps", "impostor", "pytest_asyncio_loop_factories", "replies_fit_the_document", "until"]

HELLO = (
    b'{"jsonrpc":"2.0","method":"daemon.hello","params":{"api":"1.99","epoch":"e","guest":"web1","new":[1],'
    b'"limits":{"message":1000,"in_flight":2}}}\n'
)


class Daemon:
    """``service`` is that of the newest life."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.service = FakeService()
        self._server: RpcServer | None = None

    async def start(self, service: FakeService | None = None) -> None:
        self.service = service or self.service
        self._server = RpcServer(self.service, self.path)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def replace(self) -> FakeService:
        """Another life: another epoch, and nothing that was."""
        await self.stop()
        await self.start(FakeService())
        return self.service

    def cut(self) -> None:
        """Break every connection; the daemon goes on."""
        assert self._server is not None
        for connection in self._server._connections:
            connection._link._socket.shutdown(socket.SHUT_RDWR)

    @property
    def connections(self) -> int:
        assert self._server is not None
        return len(self._server._connections)


class Naps:
    """Instead of sleeping: ``taken`` are the pauses. ``then`` is awaited in each."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.then: Callable[[], Awaitable[object]] | None = None

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        if self.then is not None:
            await self.then()
        await asyncio.sleep(0)


@asynccontextmanager
async def impostor(
    path: Path, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[None]:
    """Somebody listens at ``path`` and does what ``serve`` says; then the connection ends."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(accept, str(path))
    try:
        yield
    finally:
        server.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "web1").mkdir()
    return tmp_path / "web1" / "rpc.sock"


@pytest.fixture
async def daemon(path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(path)
    await daemon.start()
    yield daemon
    await daemon.stop()


@pytest.fixture
def service(daemon: Daemon) -> FakeService:
    """Of the daemon's first life."""
    return daemon.service


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
async def guest(daemon: Daemon, path: Path, naps: Naps) -> AsyncIterator[Guest]:
    async with connect(path, retry=Retry(sleep=naps)) as guest:
        yield guest
