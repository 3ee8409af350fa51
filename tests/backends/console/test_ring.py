"""The two byte rings against a front end: round the edge, full, and with indices that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.console_frontend import (
    IN_CONS,
    IN_PROD,
    IN_SIZE,
    OUT_CONS,
    OUT_PROD,
    OUT_SIZE,
    ConsoleFrontend,
)
from tests.fakes.page import FakePage
from xenpvd.backends.console.ring import ConsoleRing
from xenpvd.errors import GuestFault

STARTS = [0, 1000, 2**32 - 5]


def pair(start: int = 0) -> tuple[ConsoleFrontend, ConsoleRing]:
    front = ConsoleFrontend(start)
    front.port.close()
    return front, ConsoleRing(front.page)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("length", [1, 700, OUT_SIZE])
def test_output_comes_out_as_it_went_in(start: int, length: int) -> None:
    front, ring = pair(start)
    for lap in range(4):
        data = bytes((lap + n) % 256 for n in range(length))
        assert front.put(data) == length
        assert ring.drain() == (data, length == OUT_SIZE)
        assert ring.drain() == (b"", False)
        assert front.page.load32(OUT_CONS) == front.page.load32(OUT_PROD)


@pytest.mark.parametrize("start", STARTS)
def test_input_goes_in_until_it_is_full(start: int) -> None:
    front, ring = pair(start)
    data = bytes(n % 251 for n in range(3000))
    assert ring.feed(data) == IN_SIZE
    assert ring.feed(data) == 0
    assert front.take() == data[:IN_SIZE]
    assert ring.feed(b"abc") == 3
    assert ring.feed(data) == IN_SIZE - 3
    assert front.take() == b"abc" + data[: IN_SIZE - 3]
    assert ring.feed(b"") == 0


@pytest.mark.parametrize("ahead", [OUT_SIZE + 1, 2**31, 2**32 - 1])
def test_output_that_cannot_be_is_not_believed(ahead: int) -> None:
    """M1: out_prod too far ahead, or backwards; nothing is taken until it makes sense again."""
    front, ring = pair(5)
    front.page.store32(OUT_PROD, 5 + ahead)
    with pytest.raises(GuestFault, match="out_prod"):
        ring.drain()
    assert front.page.load32(OUT_CONS) == 5
    front.page.store32(OUT_PROD, 5)
    front.put(b"sane")
    assert ring.drain() == (b"sane", False)


@pytest.mark.parametrize("cons", [1, 2**31, 2**32 - IN_SIZE - 1])
def test_input_is_not_written_for_a_reader_that_is_ahead(cons: int) -> None:
    """M2."""
    front, ring = pair()
    front.page.store32(IN_CONS, cons)
    with pytest.raises(GuestFault, match="in_cons"):
        ring.feed(b"x")
    assert front.page.load32(IN_PROD) == 0 and front.page.read(0, IN_SIZE) == bytes(IN_SIZE)
    front.page.store32(IN_CONS, 0)
    assert ring.feed(b"x") == 1


def test_our_own_indices_are_not_read_back_from_the_page() -> None:
    front, ring = pair()
    front.put(b"one")
    ring.drain()
    ring.feed(b"in")
    front.page.store32(OUT_CONS, 0)
    front.page.store32(IN_PROD, 77)
    assert ring.drain() == (b"", False)
    assert ring.feed(b"put") == 3
    assert front.page.load32(IN_PROD) == 5
    front.page.store32(IN_CONS, 0)
    assert front.take() == b"input"


def test_the_index_comes_after_a_barrier() -> None:
    front, ring = pair()
    front.put(b"abc")
    seen: list[tuple[int, int]] = []
    front.page.on_fence = lambda: seen.append((front.page.load32(OUT_CONS), front.page.load32(IN_PROD)))
    ring.drain()
    ring.feed(b"x")
    assert seen == [(0, 0), (3, 0)]


def test_a_guest_that_moves_the_index_meanwhile_is_read_once() -> None:
    """out_prod grows while we copy: only what it said first is taken."""
    front, ring = pair()
    front.put(b"abc")
    front.page.on_fence = lambda: front.page.store32(OUT_PROD, 4000)
    assert ring.drain() == (b"abc", False)
    assert front.page.load32(OUT_CONS) == 3


@given(
    start=st.integers(0, 2**32 - 1),
    steps=st.lists(st.tuples(st.sampled_from(["put", "drain", "feed", "take"]), st.binary(max_size=1500))),
)
def test_both_streams_keep_their_order(start: int, steps: list[tuple[str, bytes]]) -> None:
    front, ring = pair(start)
    printed, drained, typed, taken = b"", b"", b"", b""
    for act, data in [*steps, ("drain", b""), ("take", b"")]:
        if act == "put":
            printed += data[: front.put(data)]
        elif act == "drain":
            drained += ring.drain()[0]
            assert drained == printed
        elif act == "feed":
            typed += data[: ring.feed(data)]
        else:
            taken += front.take()
            assert taken == typed


@given(
    content=st.binary(min_size=16, max_size=16),
    words=st.lists(st.tuples(st.sampled_from([IN_CONS, OUT_PROD]), st.integers(0, 2**32 - 1)), max_size=8),
)
def test_whatever_the_page_says_it_is_bytes_or_a_guest_fault(
    content: bytes, words: list[tuple[int, int]]
) -> None:
    page = FakePage()
    page.write(IN_CONS, content)
    ring = ConsoleRing(page)
    for index, value in words:
        page.store32(index, value)
        for act in (ring.drain, lambda: ring.feed(b"typed")):
            try:
                act()
            except GuestFault:
                continue
