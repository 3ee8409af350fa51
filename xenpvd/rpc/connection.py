"""One client of rpc.sock: its messages in, replies and events out, and an orderly end however it leaves."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from xenpvd.access import Role
from xenpvd.errors import LimitReached
from xenpvd.rpc.console import converse
from xenpvd.rpc.errors import CODES, protocol_fault
from xenpvd.rpc.framing import MESSAGE_MAX, MessageTooLong
from xenpvd.rpc.link import Link
from xenpvd.rpc.service import ConsoleViewer, Service
from xenpvd.rpc.session import Session

log = logging.getLogger(__name__)


class Connection:
    """:meth:`serve` ends when the client has left and all that it began is done. Fits ``session.Carrier``."""

    raw = True

    def __init__(self, service: Service, role: Role, sock: socket.socket) -> None:
        self._link = Link(sock)
        self._session = Session(service, self._link.who, role, self)

    async def serve(self) -> None:
        session = self._session
        async with self._link.held(session.left):
            try:
                await session.greet()
                typed = await self._serve_messages()
                if session.viewer is not None:
                    await self._serve_console(session.viewer, typed)
                await session.finish()
                if session.feeds:
                    await session.gone.wait()  # it ended its sending side only
            except ConnectionError:
                await session.finish()
            finally:
                await session.close()

    def ending(self) -> set[asyncio.Task[Any]]:
        """See :meth:`Session.ending`."""
        return self._session.ending()

    async def send(self, message: bytes) -> None:
        await self._link.send(message + b"\n")

    def abort(self) -> None:
        self._link.abort()

    async def _serve_messages(self) -> bytes:
        """Take messages until the end of input, or until one made this a console; returns what follows."""
        session = self._session
        try:
            while (message := await self._link.receive()) is not None:
                await session.take(message, self._link.take_rights())
                if session.viewer is not None:
                    return _without_newline(self._link.rest())
        except MessageTooLong:
            why = f"cannot take the message: more than {MESSAGE_MAX} bytes. The connection ends here."
            await session.send(protocol_fault(CODES[LimitReached], why, LimitReached.reason).reply(None))
            session.end_feeds()
        return b""

    async def _serve_console(self, viewer: ConsoleViewer, typed: bytes) -> None:
        session, link = self._session, self._link
        await session.spawn(converse(viewer, link.reader, link.send, link.gone, typed), "console")
        log.info("%s left the console: %s", session.who, viewer.close())


def _without_newline(data: bytes) -> bytes:
    """The newline that ended the request is not typed."""
    return data.removeprefix(b"\r").removeprefix(b"\n") if data[:2] == b"\r\n" else data.removeprefix(b"\n")
