"""console0.sock: a console's raw bytes for whoever connects, as ``socat`` does."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

from xenpvd.access import Role, RoleOf, everything
from xenpvd.errors import XenpvdError
from xenpvd.rpc.console import attach_as_can, converse
from xenpvd.rpc.link import Link
from xenpvd.rpc.server import SocketServer
from xenpvd.rpc.service import Consoles
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)


class ConsoleSocket(SocketServer):
    """Serves console ``name`` at ``path``: all that is kept, then what comes. The first client that may has
    the keyboard, as long as nobody takes it; the others look on."""

    def __init__(
        self, consoles: Consoles, path: Path, name: str, role_of: RoleOf = everything, mode: int = 0o660
    ) -> None:
        super().__init__(path, role_of, mode)
        self._consoles = consoles
        self._name = name

    def _client(self, role: Role, sock: socket.socket) -> _Client:
        return _Client(self._consoles, self._name, self._path.name, role, sock)

    def _refusal(self, fault: XenpvdError) -> bytes:
        log.info("%s: %s", self._path.name, fault)
        return b""  # these would be the guest's words


class _Client:
    """Its socket is no transport of asyncio's: that forgets what has come as soon as nothing can be sent, and
    that is the last keys of one who leaves while the guest prints."""

    def __init__(self, consoles: Consoles, name: str, place: str, role: Role, sock: socket.socket) -> None:
        self._consoles = consoles
        self._name = name
        self._role = role
        self._link = Link(sock)
        self._who = f"{self._link.who}, {place}"
        self._tasks = Tasks()
        self._conversation: set[asyncio.Task[Any]] = set()

    async def serve(self) -> None:
        link = self._link
        async with link.held():
            try:
                viewer = attach_as_can(self._consoles, self._name, None, self._who, self._role)
            except XenpvdError as fault:
                log.warning("%s: %s", self._who, fault)
                return
            try:
                talk = self._tasks.spawn(converse(viewer, link.reader, link.send, link.gone), "raw console")
                self._conversation.add(talk)
                await talk
            finally:
                log.info("%s left: %s", self._who, viewer.close())
                await self._tasks.cancel()

    def ending(self) -> set[asyncio.Task[Any]]:
        return self._conversation
