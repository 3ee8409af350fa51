"""A virtqueue to a block engine, with the buffers of its requests, in memory that both share.

The engine's processes come and go, each with fresh memory; the queue stays. Whoever uses it lets go of a
process' memory when there is none any more, and puts what is under way into the next one's. That is either
c/vhost.h, or :meth:`Vqueue.transfer` and its like, which carry out one request after the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import select
import threading
from collections.abc import Sequence

from xenpvd.abi import vhost_user as abi

#: One queue's memory, as c/vhost.h has it: the rings, the requests' headers and status bytes, and the data in
#: chunks; and where the engine sees the first one.
QUEUE_SIZE, CHUNKS, CHUNK = 512, 128, 1 << 16
AT_DESC, AT_AVAIL, AT_USED, AT_HEADERS, AT_STATUS, AT_DATA = 0, 0x2000, 0x3000, 0x5000, 0x6000, 0x8000
QUEUE_BYTES = AT_DATA + CHUNKS * CHUNK
BASE = 1 << 32


class Link(ctypes.Structure):
    """struct vhost of c/plane.h."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("taken", ctypes.c_void_p),
        ("base", ctypes.c_uint64),
        ("acked", ctypes.c_void_p),
        ("flushed", ctypes.c_void_p),
        ("kick_fd", ctypes.c_int32),
        ("call_fd", ctypes.c_int32),
        ("taken_fd", ctypes.c_int32),
        ("given_up", ctypes.c_uint32),
        ("max_discard", ctypes.c_uint32),
        ("used", ctypes.c_uint32),
    )


class Written:
    """Over all queues of an image: the writes that were answered, and how many of them a flush has covered.
    What lies between is lost with the engine's process, if that keeps anything to itself."""

    def __init__(self) -> None:
        self.acked = ctypes.c_uint64(0)
        self.flushed = ctypes.c_uint64(0)
        self._lock = threading.Lock()

    @property
    def unflushed(self) -> int:
        return max(0, self.acked.value - self.flushed.value)

    def forget(self) -> None:
        self.flushed.value = self.acked.value

    def add(self) -> None:
        with self._lock:
            self.acked.value += 1

    def cover(self, acked: int) -> None:
        with self._lock:
            self.flushed.value = max(self.flushed.value, acked)


class Vqueue:
    """The ``index``th of an engine, for one user at a time. ``taken_fd`` hears when it lets go of memory."""

    def __init__(self, index: int, written: Written, taken_fd: int) -> None:
        self.index = index
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: for c/vhost.h, whose thread then lets go and takes by itself until :meth:`release`
        self.link = Link(
            base=BASE + index * QUEUE_BYTES,
            acked=ctypes.addressof(written.acked),
            flushed=ctypes.addressof(written.flushed),
            kick_fd=self.kick_fd,
            call_fd=self.call_fd,
            taken_fd=taken_fd,
        )
        self._written = written
        self._shared: mmap.mmap | None = None
        self._serving = False  # somebody will see that there is no memory any more
        self._lock = threading.Lock()  # of that
        self._turn = threading.Lock()

    # ---- for the engine, in the loop's thread

    def attach(self, shared: mmap.mmap, max_discard: int) -> None:
        """There is a process, and this is its memory. Only while nobody :attr:`holds` any."""
        self._shared = shared
        self.link.max_discard = max_discard
        start = ctypes.addressof(ctypes.c_char.from_buffer(shared))
        self.link.memory = start + self.index * QUEUE_BYTES
        os.eventfd_write(self.call_fd, 1)

    def detach(self) -> None:
        """There is none any more; soon nobody holds its memory."""
        with self._lock:
            self.link.memory = None
            if not self._serving:
                self.link.taken = None
        os.eventfd_write(self.call_fd, 1)

    @property
    def holds(self) -> bool:
        return self.link.taken is not None

    def give_up(self) -> None:
        """What is under way, and whatever comes, is answered with an error until :meth:`release`."""
        self.link.given_up = 1
        os.eventfd_write(self.call_fd, 1)

    def close(self) -> None:
        self._shared = None
        os.close(self.kick_fd)
        os.close(self.call_fd)

    # ---- for its user, in any thread

    @property
    def address(self) -> int:
        """Of its struct vhost."""
        return ctypes.addressof(self.link)

    def serve(self) -> None:
        """From now on its user's thread looks after it."""
        self._serving = True

    def release(self) -> None:
        with self._lock:
            self._serving = False
            self.link.given_up = 0
            if self.link.memory is None:
                self.link.taken = None
        os.eventfd_write(self.link.taken_fd, 1)

    def transfer(self, kind: int, offset: int, views: Sequence[memoryview]) -> None:
        """Read or write so many bytes from byte ``offset`` on; 1 MiB at most. Raises ``OSError``."""
        if kind == abi.VIRTIO_BLK_T_OUT:
            self._carry_out(kind, offset // 512, b"".join(views))
            return
        data = self._carry_out(kind, offset // 512, room=sum(map(len, views)))
        at = 0
        for view in views:
            view[:] = data[at : at + len(view)]
            at += len(view)

    def discard(self, offset: int, length: int) -> None:
        """Raises ``OSError``."""
        most = self.link.max_discard or length
        for start in range(offset, offset + length, most):
            count = min(most, offset + length - start)
            self._carry_out(abi.VIRTIO_BLK_T_DISCARD, 0, abi.DISCARD.pack(start // 512, count // 512, 0))

    def flush(self) -> None:
        """Raises ``OSError``."""
        covers = self._written.acked.value
        self._carry_out(abi.VIRTIO_BLK_T_FLUSH, 0)
        self._written.cover(covers)

    def _carry_out(self, kind: int, sector: int, out: bytes = b"", room: int = 0) -> bytes:
        """One request, in slot 0, however many processes it takes; what was read."""
        poll = select.poll()
        poll.register(self.call_fd, select.POLLIN)
        with self._turn:
            self.serve()
            try:
                begun: int | None = None
                while not self.link.given_up:
                    if (memory := self.link.memory) != begun:
                        begun = self._take(memory)
                        if begun is not None:
                            self._put(kind, sector, out, room)
                    elif begun is not None and self._u16(AT_USED + 2)[0] != self.link.used:
                        return self._answer(kind, room)
                    else:
                        poll.poll()
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(self.call_fd)
                raise OSError(errno.EIO, "its engine does not answer")
            finally:
                with self._lock:
                    self._serving = False
                    if self.link.memory is None:
                        self._take(None)

    def _take(self, memory: int | None) -> int | None:
        if self.link.taken != memory:
            self.link.taken, self.link.used = memory, 0
            os.eventfd_write(self.link.taken_fd, 1)
        return memory

    def _put(self, kind: int, sector: int, out: bytes, room: int) -> None:
        at, base, used = self.index * QUEUE_BYTES, self.link.base, self.link.used
        assert self._shared is not None

        def put(where: int, data: bytes) -> None:
            self._shared[at + where : at + where + len(data)] = data  # type: ignore[index]

        put(AT_HEADERS, abi.OUTHDR.pack(kind, 0, sector))
        put(AT_DATA, out)
        chain = [(AT_HEADERS, abi.OUTHDR.size, 0)]
        if out or room:
            chain.append((AT_DATA, len(out) or room, 0 if out else abi.VRING_DESC_F_WRITE))
        chain.append((AT_STATUS, 1, abi.VRING_DESC_F_WRITE))
        for n, (where, length, flags) in enumerate(chain):
            more = abi.VRING_DESC_F_NEXT if n + 1 < len(chain) else 0
            put(AT_DESC + abi.DESC.size * n, abi.DESC.pack(base + where, length, flags | more, n + 1))
        self._u16(AT_AVAIL + 4 + 2 * (used % QUEUE_SIZE))[0] = 0
        self._u16(AT_AVAIL + 4 + 2 * QUEUE_SIZE)[0] = used  # it is to call us when this one is done
        self._u16(AT_AVAIL + 2)[0] = (used + 1) & 0xFFFF
        os.eventfd_write(self.kick_fd, 1)  # asked for or not: it is a barrier, too

    def _answer(self, kind: int, room: int) -> bytes:
        assert self._shared is not None
        at = self.index * QUEUE_BYTES
        self.link.used = (self.link.used + 1) & 0xFFFF
        status = self._shared[at + AT_STATUS]
        if status != abi.VIRTIO_BLK_S_OK:
            number = errno.EOPNOTSUPP if status == abi.VIRTIO_BLK_S_UNSUPP else errno.EIO
            raise OSError(number, os.strerror(number))
        if kind in (abi.VIRTIO_BLK_T_OUT, abi.VIRTIO_BLK_T_DISCARD):
            self._written.add()
        return self._shared[at + AT_DATA : at + AT_DATA + room]

    def _u16(self, at: int) -> memoryview:
        assert self._shared is not None
        at += self.index * QUEUE_BYTES
        return memoryview(self._shared)[at : at + 2].cast("H")
