"""rpc.sock: newline-delimited JSON-RPC 2.0 on a unix stream socket, for many clients at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic_core import to_json

from xenpvd.errors import LimitReached
from xenpvd.rpc.connection import CONNECTIONS_MAX, GRACE, Connection
from xenpvd.rpc.errors import CODES, protocol_fault
from xenpvd.rpc.service import Service
from xenpvd.sockets import listen
from xenpvd.tasks import Tasks


class RpcServer:
    """Serves ``service`` at ``path``. The directory is ours (its lock is held): an old socket is replaced."""

    def __init__(self, service: Service, path: Path) -> None:
        self._service = service
        self._path = path
        self._tasks = Tasks()
        self._connections: set[Connection] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen. A client never finds a socket at ``path`` that refuses it. Raises :class:`HostError`."""
        self._server = await asyncio.start_unix_server(self._accept, sock=listen(self._path))

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
        if len(self._connections) >= CONNECTIONS_MAX:
            why = f"cannot take another client: {CONNECTIONS_MAX} are connected. Close one."
            writer.write(
                to_json(protocol_fault(CODES[LimitReached], why, LimitReached.reason).reply(None)) + b"\n"
            )
            writer.close()
            return
        connection = Connection(self._service, reader, writer)
        self._connections.add(connection)
        task = self._tasks.spawn(connection.serve(), "rpc client")
        task.add_done_callback(lambda _: self._connections.discard(connection))
