"""What a frontend asks for when it connects, checked: how many rings, of what size and layout.

io/blkif.h, "Request Transport Parameters" and "Multiple hardware queues/rings". The older spelling of a
ring's size, num-ring-pages, is taken as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from xenpvd.abi.io_blkif import ABIS, XEN_IO_PROTO_ABI_X86_32, Abi
from xenpvd.errors import GuestFault

MAX_QUEUES = 4
#: rings of 16 pages, 512 requests
MAX_RING_PAGE_ORDER = 4


class Nodes(Protocol):
    """The frontend's nodes; ``device.Frontend`` fits."""

    def number(self, node: str, default: int | None = None) -> int:
        """A u32. Raises :class:`GuestFault` if it is none, or missing without ``default``."""

    def text(self, node: str, default: str) -> str: ...


@dataclass(frozen=True, slots=True)
class QueueTerms:
    ring_refs: tuple[int, ...]
    event_channel: int


@dataclass(frozen=True, slots=True)
class Terms:
    abi: Abi
    queues: tuple[QueueTerms, ...]
    #: it uses the same pages for ever, if it was offered that
    persistent: bool = False

    @property
    def pages(self) -> int:
        """Of all rings."""
        return sum(len(queue.ring_refs) for queue in self.queues)

    @classmethod
    def read(cls, frontend: Nodes, max_queues: int = MAX_QUEUES) -> Terms:
        """Raises :class:`GuestFault` for what was not offered."""
        protocol = frontend.text("protocol", XEN_IO_PROTO_ABI_X86_32)  # the default of Linux' backend on x86
        if (abi := ABIS.get(protocol)) is None:
            raise GuestFault(f"protocol {protocol[:20]!r} is not known")
        pages = _ring_pages(frontend)
        count = frontend.number("multi-queue-num-queues", 1)
        if not 1 <= count <= max_queues:
            raise GuestFault(f"{count} queues, of {max_queues} that were offered")
        places = [""] if count == 1 else [f"queue-{n}/" for n in range(count)]
        queues = tuple(_queue(frontend, place, pages) for place in places)
        taken = [gref for queue in queues for gref in queue.ring_refs]
        if len(set(taken)) < len(taken):
            raise GuestFault("a page is in the rings twice")
        return cls(abi, queues, frontend.text("feature-persistent", "0") == "1")


def _ring_pages(frontend: Nodes) -> int:
    order = frontend.number("ring-page-order", 0)
    if order > MAX_RING_PAGE_ORDER:
        raise GuestFault(f"a ring of order {order}, of {MAX_RING_PAGE_ORDER} that was offered")
    pages = frontend.number("num-ring-pages", 1 << order)
    if pages.bit_count() != 1 or pages > 1 << MAX_RING_PAGE_ORDER or (order and pages != 1 << order):
        raise GuestFault(f"a ring of order {order} and {pages} pages: what is it?")
    return pages


def _queue(frontend: Nodes, place: str, pages: int) -> QueueTerms:
    names = ["ring-ref"] if pages == 1 else [f"ring-ref{n}" for n in range(pages)]
    refs = tuple(frontend.number(f"{place}{name}") for name in names)
    return QueueTerms(refs, frontend.number(f"{place}event-channel"))
