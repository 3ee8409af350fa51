"""The guest's half of xen-block: ring and pages (:class:`BlkRing`), handshake (:class:`Blkfront`)."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable
from struct import Struct

from tests.fakes.evtchn import FakeEvtchnOps, FakeEvtchnPort
from tests.fakes.gnttab import FakeGnttab
from tests.fakes.page import FakePage
from xenpvd.abi.io_blkif import (
    BLKIF_OP_FLUSH_DISKCACHE,
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


class FrontRing:
    """The front half of the ring (io/ring.h, FRONT_RING_*) on a fresh page; indexes may begin anywhere."""

    def __init__(self, page: FakePage, abi: Abi = X86_64, start: int = 0) -> None:
        self.page = page
        self.abi = abi
        self.size = ring_size(PAGE_SIZE, abi.slot_size)
        self.req_prod = self.rsp_cons = start & MASK
        page.store32(REQ_PROD, start)
        page.store32(RSP_PROD, start)
        page.store32(REQ_EVENT, start + 1)
        page.store32(RSP_EVENT, start + 1)

    def put(self, slot: bytes) -> None:
        """Write a request into the next slot, without telling."""
        self.page.write(RING + (self.req_prod % self.size) * self.abi.slot_size, slot)
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
                offset = RING + (self.rsp_cons % self.size) * self.abi.slot_size
                raw = self.page.read(offset, self.abi.response.size)
                responses.append(_RESPONSES[self.abi.name].unpack_from(raw))
                assert raw == self.abi.response.pack(*responses[-1]), "stale bytes in the padding"
                self.rsp_cons = (self.rsp_cons + 1) & MASK
            self.page.store32(RSP_EVENT, self.rsp_cons + 1)
            if self.page.load32(RSP_PROD) == self.rsp_cons:
                return responses


class BlkRing(FrontRing):
    """A front ring with its port and granted pages, which really does I/O. Blocks, at most 5 seconds."""

    def __init__(self, gnttab: FakeGnttab, abi: Abi = X86_64, start: int = 0) -> None:
        super().__init__(FakePage(), abi, start)
        self.gnttab = gnttab
        self.gref = gnttab.grant(self.page)
        self.port: FakeEvtchnPort | None = None
        self.kicks = 0
        self._id = 0

    def data_page(self, *, readonly: bool = False) -> tuple[FakePage, int]:
        page = FakePage()
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
        self.submit(*slots)
        return self.wait(len(slots))

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

    def write(self, node: str, value: object) -> None:
        self.xenstore.write(f"{self.path}/{node}", f"{value}")

    def switch(self, state: XenbusState) -> None:
        self.write("state", f"{state:d}")

    def offer(self, **other: object) -> BlkRing:
        """Write a fresh ring's nodes and go to Initialised; ``other`` nodes (``ring_ref``) instead, None
        for leaving one out."""
        ring = BlkRing(self.gnttab, self.abi)
        port = self.evtchn.alloc_unbound()
        nodes = {"ring-ref": ring.gref, "event-channel": port, "protocol": self.abi.name}
        nodes |= {name.replace("_", "-"): value for name, value in other.items()}
        with self.xenstore.transaction() as tx:
            for node, value in nodes.items():
                if value is not None:
                    tx.write(f"{self.path}/{node}", f"{value}")
            tx.write(f"{self.path}/state", f"{XenbusState.Initialised:d}")
        self.ring, self._port = ring, port
        return ring

    async def connect(self) -> BlkRing:
        """The whole handshake: InitWait → Initialised → Connected on both ends."""
        await self.wait_backend(XenbusState.InitWait)
        ring = self.offer()
        await self.wait_backend(XenbusState.Connected)
        ring.port = self.evtchn.ports[self._port]
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
