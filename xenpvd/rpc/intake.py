"""What comes in at a unix socket, with the descriptors that come along: asyncio's transports drop those."""

from __future__ import annotations

import array
import asyncio
import socket

from xenpvd.rpc.rights import RIGHTS_MAX, Rights

READ = 1 << 16
_ROOM = socket.CMSG_SPACE(RIGHTS_MAX * array.array("i").itemsize)


class Intake:
    """Reads a socket that has no transport, and that its owner closes after this. For one reader.

    Nothing is read ahead: what nobody has asked for waits in the socket, and its sender for us. A read does
    not go beyond the bytes that descriptors came with.
    """

    def __init__(self, sock: socket.socket) -> None:
        #: what came with the bytes that were read, until it is taken
        self.rights = Rights()
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._watched = False
        self._asked: tuple[int, asyncio.Future[bytes]] | None = None

    async def read(self, most: int = READ) -> bytes:
        """The next bytes; b"" at the end. Raises ConnectionError."""
        if not self._watched:
            await asyncio.sleep(0)  # one who sends without end is not alone
            try:
                return self._receive(most)
            except BlockingIOError:
                self._loop.add_reader(self._socket.fileno(), self._readable)
                self._watched = True
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._asked = most, answer
        return await answer

    def take_rights(self) -> Rights:
        taken, self.rights = self.rights, Rights()
        return taken

    def hang_up(self) -> None:
        """The peer has closed both directions: what has come can be read, to its end, without waiting. uvloop
        does not tell who waits, if the peer has left something unread."""
        if self._watched:
            self._readable()
            self._unwatch()

    def close(self) -> None:
        """Nobody reads any more. Idempotent."""
        self._unwatch()
        self.rights.close()

    def _unwatch(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._socket.fileno())
            self._watched = False

    def _readable(self) -> None:
        asked, self._asked = self._asked, None
        if asked is None or asked[1].done():
            self._unwatch()  # until somebody asks
            return
        most, answer = asked
        try:
            answer.set_result(self._receive(most))
        except BlockingIOError:
            self._asked = asked
        except OSError as fault:
            answer.set_exception(fault)

    def _receive(self, most: int) -> bytes:
        data, extra, flags, _ = self._socket.recvmsg(most, _ROOM, socket.MSG_CMSG_CLOEXEC)
        if extra or flags & socket.MSG_CTRUNC:
            fds = array.array("i")
            for level, kind, found in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(found[: len(found) - len(found) % fds.itemsize])
            self.rights.add(fds, bool(flags & socket.MSG_CTRUNC))
        return data
