"""rpc.sock: newline-delimited JSON-RPC 2.0 on a unix stream socket; and any socket for many such clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

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
    def _client(self, role: Role, sock: socket.socket) -> Client: ...

    @abstractmethod
    def _refusal(self, fault: XenpvdError) -> bytes:
        """What one reads who is sent away."""

    async def start(self) -> None:
        """Listen. A client never finds a socket at ``path`` that refuses it. Raises :class:`HostError`."""
        loop, sock = asyncio.get_running_loop(), listen(self._path, self._mode)
        self._server = await loop.create_unix_server(lambda: _Porter(self._accept, self._refuse), sock=sock)

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

    def _accept(self, sock: socket.socket) -> None:
        if self._server is None:  # accepted just before stop
            sock.close()
            return
        peer = credentials(sock)
        if (role := self._role_of(peer)) is None:
            log.warning("%s may nothing here: it is sent away from %s", peer, self._path.name)
            return self._send_away(sock, PermissionRefused(NOBODY, need="viewer", role=None))
        if len(self._connections) >= (most := places(role)):
            why = f"cannot take another client: {len(self._connections)} are connected. Close one."
            return self._send_away(sock, LimitReached(why, limit=most))
        client = self._client(role, sock)
        self._connections.add(client)
        task = self._tasks.spawn(self._serve(client, sock), f"client of {self._path.name}")

        def ended(_: object) -> None:
            self._connections.discard(client)
            sock.close()  # it may have been ended before it began

        task.add_done_callback(ended)

    async def _serve(self, client: Client, sock: socket.socket) -> None:
        try:
            await client.serve()
        except HostError as fault:
            log.warning("a client of %s is sent away: %s", self._path.name, fault)
            self._send_away(sock, fault)

    def _send_away(self, sock: socket.socket, fault: XenpvdError) -> None:
        with sock, contextlib.suppress(OSError):  # nothing is before it: there is room, or nobody
            sock.send(self._refusal(fault))

    def _refuse(self, fault: HostError) -> bytes:
        log.warning("a client of %s is sent away: %s", self._path.name, fault)
        return self._refusal(fault)


class _Porter(asyncio.Protocol):
    """Takes the socket from its transport before that reads: it would drop descriptors (``Intake``)."""

    def __init__(self, accept: Callable[[socket.socket], None], refuse: Callable[[HostError], bytes]) -> None:
        self._accept = accept
        self._refuse = refuse

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        try:
            fd = os.dup(transport.get_extra_info("socket").fileno())
        except OSError as fault:
            why = f"cannot serve you: {fault.strerror}. Close some clients, or raise the limit (LimitNOFILE)."
            transport.write(self._refuse(HostError(why, fault.errno or 0, "dup")))
            transport.close()
            return
        transport.abort()  # closes its own descriptor only
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        self._accept(sock)


class RpcServer(SocketServer):
    """Serves ``service`` by JSON-RPC."""

    def __init__(self, service: Service, path: Path, role_of: RoleOf = everything, mode: int = 0o660) -> None:
        super().__init__(path, role_of, mode)
        self._service = service

    def _client(self, role: Role, sock: socket.socket) -> Client:
        return Connection(self._service, role, sock)

    def _refusal(self, fault: XenpvdError) -> bytes:
        return to_json(fault_of(fault, "connect").reply(None)) + b"\n"
