"""The back half of a request/response ring, sans-IO (Xen: io/ring.h, BACK_RING_* and RING_* macros).

The shared indexes are hostile: each is read once, checked, and the private copies decide from then on.
"""

from __future__ import annotations

from collections.abc import Sequence

from xenpvd.abi.io_ring import REQ_EVENT, REQ_PROD, RING, RING_IDX_MASK, RSP_EVENT, RSP_PROD, ring_size
from xenpvd.abi.page import PAGE_SIZE, SharedPage
from xenpvd.errors import GuestFault


class BackRing:
    """Takes requests from and puts responses on one ring.

    ``slot_size`` is the size of the union of request and response. The ring takes the whole of ``pages``, one
    after the other, as if they were one. Attaching begins at the ring's ``rsp_prod``, as it may have lived
    before. Raises :class:`GuestFault` if its indexes cannot be true.
    """

    def __init__(self, pages: Sequence[SharedPage], slot_size: int) -> None:
        self._pages = pages
        self._page = page = pages[0]  # with the indexes
        self._slot_size = slot_size
        self.size = ring_size(len(pages) * PAGE_SIZE, slot_size)
        # free-running u32: requests taken, responses put, responses that the guest has been shown
        self.req_cons = self.rsp_prod_pvt = self._rsp_prod = page.load32(RSP_PROD)
        self._unconsumed()

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered yet."""
        return (self.req_cons - self.rsp_prod_pvt) & RING_IDX_MASK

    def consume(self, limit: int | None = None) -> list[bytes]:
        """Private copies of the waiting requests, oldest first, at most ``limit``.

        Raises :class:`GuestFault` if ``req_prod`` has gone backwards, or so far ahead that the responses
        would not find room; nothing is taken then.
        """
        count = self._unconsumed()
        if limit is not None and count > limit:
            count = limit
        # No barrier between req_prod and the slots: x86 keeps loads in order, and so does the interpreter.
        first = self.req_cons
        self.req_cons = (first + count) & RING_IDX_MASK
        return [self._read(first + n) for n in range(count)]

    def produce(self, response: bytes) -> None:
        """Put one response in the next slot; the guest does not see it until :meth:`push`."""
        if self.rsp_prod_pvt == self.req_cons:
            raise AssertionError("a response without a request")
        page, offset, straight = self._place(self.rsp_prod_pvt, len(response))
        self._pages[page].write(offset, response[:straight])
        if straight < len(response):
            self._pages[page + 1].write(0, response[straight:])
        self.rsp_prod_pvt = (self.rsp_prod_pvt + 1) & RING_IDX_MASK

    def push(self) -> bool:
        """Show the responses put so far to the guest. Returns True if it wants to be notified."""
        old, new = self._rsp_prod, self.rsp_prod_pvt
        self._page.store32(RSP_PROD, new)
        self._rsp_prod = new
        # the guest must see rsp_prod before we read rsp_event, or both sides may go to sleep
        self._page.fence()
        event = self._page.load32(RSP_EVENT)
        return (new - event) & RING_IDX_MASK < (new - old) & RING_IDX_MASK

    def final_check(self) -> bool:
        """To be asked before sleeping: are there requests after all?

        False means that the guest will notify at its very next request.
        Raises :class:`GuestFault` as :meth:`consume`.
        """
        if self._unconsumed():
            return True
        self._page.store32(REQ_EVENT, self.req_cons + 1)
        self._page.fence()  # req_event before we look again, or a request may come in between unnoticed
        return self._unconsumed() > 0

    def _read(self, index: int) -> bytes:
        page, offset, straight = self._place(index, self._slot_size)
        slot = self._pages[page].read(offset, straight)
        if straight < self._slot_size:
            slot += self._pages[page + 1].read(0, self._slot_size - straight)
        return slot

    def _place(self, index: int, length: int) -> tuple[int, int, int]:
        """Where a slot begins (page, offset), and how many of ``length`` bytes are still in that page."""
        page, offset = divmod(RING + (index & (self.size - 1)) * self._slot_size, PAGE_SIZE)
        return page, offset, min(length, PAGE_SIZE - offset)

    def _unconsumed(self) -> int:
        req_prod = self._page.load32(REQ_PROD)
        count = (req_prod - self.req_cons) & RING_IDX_MASK
        if count > self.size - self.in_flight:
            raise GuestFault(
                f"req_prod {req_prod:#x} cannot be true: {self.size} slots, req_cons {self.req_cons:#x}, "
                f"{self.in_flight} requests in flight"
            )
        return count
