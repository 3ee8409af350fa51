"""One client's socket: its messages one after the other, what is sent each in its turn, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import AsyncIterator, Callable

from xenpvd.errors import HostError
from xenpvd.rpc.framing import Framer
from xenpvd.rpc.intake import Intake
from xenpvd.rpc.rights import Rights
from xenpvd.sockets import credentials

#: How long, in seconds, a client gets to read its last replies when the daemon ends.
GRACE = 1.0


class Link:
    """A stream socket of JSON messages. ``gone`` is set when the peer has closed both directions."""

    def __init__(self, sock: socket.socket) -> None:
        """``sock`` blocks not, has no transport, and is this one's once it is :meth:`held`."""
        self.gone = asyncio.Event()
        self.who = str(credentials(sock))
        self.reader = Intake(sock)
        self._socket = sock
        self._framer = Framer()
        self._rights = Rights()
        self._fed = 0  # bytes, in all
        self._came: list[tuple[int, Rights]] = []  # and how many bytes are fed when their message is whole
        self._sending = asyncio.Lock()
        self._torn = False  # within a message, or since the peer has closed: nothing can be sent any more

    @contextlib.asynccontextmanager
    async def held(self, left: Callable[[], object] = lambda: None) -> AsyncIterator[None]:
        """See the peer's hangup, which calls ``left``; the socket is closed in the end, whatever happens.
        Nobody may send or receive any more by then. Raises :class:`HostError` if there are no more files:
        then it is not."""

        def hung_up() -> None:
            self.gone.set()
            self.reader.hang_up()
            left()

        hangup = Hangup(self._socket, hung_up)
        try:
            yield
        finally:
            hangup.close()
            for rights in (self._rights, *(rights for _, rights in self._came)):
                rights.close()
            self.reader.close()
            self._torn = True
            self._socket.close()

    async def receive(self) -> bytes | None:
        """The next message; None at the end of input. Raises :class:`MessageTooLong`, ConnectionError."""
        self._rights.close()
        if self._torn:
            raise ConnectionResetError
        while (message := self._framer.next()) is None:
            data = await self.reader.read()
            if self._torn:
                raise ConnectionResetError
            if not data:
                message = self._framer.finish()
                break
            if self.reader.rights:
                self._keep(self.reader.take_rights(), self._fed + len(data.rstrip(b" \t\r\n")))
            self._fed += len(data)
            self._framer.feed(data)
        if self._came:
            end = self._fed - len(self._framer.rest())
            self._rights = Rights()
            while self._came and self._came[0][0] <= end:
                self._rights.absorb(self._came.pop(0)[1])
        return message

    def _keep(self, rights: Rights, end: int) -> None:
        """They are of the message that holds the byte before ``end``. All that came before them are of the
        one that is unfinished now: so two are kept at most, however a client cuts its messages."""
        if len(self._came) > 1:
            self._came[0][1].absorb(self._came.pop()[1])
        self._came.append((end, rights))

    def take_rights(self) -> Rights:
        """What came along with the message that was received last; else it is closed at the next one."""
        taken = self._rights
        if taken:
            self._rights = Rights()
        return taken

    def rest(self) -> bytes:
        """What lies behind the last message, for a connection that stops being JSON."""
        return self._framer.rest()

    async def send(self, line: bytes) -> None:
        """Send ``line`` in its turn; waits while the peer does not read, so that nothing is ever queued."""
        async with self._sending:
            if self.gone.is_set() or self._torn:
                raise ConnectionResetError
            try:
                await asyncio.get_running_loop().sock_sendall(self._socket, line)
            except BaseException:
                self.abort()  # a part of it may be out; and who does not hear us shall not go on to ask
                raise

    def abort(self) -> None:
        """Both sides are at the end, and who reads or sends here learns of it."""
        self._torn = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Hangup:
    """Calls back when the peer has closed both directions, also while nobody reads.

    An epoll set with no events asked for reports EPOLLHUP only, which a half-close does not raise (unix(7)).
    """

    def __init__(self, peer: asyncio.BaseTransport | socket.socket, left: Callable[[], object]) -> None:
        """Raises :class:`HostError`: there are no more files."""
        sock = peer if isinstance(peer, socket.socket) else peer.get_extra_info("socket")
        self._loop = asyncio.get_running_loop()
        try:
            self._epoll = select.epoll()
        except OSError as fault:
            why = f"cannot serve you: {fault.strerror}. Close some clients, or raise the limit (LimitNOFILE)."
            raise HostError(why, fault.errno or 0, "epoll") from None
        self._epoll.register(sock.fileno(), 0)
        self._left = left
        self._loop.add_reader(self._epoll.fileno(), self._fired)

    def _fired(self) -> None:
        self.close()
        self._left()

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
