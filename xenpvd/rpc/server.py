"""rpc.sock: newline-delimited JSON-RPC 2.0 on a unix stream socket, for many clients at a time."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from pathlib import Path

from xenpvd.errors import HostError, LimitReached
from xenpvd.rpc.connection import CONNECTIONS_MAX, Connection
from xenpvd.rpc.errors import CODES, protocol_fault
from xenpvd.rpc.service import Service
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)

#: How long clients get to read their last replies when the daemon ends.
GRACE = 1.0


class RpcServer:
    """Serves ``service`` at ``path``. The directory is ours (its lock is held): an old socket is replaced."""

    def __init__(self, service: Service, path: Path) -> None:
        self._service = service
        self._path = path
        self._tasks = Tasks()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. A client never finds a socket at ``path`` that refuses it. Raises :class:`HostError`."""
        self._server = await asyncio.start_unix_server(self._accept, sock=_listen(self._path))

    async def stop(self) -> None:
        """Refuse new clients, let the others read what is written, and end them."""
        if self._server is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        await self._tasks.cancel()
        ...

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            ...
