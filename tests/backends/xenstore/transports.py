"""Guests that talk to one store over rings or over sockets, with the same words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.evtchn import FakeEvtchnPort
from tests.fakes.page import FakePage
from tests.fakes.xenstore_frontend import ERROR, RING, XenstoreFrontend, request
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.domain import Domain
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.backends.xenstore.socket import XenstoreSocket
from xenpvd.backends.xenstore.wire import Message

OK = b"OK\0"

#: Turns of the loop that are enough for whatever is under way, when nothing must come.
TURNS = 50


class RingGuest(XenstoreFrontend):
    async def send(self, data: bytes, piece: int = RING) -> None:
        """Takes what it is told meanwhile, and gives up when it is cut off."""
        while data and not self.page.load32(ERROR):
            sent = self.put(data[:piece])
            data = data[sent:]
            if not sent:
                told = self.take()
                self._in += told
                if not told:
                    await self.port.guest_wait()

    async def cut_off(self) -> int:
        """Wait until the store serves it no more; the ring's error."""
        while not (error := self.page.load32(ERROR)):
            await self.port.guest_wait()
        return error

    async def leave(self) -> None:
        """What the ring itself cannot say: the VM is gone."""


class SocketGuest(XenstoreFrontend):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(FakePage(), FakeEvtchnPort())
        self.port.close()
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes, piece: int = RING) -> None:
        for start in range(0, len(data), piece):
            self.writer.write(data[start : start + piece])
            await self.writer.drain()

    async def receive(self) -> Any:
        while (reply := self.parsed()) is None:
            if not (data := await self.reader.read(65536)):
                raise ConnectionResetError
            self._in += data
        return reply

    async def cut_off(self) -> int:
        with contextlib.suppress(ConnectionResetError):
            while await self.reader.read(65536):
                pass
        return abi.XENSTORE_ERROR_PROTO

    async def leave(self) -> None:
        self.writer.close()


Guest = RingGuest | SocketGuest


class World:
    """Guests 1 and 2 as a toolstack makes them: a home that they can read, and ``data`` in it, their own."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.faults: list[BaseException] = []
        self.store = Xenstore(
            lambda name, **data: self.told.append((name, data)), lambda name, fault: self.faults.append(fault)
        )
        self.own = self.store.client
        self.guests: list[Guest] = []
        self.rings: dict[int, RingGuest] = {}
        self.sockets: dict[int, XenstoreSocket] = {}

    async def guest(self, domid: int) -> Guest:
        """One more connection of a guest's; on a ring it has one."""
        home = f"/local/domain/{domid}"
        if not self.store.exists(f"{home}/data"):
            for path, perms in ((home, ["n0", f"r{domid}"]), (f"{home}/data", [f"n{domid}"])):
                self.own.mkdir(path)
                self.own.set_perms(path, perms)
        if domid in self.rings:
            return self.rings[domid]
        guest = await (self._on_ring(domid) if self.kind == "ring" else self._on_socket(domid))
        self.guests.append(guest)
        return guest

    async def _on_ring(self, domid: int) -> RingGuest:
        guest = RingGuest(FakePage(), FakeEvtchnPort())
        self.store.connect(domid, guest.page, guest.port)
        self.rings[domid] = guest
        return guest

    async def _on_socket(self, domid: int) -> SocketGuest:
        if domid not in self.sockets:
            self.store.introduce(domid)
            self.sockets[domid] = XenstoreSocket(self.store, self.folder / f"s{domid}", domid)
            await self.sockets[domid].start()
        return SocketGuest(*await asyncio.open_unix_connection(self.folder / f"s{domid}"))

    def ask0(self, type_: int, payload: bytes) -> bytes | str:
        """As domain 0; the reply's payload, or the error's name as a str."""
        replies: list[Message] = []
        session = self.store.open(0, "a tool", replies.append)
        session.call(Message(type_, 1, 0, payload))
        session.close()
        reply = next(reply for reply in replies if reply.type != abi.XS_WATCH_EVENT)
        return reply.payload if reply.type == type_ else reply.payload[:-1].decode()

    def domain(self, domid: int) -> Domain:
        return self.store._state.domains.of(domid)

    async def settle(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def assert_survived(self) -> None:
        """The others are served as before, and nothing of ours has failed."""
        other = await self.guest(2)
        assert await other.ask(abi.XS_WRITE, b"data/alive\0yes") == OK
        assert self.own.read("/local/domain/2/data/alive") == b"yes"
        assert self.ask0(abi.XS_CONTROL, b"check\0") == OK, "the tree and its accounts fit"
        assert self.faults == []

    async def end(self) -> None:
        """All leave; then nothing of them is left but their nodes."""
        for guest in self.guests:
            await guest.leave()
        for domid, socket in self.sockets.items():
            await self.until(lambda socket=socket: not socket.peers)
            await socket.stop()
            assert self.domain(domid).domid == domid
        for domid in (1, 2):
            await self.store.disconnect(domid)
            domain = self.domain(domid)
            left = (domain.watches, domain.transactions, domain.outstanding)
            assert left == (0, 0, 0), f"domain {domid} still has {left}"
            nodes = [(n.path, n) for n in self.store.tree("/") if n.perms[0][1:] == f"{domid}"]
            assert domain.nodes == len(nodes)
        for guest in self.guests:
            guest.port.close()


def message(type_: int, payload: bytes = b"", req_id: int = 1, tx_id: int = 0) -> bytes:
    return request(type_, payload, req_id, tx_id)
