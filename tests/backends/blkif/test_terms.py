"""A frontend's wishes as rows; tests/backends/blkif/test_backend.py has them over the store."""

from __future__ import annotations

import pytest

from xenpvd.abi.io_blkif import X86_32, X86_64
from xenpvd.backends.blkif.terms import QueueTerms, Terms
from xenpvd.errors import GuestFault


class Nodes(dict[str, str]):
    """Fits ``terms.Nodes``."""

    def number(self, node: str, default: int | None = None) -> int:
        if node not in self and default is None:
            raise GuestFault(f"{node} is missing")
        return int(self.get(node, default or 0))

    def text(self, node: str, default: str) -> str:
        return self.get(node, default)


def rings(count: int, pages: int) -> dict[str, str]:
    """Grefs from 8 on, ports from 3 on."""
    nodes = {}
    for queue in range(count):
        place = f"queue-{queue}/" if count > 1 else ""
        nodes[f"{place}event-channel"] = f"{3 + queue}"
        for page in range(pages):
            nodes[f"{place}ring-ref{page if pages > 1 else ''}"] = f"{8 + queue * pages + page}"
    return nodes


@pytest.mark.parametrize(
    ("nodes", "count", "pages"),
    [
        ({}, 1, 1),
        ({"ring-page-order": "0", "num-ring-pages": "1", "multi-queue-num-queues": "1"}, 1, 1),
        ({"ring-page-order": "4"}, 1, 16),
        ({"num-ring-pages": "8"}, 1, 8),
        ({"ring-page-order": "3", "num-ring-pages": "8"}, 1, 8),
        ({"multi-queue-num-queues": "4"}, 4, 1),
        ({"multi-queue-num-queues": "2", "ring-page-order": "1"}, 2, 2),
    ],
)
def test_good(nodes: dict[str, str], count: int, pages: int) -> None:
    terms = Terms.read(Nodes(rings(count, pages) | nodes))
    assert terms.abi is X86_32, "for who does not say"
    assert terms.queues == tuple(
        QueueTerms(tuple(range(8 + n * pages, 8 + (n + 1) * pages)), 3 + n) for n in range(count)
    )
    assert Terms.read(Nodes(rings(count, pages) | nodes | {"protocol": "x86_64-abi"})).abi is X86_64
    assert terms.pages == count * pages


@pytest.mark.parametrize(("told", "persistent"), [(None, False), ("1", True), ("0", False), ("yes", False)])
def test_who_keeps_its_pages_granted(told: str | None, persistent: bool) -> None:
    nodes = {} if told is None else {"feature-persistent": told}
    assert Terms.read(Nodes(rings(1, 1) | nodes)).persistent is persistent


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ({"protocol": "arm-abi"}, "arm-abi"),
        ({"ring-page-order": "5"}, "order 5"),
        ({"ring-page-order": f"{2**32 - 1}"}, "order 4294967295"),
        ({"num-ring-pages": "32"}, "32 pages"),
        ({"num-ring-pages": "0"}, "0 pages"),
        ({"num-ring-pages": "3"}, "3 pages"),
        ({"ring-page-order": "2", "num-ring-pages": "2"}, "order 2 and 2 pages"),
        ({"ring-page-order": "1"}, "ring-ref0 is missing"),
        ({"multi-queue-num-queues": "0"}, "0 queues"),
        ({"multi-queue-num-queues": "5"}, "5 queues"),
        ({"multi-queue-num-queues": "2"}, "queue-0/ring-ref is missing"),
        ({"ring-page-order": "1", "ring-ref0": "8", "ring-ref1": "8"}, "twice"),
    ],
)
def test_bad(nodes: dict[str, str], why: str) -> None:
    with pytest.raises(GuestFault, match=why):
        Terms.read(Nodes(rings(1, 1) | nodes))
