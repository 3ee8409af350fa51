"""The data plane of one ring in plain Python: ring ↔ image in a thread of its own, without asyncio.

The door is narrow, so that a compiled plane fits it: pages, fds and numbers in; start, stop, join, stats.
Requests are carried out one after the other, straight into and out of the granted pages, and answered in
groups: small ones, so that the guest works on the first while we work on the next.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Sequence

from xenpvd.abi.io_blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    SEGMENT,
    SEGMENTS_PER_PAGE,
    Abi,
)
from xenpvd.abi.page import SharedPage
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.request import Indirect, Offer, Refusal, Request, parse, parse_indirect
from xenpvd.backends.blkif.throttle import Throttle
from xenpvd.backends.ops import EvtchnPort, GnttabOps, Grant, GrantError
from xenpvd.backends.ring import BackRing
from xenpvd.counts import Durations
from xenpvd.errors import GuestFault

#: Requests answered in one go. Half a ring at a time makes guest and backend take turns; one at a time
#: costs a look at rsp_event each.
GROUP = 8

#: Bytes of a discard that are let go of at once; a device may take its time for each.
DISCARD_STEP = 1 << 30

#: Seconds in which at most one trouble is told; a guest can make as many as it likes.
TROUBLE_PAUSE = 1.0

#: Seconds after which who waits by a disk's limits looks whether they are others now.
LIMITS_PAUSE = 0.1


class Plane:
    """Serves one ring until :meth:`stop` or until the guest breaks the ring.

    ``image`` is the plane's own: its thread closes it at its end, however late. ``engine`` is what operators
    are told of how it works.
    ``offer`` may be replaced at any time: requests taken after that are held to the new one.
    ``on_trouble(what)`` is called for requests that failed, seldom enough for a log. ``on_end(fault)`` is the
    thread's last act: None after :meth:`stop`, a :class:`GuestFault` for a ring that cannot be true, anything
    else for a fault of our own. Both are called in the plane's thread and must not raise.
    Raises :class:`GuestFault` if the ring cannot be attached.
    """

    def __init__(
        self,
        pages: Sequence[SharedPage],
        port: EvtchnPort,
        gnttab: GnttabOps,
        image: Image,
        *,
        abi: Abi,
        offer: Offer,
        throttle: Throttle,
        on_trouble: Callable[[str], None],
        on_end: Callable[[BaseException | None], None],
        name: str = "blkif",
        engine: str = "python",
    ) -> None:
        self.offer = offer
        self.engine = engine
        self._ring = BackRing(pages, abi.slot_size)
        self._port = port
        self._gnttab = gnttab
        self._image = image
        self._abi = abi
        self._throttle = throttle
        self._on_trouble = on_trouble
        self._on_end = on_end
        self._stopping = False
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._troubles = 0
        self._told_at = -TROUBLE_PAUSE
        self._read_bytes = self._write_bytes = 0
        self._reads = self._writes = self._flushes = self._discards = self._errors = 0
        self._notified = self._suppressed = self._throttled = 0
        self._latency = Durations()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; the requests it has taken are finished, answered and flushed before.

        What the guest has put on the ring meanwhile stays there. Returns at once; ``on_end`` tells.
        """
        self._stopping = True
        if self._stop_fd >= 0:
            os.eventfd_write(self._stop_fd, 1)

    def join(self) -> None:
        """Wait for the thread (which has ended, but for its return, when ``on_end`` came) and clean up."""
        if self._thread.ident is not None:
            self._thread.join()
        if self._stop_fd >= 0:
            fd, self._stop_fd = self._stop_fd, -1
            os.close(fd)
        self._image.close()

    def stats(self) -> dict[str, int]:
        """Counters since the start, as they are just now; from any thread."""
        return {
            "reads": self._reads,
            "read_bytes": self._read_bytes,
            "writes": self._writes,
            "write_bytes": self._write_bytes,
            "flushes": self._flushes,
            "discards": self._discards,
            "errors": self._errors,
            "throttled": self._throttled,
            "in_flight": self._ring.in_flight,
            "notifications": self._notified,
            "notifications_suppressed": self._suppressed,
        } | self._latency.flat()

    # ---- below: in the plane's thread

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            try:
                self._serve()
            finally:
                self._flush_at_end()
        except GuestFault as fault:
            end = None if self._stopping else fault  # nobody minds what the ring was like at the end
        except BaseException as fault:
            end = fault
        self._image.close()
        self._on_end(end)

    def _serve(self) -> None:
        ring, kick_fd = self._ring, self._port.kick_fd
        poll = select.poll()
        poll.register(kick_fd, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        while not self._stopping:
            slots = ring.consume(GROUP)
            if not slots:
                if not ring.final_check():
                    poll.poll()
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(kick_fd)
                continue
            for slot in slots:
                ring.produce(self._answer(slot))
            self._push()

    def _push(self) -> None:
        if self._ring.push():
            self._notified += 1
            self._port.notify()
        else:
            self._suppressed += 1

    def _answer(self, slot: bytes) -> bytes:
        """Carry out one request; every request has exactly one response, whatever becomes of it."""
        offer, status = self.offer, BLKIF_RSP_OKAY
        request = parse(slot, self._abi, offer)
        try:
            if isinstance(request, Indirect):
                request = parse_indirect(request, self._table(request), offer)
            if isinstance(request, Refusal):
                self._trouble(f"refused: {request.why}")
                status = request.status
            else:
                self._serve_one(request)
        except GrantError as fault:
            self._trouble(f"cannot map the guest's page: {fault} (GNTST {fault.status})")
            status = BLKIF_RSP_ERROR
        except OSError as fault:
            offset = request.offset if isinstance(request, Request) else 0
            why = fault.strerror or str(fault)
            self._trouble(cannot(request.operation, self._image.path, offset, why))
            status = BLKIF_RSP_ERROR
        return self._abi.response.pack(request.id, request.operation, status)

    def _serve_one(self, request: Request) -> None:
        begun = time.monotonic_ns()
        try:
            self._wait_for_its_turn(request)
            self._carry_out(request)
        finally:
            self._latency.note(time.monotonic_ns() - begun)

    def _table(self, request: Indirect) -> bytes:
        """A private copy of the segments; more than these bytes of the pages is not looked at."""
        table = b""
        left = request.nr_segments
        for gref in request.grefs:
            grant = self._gnttab.map(gref, readonly=True)
            try:
                table += grant.page.read(0, min(left, SEGMENTS_PER_PAGE) * SEGMENT.size)
            finally:
                grant.unmap()
            left -= SEGMENTS_PER_PAGE
        return table

    def _wait_for_its_turn(self, request: Request) -> None:
        """As the disk's limits have it, which may change meanwhile; who stops does not wait. A discard moves
        no bytes."""
        throttle = self._throttle
        limits = throttle.limits
        length = 0 if request.operation == BLKIF_OP_DISCARD else request.length
        wait = throttle.take(time.monotonic(), length)
        if wait <= 0:
            return
        self._push()  # what is done is not held up
        self._throttled += 1
        poll = select.poll()
        poll.register(self._stop_fd, select.POLLIN)
        until = time.monotonic() + wait
        while (left := until - time.monotonic()) > 0 and throttle.limits is limits:
            if poll.poll(min(left, LIMITS_PAUSE) * 1000):
                return

    def _carry_out(self, request: Request) -> None:
        if request.operation == BLKIF_OP_FLUSH_DISKCACHE:
            self._image.flush()
            self._flushes += 1
            return
        if request.operation == BLKIF_OP_DISCARD:
            self._discard(request.offset, request.length)
            self._discards += 1
            return
        reading = request.operation == BLKIF_OP_READ
        grants: dict[int, Grant] = {}
        try:
            views = []
            for gref, start, end in request.segments:
                grant = grants.get(gref)
                if grant is None:
                    grant = grants[gref] = self._gnttab.map(gref, readonly=not reading)
                views.append(grant.page.view[start:end])
            if reading:
                self._image.read(views, request.offset)
            else:
                self._image.write(views, request.offset)
        finally:
            for grant in grants.values():
                grant.unmap()
        if reading:
            self._reads += 1
            self._read_bytes += request.length
        else:
            self._writes += 1
            self._write_bytes += request.length

    def _discard(self, offset: int, length: int) -> None:
        """In steps, and what is left when the plane stops is left: a discard is advice (io/blkif.h)."""
        for start in range(offset, offset + length, DISCARD_STEP):
            if self._stopping and start > offset:
                return
            self._image.discard(start, min(DISCARD_STEP, offset + length - start))

    def _flush_at_end(self) -> None:
        if self._writes or self._discards:
            try:
                self._image.flush()
            except OSError as fault:
                self._trouble(f"cannot flush {self._image.path}: {fault.strerror or fault}")

    def _trouble(self, what: str) -> None:
        self._errors += 1
        self._troubles += 1
        now = time.monotonic()
        if now - self._told_at >= TROUBLE_PAUSE:
            more = f" ({self._troubles - 1} more before it)" if self._troubles > 1 else ""
            self._told_at, self._troubles = now, 0
            self._on_trouble(what + more)


_VERBS = {
    BLKIF_OP_READ: "read",
    BLKIF_OP_WRITE: "write",
    BLKIF_OP_FLUSH_DISKCACHE: "flush",
    BLKIF_OP_DISCARD: "discard in",
}


def cannot(operation: int, path: str, offset: int, why: str) -> str:
    """What an operator is told of a request that the storage has failed."""
    place = "" if operation == BLKIF_OP_FLUSH_DISKCACHE else f" at byte {offset}"
    return f"cannot {_VERBS.get(operation, 'use')} {path}{place}: {why}"
