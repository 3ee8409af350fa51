"""rpc.sock: newline-delimited JSON-RPC 2.0 on a unix stream socket; and any socket for many such clients."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from pydantic_core import to_json

from xenpvd.access import Role, RoleOf, everything
from xenpvd.errors import HostError, LimitReached, PermissionRefused, XenpvdError
from xenpvd.rpc.connection import Connection
from xenpvd.rpc.errors import fault_of
from xenpvd.rpc.link import GRACE
from xenpvd.rpc.service import Service
from xenpvd.rpc.session import places
from xenpvd.sockets import credentials, listen
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)

NOBODY = "cannot serve you: you have no role here. Ask the daemon's admin to list you ([access])."


class Client(Protocol):
    """One who has connected."""

    async def serve(self) -> None:
        """Until it has left. Raises :class:`HostError` if it cannot begin."""

    def ending(self) -> set[asyncio.Task[None]]:
        """The daemon ends: nothing new begins; returns the tasks which still have something to say."""


class SocketServer(ABC):
    """Serves clients at ``path``, whose ``mode`` says who can connect and ``role_of`` what they may then.
    The directory is ours (its lock is held): an old socket is replaced."""

    def __init__(self, path: Path, role_of: RoleOf = everything, mode: int = 0o660) -> None:
        self._path = path
        self._role_of = role_of
        self._mode = mode
        self._tasks = Tasks()
        self._connections: set[Client] = set()
        self._server: asyncio.AbstractServer | None = None

    @abstractmethod
    def _client(self, role: Role, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Client: ...

    @abstractmethod
    def _refusal(self, fault: XenpvdError) -> bytes:
        """What one reads who is sent away."""

    async def start(self) -> None:
        """Listen. A client never finds a socket at ``path`` that refuses it. Raises :class:`HostError`."""
        self._server = await asyncio.start_unix_server(self._accept, sock=listen(self._path, self._mode))

    async def stop(self) -> None:
        """Take no more clients, give the others a moment to get what is under way, and end them."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._path.unlink(missing_ok=True)
        ending = {task for connection in self._connections for task in connection.ending()}
        if ending:
            await asyncio.wait(ending, timeout=GRACE)
        await self._tasks.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted just before stop
            writer.close()
            return
        peer = credentials(writer.transport)
        if (role := self._role_of(peer)) is None:
            log.warning("%s may nothing here: it is sent away from %s", peer, self._path.name)
            return self._send_away(writer, PermissionRefused(NOBODY, need="viewer", role=None))
        if len(self._connections) >= (most := places(role)):
            why = f"cannot take another client: {len(self._connections)} are connected. Close one."
            return self._send_away(writer, LimitReached(why, limit=most))
        client = self._client(role, reader, writer)
        self._connections.add(client)
        task = self._tasks.spawn(self._serve(client, writer), f"client of {self._path.name}")
        task.add_done_callback(lambda _: self._connections.discard(client))

    async def _serve(self, client: Client, writer: asyncio.StreamWriter) -> None:
        try:
            await client.serve()
        except HostError as fault:
            log.warning("a client of %s is sent away: %s", self._path.name, fault)
            self._send_away(writer, fault)

    def _send_away(self, writer: asyncio.StreamWriter, fault: XenpvdError) -> None:
        writer.write(self._refusal(fault))
        writer.close()


class RpcServer(SocketServer):
    """Serves ``service`` by JSON-RPC."""

    def __init__(self, service: Service, path: Path, role_of: RoleOf = everything, mode: int = 0o660) -> None:
        super().__init__(path, role_of, mode)
        self._service = service

    def _client(self, role: Role, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Client:
        return Connection(self._service, role, reader, writer)

    def _refusal(self, fault: XenpvdError) -> bytes:
        return to_json(fault_of(fault, "connect").reply(None)) + b"\n"
