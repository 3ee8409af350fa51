"""The guest's half of the xenstore ring: writes requests in pieces, reads replies, kicks as Linux does.

It has its own idea of the layout and of the wire, and sends a kick only when Linux would (the backend had
caught up before the write; the reply ring was full before the read), so lost wake-ups show as timeouts.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tests.fakes.evtchn import FakeEvtchnPort
from tests.fakes.page import FakePage

RING = 1024
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, FEATURES, CONNECTION, ERROR = range(2048, 2076, 4)


class Reply(NamedTuple):
    type: int
    req_id: int
    tx_id: int
    payload: bytes


class XenstoreFrontend:
    def __init__(self, page: FakePage, port: FakeEvtchnPort) -> None:
        self.page = page
        self.port = port
        self.events: list[tuple[str, str]] = []
        self._next_req_id = 1
        self._in = b""

    def start_at(self, index: int) -> None:
        """Let both streams begin at ``index``; only while nothing has been sent."""
        for offset in (REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD):
            self.page.store32(offset, index)

    def put(self, data: bytes) -> int:
        """Write what fits into the request ring, kick if Linux would; returns how many bytes."""
        prod, cons = self.page.load32(REQ_PROD), self.page.load32(REQ_CONS)
        data = data[: RING - (prod - cons) % 2**32]
        for i, byte in enumerate(data):
            self.page.write((prod + i) % RING, bytes([byte]))
        self.page.store32(REQ_PROD, prod + len(data))
        if data and self.page.load32(REQ_CONS) == prod:
            self.port.guest_kick()
        return len(data)

    def take(self) -> bytes:
        """Read all that waits in the reply ring, kick if Linux would."""
        prod, cons = self.page.load32(RSP_PROD), self.page.load32(RSP_CONS)
        waiting = (prod - cons) % 2**32
        data = b"".join(self.page.read(1024 + (cons + i) % RING, 1) for i in range(waiting))
        self.page.store32(RSP_CONS, prod)
        if waiting >= RING:
            self.port.guest_kick()
        return data

    async def send(self, data: bytes, piece: int = RING) -> None:
        """Write all of ``data``, ``piece`` bytes at most at a time, waiting for room."""
        while data:
            sent = self.put(data[:piece])
            data = data[sent:]
            if not sent:
                await self.port.guest_wait()

    async def receive(self) -> Reply:
        """The next message, event or reply."""
        while (reply := self.parsed()) is None:
            if not (data := self.take()):
                await self.port.guest_wait()
            self._in += data
        return reply

    def parsed(self) -> Reply | None:
        """The next message of what has been taken."""
        if len(self._in) >= 16:
            type_, req_id, tx_id, length = struct.unpack_from("<IIII", self._in)
            if len(self._in) >= 16 + length:
                payload, self._in = self._in[16 : 16 + length], self._in[16 + length :]
                return Reply(type_, req_id, tx_id, payload)
        return None

    async def event(self) -> tuple[str, str]:
        """The next watch event: path, token."""
        if not self.events:
            reply = await self.receive()
            assert reply.type == 15, reply
            self._note(reply)
        return self.events.pop(0)

    async def ask(self, type_: int, payload: bytes = b"", tx_id: int = 0, piece: int = RING) -> bytes | str:
        """One request; returns the payload of its reply, or the error's name as a str."""
        req_id, self._next_req_id = self._next_req_id, self._next_req_id + 1
        await self.send(request(type_, payload, req_id, tx_id), piece)
        while (reply := await self.receive()).type == 15:
            self._note(reply)
        assert (reply.req_id, reply.tx_id) == (req_id, tx_id)
        assert reply.type in (type_, 16)
        return reply.payload if reply.type == type_ else reply.payload.rstrip(b"\0").decode()

    def _note(self, reply: Reply) -> None:
        path, token = reply.payload.decode().split("\0")[:2]
        self.events.append((path, token))


def request(type_: int, payload: bytes = b"", req_id: int = 0, tx_id: int = 0) -> bytes:
    return struct.pack("<IIII", type_, req_id, tx_id, len(payload)) + payload
