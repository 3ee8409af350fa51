"""The control messages, with an engine that answers as the test likes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from xenpvd.abi import vhost_user as abi
from xenpvd.backends.blkif.vhost import Device, Vhost, VhostFault
from xenpvd.tasks import Tasks

FEATURES = sum(
    1 << bit
    for bit in (
        abi.F_PROTOCOL_FEATURES,
        abi.VIRTIO_F_VERSION_1,
        abi.VIRTIO_RING_F_EVENT_IDX,
        abi.VIRTIO_BLK_F_FLUSH,
        abi.VIRTIO_BLK_F_DISCARD,
        abi.VIRTIO_BLK_F_RO,
        40,  # of which we know nothing
    )
)
PROTOCOL = 1 << abi.PROTOCOL_F_MQ | 1 << abi.PROTOCOL_F_REPLY_ACK | 1 << abi.PROTOCOL_F_CONFIG | 1 << 12


class Backend:
    """The engine's end. ``answers`` are by request; ``asked`` collects (request, payload)."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.asked: list[tuple[int, bytes]] = []
        config = bytearray(abi.CONFIG.pack(0, abi.CONFIG_MAX, 0) + bytes(abi.CONFIG_MAX))
        abi.BLK_CAPACITY[0].pack_into(config, abi.CONFIG.size, 100)
        abi.BLK_MAX_DISCARD_SECTORS[0].pack_into(config, abi.CONFIG.size + 36, 8)
        self.answers: dict[int, bytes] = {
            abi.GET_FEATURES: abi.U64.pack(FEATURES),
            abi.GET_PROTOCOL_FEATURES: abi.U64.pack(PROTOCOL),
            abi.GET_QUEUE_NUM: abi.U64.pack(8),
            abi.GET_CONFIG: bytes(config),
        }
        self.shape: Callable[[int, bytes], bytes] = lambda request, answer: (
            abi.HEADER.pack(request, abi.VERSION | abi.REPLY, len(answer)) + answer
        )

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while header := await loop.sock_recv(self.sock, abi.HEADER.size):
            request, flags, size = abi.HEADER.unpack(header)
            payload = await loop.sock_recv(self.sock, size) if size else b""
            self.asked.append((request, payload))
            if (answer := self.answers.get(request)) is None and flags & abi.NEED_REPLY:
                answer = abi.U64.pack(0)
            if answer is not None:
                await loop.sock_sendall(self.sock, self.shape(request, answer))


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Vhost, Backend]]:
    ours, theirs = socket.socketpair()
    backend, tasks = Backend(theirs), Tasks()
    vhost = Vhost(ours)
    tasks.spawn(backend.serve(), "engine")
    yield vhost, backend
    await tasks.cancel()
    vhost.close()
    theirs.close()


async def test_features_are_agreed_on(ends: tuple[Vhost, Backend]) -> None:
    vhost, backend = ends
    assert await vhost.begin(8) == Device(51200, 4096)
    asked = dict(backend.asked)
    assert abi.U64.unpack(asked[abi.SET_FEATURES])[0] == FEATURES & ~(1 << 40), "only what we know"
    assert abi.U64.unpack(asked[abi.SET_PROTOCOL_FEATURES])[0] == PROTOCOL & ~(1 << 12)


async def test_without_discard(ends: tuple[Vhost, Backend]) -> None:
    vhost, backend = ends
    backend.answers[abi.GET_FEATURES] = abi.U64.pack(FEATURES & ~(1 << abi.VIRTIO_BLK_F_DISCARD))
    assert await vhost.begin(8) == Device(51200, 0)


@pytest.mark.parametrize(
    ("request_", "answer", "words"),
    [
        (abi.GET_FEATURES, abi.U64.pack(0), "lacks the features"),
        (abi.GET_PROTOCOL_FEATURES, abi.U64.pack(0), "lacks the protocol features"),
        (abi.GET_QUEUE_NUM, abi.U64.pack(3), "has 3 queues of 8"),
        (abi.SET_FEATURES, abi.U64.pack(1), "refuses request 2: 1"),
        (abi.GET_FEATURES, b"four", "answers 4 bytes"),
        (abi.GET_CONFIG, abi.CONFIG.pack(0, 0, 0), "configuration has 0 bytes"),
        (abi.GET_CONFIG, bytes(300), "300 bytes"),
    ],
)
async def test_what_cannot_be(ends: tuple[Vhost, Backend], request_: int, answer: bytes, words: str) -> None:
    vhost, backend = ends
    backend.answers[request_] = answer
    with pytest.raises(VhostFault, match=words):
        await vhost.begin(8)


async def test_another_request_s_answer(ends: tuple[Vhost, Backend]) -> None:
    vhost, backend = ends
    backend.shape = lambda request, answer: abi.HEADER.pack(99, 5, len(answer)) + answer
    with pytest.raises(VhostFault, match="answers 99"):
        await vhost.begin(8)


async def test_who_waits_when_it_is_closed_is_told(ends: tuple[Vhost, Backend]) -> None:
    vhost, backend = ends
    backend.shape = lambda request, answer: b""  # no answer
    waiting = asyncio.gather(vhost.begin(8))
    while not backend.asked:  # noqa: ASYNC110 - of the other end
        await asyncio.sleep(0)
    vhost.close()
    with pytest.raises(VhostFault, match="it has gone"):
        await waiting


async def test_an_end_that_has_gone(ends: tuple[Vhost, Backend]) -> None:
    vhost, backend = ends
    backend.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(VhostFault):
        await vhost.begin(8)
