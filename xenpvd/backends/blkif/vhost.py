"""A vhost-user front end: a block engine in another process is asked what it is and given its queues.

Only control goes through the socket. Requests go through memory that both share, which is ours and made for
that: the engine never sees the guest's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from xenpvd.abi import vhost_user as abi
from xenpvd.backends.blkif.vqueue import AT_AVAIL, AT_DESC, AT_USED, BASE, QUEUE_BYTES, QUEUE_SIZE, Vqueue

_WANTED = (
    abi.F_PROTOCOL_FEATURES,
    abi.VIRTIO_F_VERSION_1,
    abi.VIRTIO_RING_F_EVENT_IDX,
    abi.VIRTIO_BLK_F_RO,
    abi.VIRTIO_BLK_F_FLUSH,
    abi.VIRTIO_BLK_F_CONFIG_WCE,
    abi.VIRTIO_BLK_F_MQ,
    abi.VIRTIO_BLK_F_DISCARD,
)
_NEEDED = (
    abi.F_PROTOCOL_FEATURES,
    abi.VIRTIO_F_VERSION_1,
    abi.VIRTIO_RING_F_EVENT_IDX,
    abi.VIRTIO_BLK_F_FLUSH,
)
_PROTOCOL_NEEDED = (abi.PROTOCOL_F_MQ, abi.PROTOCOL_F_REPLY_ACK, abi.PROTOCOL_F_CONFIG)


class VhostFault(Exception):
    """The engine does not answer as the protocol has it, or has gone."""


@dataclass(frozen=True, slots=True)
class Device:
    """What the engine serves; ``size`` in bytes, ``max_discard`` too (0: it cannot discard)."""

    size: int
    max_discard: int


class Vhost:
    """On a connected unix socket, which it owns. Loop thread only; all raise :class:`VhostFault`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._features = 0
        self._receiving = self._closed = False

    async def begin(self, queues: int) -> Device:
        """Agree on features; ``queues`` will be used."""
        offered = await self._ask64(abi.GET_FEATURES)
        if missing := [bit for bit in _NEEDED if not offered >> bit & 1]:
            raise VhostFault(f"it lacks the features {missing}")
        self._features = offered & sum(1 << bit for bit in _WANTED)
        self._send(abi.SET_OWNER)
        protocol = await self._ask64(abi.GET_PROTOCOL_FEATURES)
        if missing := [bit for bit in _PROTOCOL_NEEDED if not protocol >> bit & 1]:
            raise VhostFault(f"it lacks the protocol features {missing}")
        self._send(abi.SET_PROTOCOL_FEATURES, abi.U64.pack(sum(1 << bit for bit in _PROTOCOL_NEEDED)))
        if (has := await self._ask64(abi.GET_QUEUE_NUM)) < queues:
            raise VhostFault(f"it has {has} queues of {queues}")
        await self._set(abi.SET_FEATURES, abi.U64.pack(self._features))
        return await self._device()

    async def share(self, fd: int, size: int) -> None:
        """Give it the memory that the queues are in."""
        await self._set(abi.SET_MEM_TABLE, abi.MEM_TABLE.pack(1, 0, BASE, size, BASE, 0), [fd])

    async def start(self, index: int, queue: Vqueue) -> None:
        """Give it a queue, which is empty."""
        at = BASE + index * QUEUE_BYTES
        await self._set(abi.SET_VRING_NUM, abi.VRING_STATE.pack(index, QUEUE_SIZE))
        await self._set(abi.SET_VRING_BASE, abi.VRING_STATE.pack(index, 0))
        addresses = abi.VRING_ADDR.pack(index, 0, at + AT_DESC, at + AT_USED, at + AT_AVAIL, 0)
        await self._set(abi.SET_VRING_ADDR, addresses)
        await self._set(abi.SET_VRING_CALL, abi.U64.pack(index), [queue.call_fd])
        await self._set(abi.SET_VRING_KICK, abi.U64.pack(index), [queue.kick_fd])
        await self._set(abi.SET_VRING_ENABLE, abi.VRING_STATE.pack(index, 1))

    def close(self) -> None:
        """Who waits for an answer is told, and closes it: the loop does not notice a closed socket."""
        self._closed = True
        if self._receiving:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            self._sock.close()

    # ---- messages

    async def _device(self) -> Device:
        asked = abi.CONFIG.pack(0, abi.CONFIG_MAX, 0) + bytes(abi.CONFIG_MAX)
        config = (await self._ask(abi.GET_CONFIG, asked))[abi.CONFIG.size :]
        if len(config) != abi.CONFIG_MAX:
            raise VhostFault(f"its configuration has {len(config)} bytes")
        capacity, discard = (
            layout.unpack_from(config, at)[0]
            for layout, at in (abi.BLK_CAPACITY, abi.BLK_MAX_DISCARD_SECTORS)
        )
        can_discard = self._features >> abi.VIRTIO_BLK_F_DISCARD & 1
        return Device(capacity * 512, discard * 512 * can_discard)

    async def _set(self, request: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """What is not answered by itself is acknowledged."""
        self._send(request, payload, fds, abi.NEED_REPLY)
        (fault,) = abi.U64.unpack(await self._reply(request))
        if fault:
            raise VhostFault(f"it refuses request {request}: {fault}")

    async def _ask64(self, request: int) -> int:
        return int(abi.U64.unpack(await self._ask(request))[0])

    async def _ask(self, request: int, payload: bytes = b"") -> bytes:
        self._send(request, payload)
        return await self._reply(request)

    def _send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        message = abi.HEADER.pack(request, abi.VERSION | flags, len(payload)) + payload
        try:
            sent = socket.send_fds(self._sock, [message], list(fds))
        except OSError as fault:  # also a full socket: it has not read for long
            raise VhostFault(f"it cannot be told: {fault.strerror}") from None
        if sent != len(message):
            raise VhostFault("it cannot be told: it does not read")

    async def _reply(self, request: int) -> bytes:
        answered, flags, size = abi.HEADER.unpack(await self._receive(abi.HEADER.size))
        if answered != request or not flags & abi.REPLY or size > 256:
            raise VhostFault(f"it answers {answered} ({size} bytes) to {request}")
        payload = await self._receive(size)
        if request != abi.GET_CONFIG and size != abi.U64.size:
            raise VhostFault(f"it answers {size} bytes to {request}")
        return payload

    async def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not (more := await self._receive_some(count - len(data))):
                raise VhostFault("it has gone")
            data += more
        return data

    async def _receive_some(self, most: int) -> bytes:
        self._receiving = not self._closed
        try:
            return await asyncio.get_running_loop().sock_recv(self._sock, most) if self._receiving else b""
        except OSError as fault:
            raise VhostFault(f"it has gone: {fault.strerror}") from None
        finally:
            self._receiving = False
            if self._closed:
                self._sock.close()
