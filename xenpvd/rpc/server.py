"""rpc.sock: newline-delimited JSON-RPC 2.0 on a unix stream socket, for many clients at a time."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

from pydantic_core import to_json

from xenpvd.errors import HostError, LimitReached
from xenpvd.rpc.connection import CONNECTIONS_MAX, GRACE, Connection
from xenpvd.rpc.errors import CODES, protocol_fault
from xenpvd.rpc.service import Service
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


def listen(path: Path) -> socket.socket:
    """A socket bound by another name, made 0660, listening, and only then renamed to ``path``. Raises
    :class:`HostError`."""
    new = path.with_suffix(".new")  # no longer than path: sun_path has 107 bytes
    if len(os.fsencode(path)) > 107:
        why = f"cannot listen at {path}: a socket's path has at most 107 bytes. Choose a shorter --run-dir."
        raise HostError(why, errno.ENAMETOOLONG, str(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        new.unlink(missing_ok=True)
        sock.bind(str(new))
        new.chmod(0o660)
        sock.listen(CONNECTIONS_MAX)
        new.rename(path)
    except OSError as fault:
        sock.close()
        why = f"cannot listen at {path}: {fault.strerror}. Check the directory."
        raise HostError(why, fault.errno or 0, str(path)) from None
    sock.setblocking(False)
    return sock
