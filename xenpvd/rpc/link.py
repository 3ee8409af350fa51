"""One client's socket: its messages one after the other, what is sent each in its turn, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import AsyncIterator, Callable

from xenpvd.errors import HostError
from xenpvd.rpc.framing import Framer
from xenpvd.sockets import credentials

#: How long, in seconds, a client gets to read its last replies when the daemon ends.
GRACE = 1.0


class Link:
    """A stream socket of JSON messages. ``gone`` is set when the peer has closed both directions."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.gone = asyncio.Event()
        self.who = str(credentials(writer.transport))
        self._framer = Framer()
        self._sending = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def held(self, left: Callable[[], object] = lambda: None) -> AsyncIterator[None]:
        """See the peer's hangup, which calls ``left``; the socket is closed in the end, whatever happens.
        Raises :class:`HostError` if there are no more files: then it is not."""

        def hung_up() -> None:
            self.gone.set()
            left()

        hangup = Hangup(self.writer.transport, hung_up)
        try:
            yield
        finally:
            hangup.close()
            self.writer.close()
            try:
                async with asyncio.timeout(GRACE):
                    await self.writer.wait_closed()
            except (TimeoutError, ConnectionError):
                self.abort()

    async def receive(self) -> bytes | None:
        """The next message; None at the end of input. Raises :class:`MessageTooLong`, ConnectionError."""
        while (message := self._framer.next()) is None:
            data = await self.reader.read(65536)
            if not data:
                return self._framer.finish()
            self._framer.feed(data)
        return message

    def rest(self) -> bytes:
        """What lies behind the last message, for a connection that stops being JSON."""
        return self._framer.rest()

    async def send(self, line: bytes) -> None:
        """Write ``line`` in its turn; waits while the peer does not read, which bounds what is queued."""
        async with self._sending:
            if self.gone.is_set() or self.writer.transport.is_closing():
                raise ConnectionResetError
            self.writer.write(line)
            await self.writer.drain()

    async def finish(self) -> None:
        """Nothing more is sent; the peer may take its time to read the last of it."""
        self.writer.close()
        await self.writer.wait_closed()

    def abort(self) -> None:
        self.writer.transport.abort()


class Hangup:
    """Calls back when the peer has closed both directions, also while nobody reads.

    An epoll set with no events asked for reports EPOLLHUP only, which a half-close does not raise (unix(7)).
    """

    def __init__(self, transport: asyncio.BaseTransport, left: Callable[[], object]) -> None:
        """Raises :class:`HostError`: there are no more files."""
        self._loop = asyncio.get_running_loop()
        try:
            self._epoll = select.epoll()
        except OSError as fault:
            why = f"cannot serve you: {fault.strerror}. Close some clients, or raise the limit (LimitNOFILE)."
            raise HostError(why, fault.errno or 0, "epoll") from None
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
