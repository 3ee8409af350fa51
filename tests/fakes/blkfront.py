"""The guest's half of xen-block: ring and pages (:class:`BlkRing`), handshake (:class:`Blkfront`)."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable, Sequence
from struct import Struct

from tests.fakes.evtchn import FakeEvtchnOps, FakeEvtchnPort
from tests.fakes.gnttab import FakeGnttab
from tests.fakes.page import FakePage
from xenpvd.abi.io_blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    SECTOR_SIZE,
    SEGMENT,
    X86_64,
    Abi,
)
from xenpvd.abi.io_ring import REQ_EVENT, REQ_PROD, RING, RSP_EVENT, RSP_PROD, ring_size
from xenpvd.abi.io_xenbus import XenbusState
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.backends.ops import XenstoreOps
from xenpvd.errors import XenstoreFault

MASK = 0xFFFF_FFFF

#: A segment of a request: gref, first_sect, last_sect.
Segment = tuple[int, int, int]

_RESPONSES = {"x86_64-abi": Struct("<QBxh"), "x86_32-abi": Struct("<QBxh")}


def pack_request(
    operation: int,
    *,
    id: int = 0,
    sector: int = 0,
    segments: Iterable[Segment] = (),
    nr_segments: int | None = None,
    handle: int = 0,
    abi: Abi = X86_64,
) -> bytes:
    """One slot as a guest writes it; ``nr_segments`` may lie."""
    segments = list(segments)
    slot = bytearray(abi.slot_size)
    number = len(segments) if nr_segments is None else nr_segments
    abi.header.pack_into(slot, 0, operation, number, handle, id, sector)
    for index, segment in enumerate(segments):
        SEGMENT.pack_into(slot, abi.segments + index * SEGMENT.size, *segment)
    return bytes(slot)


def pack_discard(sector: int, count: int, *, id: int = 0, flag: int = 0, abi: Abi = X86_64) -> bytes:
    slot = bytearray(abi.slot_size)
    abi.discard.pack_into(slot, 0, flag, id, sector, count)
    slot[0] = BLKIF_OP_DISCARD
    return bytes(slot)


def pack_indirect(
    operation: int, nr_segments: int, grefs: Iterable[int], *, id: int = 0, sector: int = 0, abi: Abi = X86_64
) -> bytes:
    """``grefs`` are of the pages that hold the segments."""
    slot = bytearray(abi.slot_size)
    eight = (*grefs, *[0xFFFF_FFFF] * 8)[:8]
    abi.indirect.pack_into(slot, 0, operation, nr_segments, id, sector, *eight)
    slot[0] = BLKIF_OP_INDIRECT
    return bytes(slot)


class FrontRing:
    """The front half of the ring (io/ring.h, FRONT_RING_*) on fresh pages; indexes may begin anywhere."""

    def __init__(self, pages: Sequence[FakePage], abi: Abi = X86_64, start: int = 0) -> None:
        self.pages = pages
        self.page = page = pages[0]
        self.abi = abi
        self.size = ring_size(len(pages) * PAGE_SIZE, abi.slot_size)
        self.req_prod = self.rsp_cons = start & MASK
        page.store32(REQ_PROD, start)
        page.store32(RSP_PROD, start)
        page.store32(REQ_EVENT, start + 1)
        page.store32(RSP_EVENT, start + 1)

    def put(self, slot: bytes) -> None:
        """Write a request into the next slot, without telling."""
        self._copy(self.req_prod, bytearray(slot), write=True)
        self.req_prod = (self.req_prod + 1) & MASK

    def push(self) -> bool:
        """RING_PUSH_REQUESTS_AND_CHECK_NOTIFY."""
        old, new = self.page.load32(REQ_PROD), self.req_prod
        self.page.store32(REQ_PROD, new)
        return (new - self.page.load32(REQ_EVENT)) & MASK < (new - old) & MASK

    def take(self) -> list[tuple[int, int, int]]:
        """All responses there are, as (id, operation, status); asks for a notify at the next."""
        responses = []
        while True:
            rsp_prod = self.page.load32(RSP_PROD)
            assert (rsp_prod - self.rsp_cons) & MASK <= self.size, "the backend broke the ring"
            while self.rsp_cons != rsp_prod:
                raw = bytes(self._copy(self.rsp_cons, bytearray(self.abi.response.size)))
                responses.append(_RESPONSES[self.abi.name].unpack_from(raw))
                assert raw == self.abi.response.pack(*responses[-1]), "stale bytes in the padding"
                self.rsp_cons = (self.rsp_cons + 1) & MASK
            self.page.store32(RSP_EVENT, self.rsp_cons + 1)
            if self.page.load32(RSP_PROD) == self.rsp_cons:
                return responses

    def _copy(self, index: int, data: bytearray, *, write: bool = False) -> bytearray:
        """To or from a slot, byte by byte: it may lie in two pages."""
        begin = RING + (index % self.size) * self.abi.slot_size
        for n in range(len(data)):
            page, offset = divmod(begin + n, PAGE_SIZE)
            if write:
                self.pages[page].view[offset] = data[n]
            else:
                data[n] = self.pages[page].view[offset]
        return data


class BlkRing(FrontRing):
    """A front ring with its port and granted pages, which really does I/O. Blocks, at most 5 seconds."""

    def __init__(self, gnttab: FakeGnttab, abi: Abi = X86_64, start: int = 0, order: int = 0) -> None:
        super().__init__([gnttab.page() for _ in range(1 << order)], abi, start)
        self.gnttab = gnttab
        self.grefs = [gnttab.grant(page) for page in self.pages]
        self.gref = self.grefs[0]
        self.port: FakeEvtchnPort | None = None
        self.kicks = 0
        self._id = 0

    def data_page(self, *, readonly: bool = False) -> tuple[FakePage, int]:
        page = self.gnttab.page()
        return page, self.gnttab.grant(page, readonly=readonly)

    def kick(self) -> None:
        assert self.port is not None
        self.kicks += 1
        self.port.guest_kick()

    def submit(self, *slots: bytes) -> None:
        """Put the requests and kick if the backend asked for that."""
        for slot in slots:
            self.put(slot)
        if self.push():
            self.kick()

    def wait(self, count: int) -> list[tuple[int, int, int]]:
        """``count`` responses, sleeping on the port as a guest does; TimeoutError after 5 seconds."""
        assert self.port is not None
        poll = select.poll()
        poll.register(self.port.irq_fd, select.POLLIN)
        responses: list[tuple[int, int, int]] = []
        while True:
            responses += self.take()
            if len(responses) >= count:
                assert len(responses) == count, responses
                return responses
            if not poll.poll(5000):
                raise TimeoutError(f"{len(responses)} of {count} responses: {responses}")
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.port.irq_fd)

    def do(self, *slots: bytes) -> list[tuple[int, int, int]]:
        """The responses by their ids: they come in any order."""
        self.submit(*slots)
        return sorted(self.wait(len(slots)))

    def read(self, sector: int, count: int) -> bytes:
        """``count`` sectors, in one request; the status must be 0."""
        pages = [self.data_page() for _ in range(-(-count // 8))]
        self._transfer(BLKIF_OP_READ, sector, count, [gref for _, gref in pages])
        return b"".join(bytes(page.view) for page, _ in pages)[: count * SECTOR_SIZE]

    def write(self, sector: int, data: bytes) -> None:
        grefs = []
        for offset in range(0, len(data), PAGE_SIZE):
            page, gref = self.data_page(readonly=True)
            page.write(0, data[offset : offset + PAGE_SIZE])
            grefs.append(gref)
        self._transfer(BLKIF_OP_WRITE, sector, len(data) // SECTOR_SIZE, grefs)

    def transfer_indirect(self, operation: int, sector: int, grefs: Sequence[int]) -> int:
        """Whole pages; the response's status."""
        page, table = self.data_page(readonly=True)
        for n, gref in enumerate(grefs):
            SEGMENT.pack_into(page.view, n * SEGMENT.size, gref, 0, 7)
        slot = pack_indirect(operation, len(grefs), [table], id=7, sector=sector, abi=self.abi)
        ((_, answered, status),) = self.do(slot)
        assert answered == operation, "Linux compares it with what it has asked for"
        self.gnttab.end_access(table)
        return status

    def discard(self, sector: int, count: int) -> int:
        """The response's status."""
        ((_, _, status),) = self.do(pack_discard(sector, count, abi=self.abi))
        return status

    def flush(self) -> int:
        """The response's status."""
        ((_, _, status),) = self.do(pack_request(BLKIF_OP_FLUSH_DISKCACHE, abi=self.abi))
        return status

    def _transfer(self, operation: int, sector: int, count: int, grefs: list[int]) -> None:
        self._id += 1
        segments = []
        for index, gref in enumerate(grefs):
            segments.append((gref, 0, min(8, count - 8 * index) - 1))
        slot = pack_request(operation, id=self._id, sector=sector, segments=segments, abi=self.abi)
        assert self.do(slot) == [(self._id, operation, 0)]
        for gref in grefs:
            self.gnttab.end_access(gref)


class Blkfront:
    """A Linux-like frontend: what ``drivers/block/xen-blkfront.c`` writes, when it is told to.

    ``xenstore`` is any connection that may write the frontend's nodes.
    """

    def __init__(
        self,
        xenstore: XenstoreOps,
        evtchn: FakeEvtchnOps,
        gnttab: FakeGnttab,
        devid: int,
        *,
        domid: int = 1,
        abi: Abi = X86_64,
    ) -> None:
        self.xenstore = xenstore
        self.evtchn = evtchn
        self.gnttab = gnttab
        self.abi = abi
        self.path = f"/local/domain/{domid}/device/vbd/{devid}"
        self.backend = f"/local/domain/0/backend/vbd/{domid}/{devid}"
        self.ring: BlkRing | None = None
        self.rings: list[BlkRing] = []
        self.ports: list[int] = []

    def write(self, node: str, value: object) -> None:
        self.xenstore.write(f"{self.path}/{node}", f"{value}")

    def switch(self, state: XenbusState) -> None:
        self.write("state", f"{state:d}")

    def offer(self, *, queues: int = 1, order: int = 0, **other: object) -> BlkRing:
        """Write fresh rings' nodes and go to Initialised; ``other`` nodes (``ring_ref``) instead, None for
        leaving one out. Gives the first ring; all are in ``rings``."""
        self.rings = [BlkRing(self.gnttab, self.abi, order=order) for _ in range(queues)]
        self.ports = [self.evtchn.alloc_unbound() for _ in self.rings]
        nodes: dict[str, object] = {"protocol": self.abi.name}
        if order:
            nodes["ring-page-order"] = order
        if queues > 1:
            nodes["multi-queue-num-queues"] = queues
        for n, (ring, port) in enumerate(zip(self.rings, self.ports, strict=True)):
            place = f"queue-{n}/" if queues > 1 else ""
            nodes[f"{place}event-channel"] = port
            for page, gref in enumerate(ring.grefs):
                nodes[f"{place}ring-ref{page}" if order else f"{place}ring-ref"] = gref
        nodes |= {name.replace("_", "-"): value for name, value in other.items()}
        with self.xenstore.transaction() as tx:
            for node, value in nodes.items():
                if value is not None:
                    tx.write(f"{self.path}/{node}", f"{value}")
            tx.write(f"{self.path}/state", f"{XenbusState.Initialised:d}")
        self.ring = self.rings[0]
        return self.ring

    async def connect(self, *, queues: int = 1, order: int = 0) -> BlkRing:
        """The whole handshake: InitWait → Initialised → Connected on both ends."""
        await self.wait_backend(XenbusState.InitWait)
        ring = self.offer(queues=queues, order=order)
        await self.wait_backend(XenbusState.Connected)
        for each, port in zip(self.rings, self.ports, strict=True):
            each.port = self.evtchn.ports[port]
        self.switch(XenbusState.Connected)
        return ring

    def backend_state(self) -> XenbusState:
        try:
            return XenbusState(int(self.xenstore.read(f"{self.backend}/state")))
        except XenstoreFault:
            return XenbusState.Unknown

    async def wait_backend(self, *states: XenbusState) -> None:
        watch = self.xenstore.watch(f"{self.backend}/state")
        try:
            async for _ in watch:
                if self.backend_state() in states:
                    return
        finally:
            watch.close()
