"""qmp.sock, for daemons that are told to: QMP as QEMU speaks it, for programs that were written for that.

Nobody imports this room who was not asked to.
"""

from __future__ import annotations

import socket
from pathlib import Path

from xenpvd.access import Role, RoleOf, everything
from xenpvd.errors import XenpvdError
from xenpvd.rpc.qmp.monitor import Monitor
from xenpvd.rpc.qmp.protocol import encode, error
from xenpvd.rpc.qmp.session import Session
from xenpvd.rpc.server import Client, SocketServer
from xenpvd.rpc.service import Service


class QmpServer(SocketServer):
    """Serves ``service`` by QMP, to admins: it knows no roles."""

    def __init__(self, service: Service, path: Path, role_of: RoleOf = everything, mode: int = 0o660) -> None:
        super().__init__(path, lambda peer: "admin" if role_of(peer) == "admin" else None, mode)
        self._monitor = Monitor(service)

    async def start(self) -> None:
        await super().start()
        self._monitor.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._monitor.stop()  # first: the last events are for clients that are still there
        await super().stop()

    def _client(self, role: Role, sock: socket.socket) -> Client:
        return Session(self._monitor, sock)

    def _refusal(self, fault: XenpvdError) -> bytes:
        return encode(error(None, fault))
