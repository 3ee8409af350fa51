"""xenstored's unix socket: the same messages as on a ring, for the tools and daemons of domain 0.

One :class:`asyncio.Protocol` a client. A client that does not read is not read from either, once as many
replies wait for it as its quota allows; one that does not read its events is cut off, as it would miss some.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from time import monotonic
from typing import cast

from xenpvd.backends.xenstore.outbox import Outbox
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.backends.xenstore.wire import ConnectionFault, Message, Parser, encode
from xenpvd.sockets import credentials, listen

log = logging.getLogger(__name__)

CLIENTS_MAX = 256
#: Requests of one client between two looks at the rest of the loop
BURST = 64
#: Seconds after which it is the others' turn in any case: some requests take milliseconds
TURN = 0.005


class XenstoreSocket:
    """Serves ``store`` at ``path``, every client as ``domid``."""

    def __init__(self, store: Xenstore, path: Path, domid: int = 0, mode: int = 0o660) -> None:
        self.store = store
        self.domid = domid
        self.peers: set[Peer] = set()
        self.path = path
        self._mode = mode
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Listen; an old socket is replaced. Raises :class:`HostError`."""
        loop = asyncio.get_running_loop()
        sock = listen(self.path, self._mode)
        self._server = await loop.create_unix_server(lambda: Peer(self), sock=sock)

    async def stop(self) -> None:
        """Take no more clients and end the others. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
            for peer in tuple(self.peers):
                peer.cut("the store ends")


class Peer(asyncio.Protocol):
    """One client."""

    def __init__(self, server: XenstoreSocket) -> None:
        self._server = server
        self._parser = Parser()
        self._full = False  # the kernel takes no more for it
        self._eof = False
        self._turn: asyncio.Handle | None = None
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        store, domid = self._server.store, self._server.domid
        self._who = f"pid {credentials(self._transport).pid}"
        try:
            self._session = store.open(domid, self._who, self._deliver, self._released)
        except ValueError as why:
            log.info("%s: %s was refused: %s", self._server.path.name, self._who, why)
            self._closed = True
            self._transport.abort()
            return
        self._outbox = Outbox(self._session.connection, monotonic, self._deaf)
        self._server.peers.add(self)
        if len(self._server.peers) > CLIENTS_MAX:
            self.cut(f"{CLIENTS_MAX} clients are connected")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        if self._turn is None:
            self._work()

    def eof_received(self) -> bool:
        """It has said all: what it asked is answered first."""
        self._eof = True
        if self._turn is None:
            self._work()
        return True

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._turn is None:
            self._work()

    def cut(self, why: str) -> None:
        """End the conversation at once."""
        if not self._closed:
            log.info("%s: %s was cut off: %s", self._server.path.name, self._who, why)
            self._end()
            self._transport.abort()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self._server.peers.discard(self)
            self._outbox.clear()
            self._session.close()
            if self._turn is not None:
                self._turn.cancel()

    def _deliver(self, message: Message) -> None:
        if self._full or not self._outbox.empty:
            self._outbox.put(message)
        elif not self._closed:
            self._transport.write(encode(message))

    def _released(self) -> None:
        self.cut("its domain was released")

    def _deaf(self) -> None:
        self.cut("it does not read its events")

    def _flush(self) -> None:
        while not (self._full or self._closed) and (data := self._outbox.head()):
            self._transport.write(data)
            self._outbox.sent(len(data))

    def _work(self) -> None:
        """Answer what can be answered, for a while."""
        self._turn = None
        # before: it may end while we look, and nothing would come for that
        rest = self._session.connection.domain.resting(monotonic())
        try:
            more = self._answer()
        except ConnectionFault as fault:
            self.cut(str(fault))
        except Exception:
            log.exception("a request of %s failed", self._who)
            self.cut("internal error")
        if self._closed:
            return
        if more or rest is not None:
            self._transport.pause_reading()
            self._turn = asyncio.get_running_loop().call_later(rest or 0, self._work)
        elif self._full:
            self._transport.pause_reading()
        elif self._eof:
            self._end()
            self._transport.close()
        else:
            self._transport.resume_reading()

    def _answer(self) -> bool:
        """True if there may be more to do right now. Raises :class:`ConnectionFault`."""
        self._flush()
        domain = self._session.connection.domain
        until = monotonic() + TURN
        for _ in range(BURST):
            if self._closed or self._outbox.behind or domain.resting(monotonic()) is not None:
                return False
            if (message := self._parser.next()) is None:
                return False
            self._session.call(message)
            if monotonic() > until:
                break
        return True
