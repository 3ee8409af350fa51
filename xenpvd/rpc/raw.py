"""console0.sock: a console's raw bytes for whoever connects, as ``socat`` does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from xenpvd.access import Role, RoleOf, everything
from xenpvd.errors import HostError, XenpvdError
from xenpvd.rpc.console import attach_as_can, converse
from xenpvd.rpc.link import GRACE, Hangup
from xenpvd.rpc.service import Consoles
from xenpvd.rpc.session import places
from xenpvd.sockets import credentials, listen
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)


class ConsoleSocket:
    """Serves console ``name`` at ``path``: all that is kept, then what comes. The first client that may has
    the keyboard, as long as nobody takes it; the others look on."""

    def __init__(
        self, consoles: Consoles, path: Path, name: str, role_of: RoleOf = everything, mode: int = 0o660
    ) -> None:
        self._consoles = consoles
        self._path = path
        self._name = name
        self._role_of = role_of
        self._mode = mode
        self._tasks = Tasks()
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen. Raises :class:`HostError`."""
        self._server = await asyncio.start_unix_server(self._accept, sock=listen(self._path, self._mode))

    async def stop(self) -> None:
        """Take no more clients; the others get a moment for the last bytes. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._path.unlink(missing_ok=True)
        if self._clients:
            await asyncio.wait(self._clients, timeout=GRACE)
        await self._tasks.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted just before stop
            writer.close()
            return
        peer = credentials(writer.transport)
        role = self._role_of(peer)
        if role is None or len(self._clients) >= places(role):
            log.warning("%s: it %s", peer, "may nothing here" if role is None else "is one client too many")
            writer.close()
            return
        who = f"{peer}, {self._path.name}"
        task = self._tasks.spawn(self._serve(reader, writer, who, role), f"client of {self._path.name}")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: str, role: Role
    ) -> None:
        try:
            viewer = attach_as_can(self._consoles, self._name, None, who, role)
        except XenpvdError as fault:
            log.warning("%s: %s", who, fault)
            writer.close()
            return

        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        gone = asyncio.Event()
        hangup = None
        try:
            hangup = Hangup(writer.transport, gone.set)
            await converse(viewer, reader, write, gone)
        except HostError as fault:
            log.warning("%s: %s", who, fault)
        finally:
            if hangup is not None:
                hangup.close()
            log.info("%s left: %s", who, viewer.close())
            writer.close()
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(GRACE):
                    await writer.wait_closed()
            writer.transport.abort()
