"""One client of rpc.sock: its messages in, replies and events out, and an orderly end however it leaves."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable
from typing import Any

from xenpvd.access import Role
from xenpvd.errors import LimitReached
from xenpvd.rpc.console import converse
from xenpvd.rpc.errors import CODES, protocol_fault
from xenpvd.rpc.framing import MESSAGE_MAX, Framer, MessageTooLong
from xenpvd.rpc.service import ConsoleViewer, Service
from xenpvd.rpc.session import Session
from xenpvd.sockets import credentials

log = logging.getLogger(__name__)

#: How long, in seconds, a client gets to read its last replies when the daemon ends.
GRACE = 1.0


class Connection:
    """:meth:`serve` ends when the client has left and all that it began is done. Fits ``session.Carrier``."""

    raw = True

    def __init__(
        self, service: Service, role: Role, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._session = Session(service, str(credentials(writer.transport)), role, self)

    async def serve(self) -> None:
        session = self._session
        try:
            hangup = Hangup(self._writer.transport, session.left)
        except OSError:  # EMFILE
            self.abort()
            raise
        try:
            await session.greet()
            typed = await self._serve_messages()
            if session.viewer is not None:
                await self._serve_console(session.viewer, typed)
            await session.finish()
            if session.feeds:
                await session.gone.wait()  # it ended its sending side only
            self._writer.close()
            await self._writer.wait_closed()  # it may take its time to read the last replies
        except ConnectionError:
            await session.finish()
        finally:
            hangup.close()
            await session.close()
            self._writer.close()
            try:
                async with asyncio.timeout(GRACE):
                    await self._writer.wait_closed()
            except (TimeoutError, ConnectionError):
                self.abort()

    def ending(self) -> set[asyncio.Task[Any]]:
        """See :meth:`Session.ending`."""
        return self._session.ending()

    async def send(self, message: bytes) -> None:
        if self._writer.transport.is_closing():
            raise ConnectionResetError
        self._writer.write(message + b"\n")
        await self._writer.drain()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def _serve_messages(self) -> bytes:
        """Take messages until the end of input, or until one made this a console; returns what follows."""
        framer, session = Framer(), self._session
        try:
            while data := await self._reader.read(65536):
                framer.feed(data)
                while (message := framer.next()) is not None:
                    await session.take(message)
                    if session.viewer is not None:
                        return _without_newline(framer.rest())
            if (message := framer.finish()) is not None:
                await session.take(message)
        except MessageTooLong:
            why = f"cannot take the message: more than {MESSAGE_MAX} bytes. The connection ends here."
            await session.send(protocol_fault(CODES[LimitReached], why, LimitReached.reason).reply(None))
            session.end_feeds()
        return b""

    async def _serve_console(self, viewer: ConsoleViewer, typed: bytes) -> None:
        session = self._session
        await session.spawn(converse(viewer, self._reader, self._writer, session.gone, typed), "console")
        log.info("%s left the console: %s", session.who, viewer.close())


class Hangup:
    """Calls back when the peer has closed both directions, also while nobody reads.

    An epoll set with no events asked for reports EPOLLHUP only, which a half-close does not raise (unix(7)).
    """

    def __init__(self, transport: asyncio.BaseTransport, left: Callable[[], object]) -> None:
        """Raises OSError (EMFILE)."""
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._epoll.register(transport.get_extra_info("socket").fileno(), 0)
        self._left = left
        self._loop.add_reader(self._epoll.fileno(), self._fired)

    def _fired(self) -> None:
        self.close()
        self._left()

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


def _without_newline(data: bytes) -> bytes:
    """The newline that ended the request is not typed."""
    return data.removeprefix(b"\r").removeprefix(b"\n") if data[:2] == b"\r\n" else data.removeprefix(b"\n")
