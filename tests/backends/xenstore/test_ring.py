from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.page import FakePage
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.ring import FEATURES, Ring
from xenpvd.backends.xenstore.wire import ConnectionFault

REQUEST = bytes(range(256)) * 4


def at(index: int) -> tuple[FakePage, Ring]:
    """A ring whose streams begin at ``index``."""
    page = FakePage()
    ring = Ring(page)
    for offset in (abi.REQ_CONS, abi.REQ_PROD, abi.RSP_CONS, abi.RSP_PROD):
        page.store32(offset, index)
    ring._req_cons = ring._rsp_prod = index
    return page, ring


def test_it_begins_empty_whatever_was_there():
    page = FakePage()
    page.write(0, b"\xff" * 4096)
    ring = Ring(page)
    assert [page.load32(offset) for offset in range(2048, 2076, 4)] == [0, 0, 0, 0, FEATURES, 0, 0]
    assert ring.consume() == b""


@pytest.mark.parametrize("index", [0, 1000, 2**32 - 500])
def test_consume_takes_all_across_the_ends(index: int):
    page, ring = at(index)
    for i, byte in enumerate(REQUEST):
        page.write((index + i) % 1024, bytes([byte]))
    page.store32(abi.REQ_PROD, index + 1024)
    assert ring.consume() == REQUEST
    assert page.load32(abi.REQ_CONS) == (index + 1024) % 2**32
    assert ring.consume() == b""


@pytest.mark.parametrize("index", [0, 1000, 2**32 - 500])
def test_produce_fills_across_the_ends_and_then_stops(index: int):
    page, ring = at(index)
    assert ring.produce(REQUEST[:1000]) == 1000
    assert ring.produce(REQUEST) == 24
    assert ring.produce(REQUEST) == 0
    assert page.load32(abi.RSP_PROD) == (index + 1024) % 2**32
    got = b"".join(page.read(1024 + (index + i) % 1024, 1) for i in range(1024))
    assert got == REQUEST[:1000] + REQUEST[:24]
    page.store32(abi.RSP_CONS, index + 10)
    assert ring.produce(REQUEST) == 10


@pytest.mark.parametrize("ahead", [1025, 2**31, 2**32 - 1])
def test_bad_indexes(ahead: int):
    page, ring = at(5)
    page.store32(abi.REQ_PROD, 5 + ahead)
    with pytest.raises(ConnectionFault, match="req_prod") as caught:
        ring.consume()
    assert caught.value.error == abi.XENSTORE_ERROR_RINGIDX
    page.store32(abi.RSP_CONS, 5 - ahead)
    with pytest.raises(ConnectionFault, match="rsp_cons"):
        ring.produce(b"x")


def test_our_indexes_are_ours():
    page, ring = at(0)
    page.store32(abi.REQ_CONS, 77)
    page.store32(abi.RSP_PROD, 77)
    page.write(0, b"ab")
    page.store32(abi.REQ_PROD, 2)
    assert ring.consume() == b"ab"
    assert ring.produce(b"cd") == 2
    assert (page.load32(abi.REQ_CONS), page.load32(abi.RSP_PROD)) == (2, 2)


def test_what_comes_while_we_look_is_not_lost():
    page, ring = at(0)
    page.store32(abi.REQ_PROD, 4)

    def more() -> None:
        page.on_fence = lambda: None
        page.store32(abi.REQ_PROD, 8)

    page.on_fence = more
    assert len(ring.consume()) == 4
    assert len(ring.consume()) == 4


def test_reconnect():
    page, ring = at(100)
    ring.set_error(abi.XENSTORE_ERROR_COMM)
    assert not ring.reconnect_wanted()
    page.store32(abi.CONNECTION, abi.XENSTORE_RECONNECT)
    assert ring.reconnect_wanted()
    ring.reset()
    assert [page.load32(offset) for offset in range(2048, 2076, 4)] == [0, 0, 0, 0, FEATURES, 0, 0]
    assert not ring.reconnect_wanted()


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=8))
def test_any_indexes_are_harmless(moves: list[tuple[int, int]]):
    page, ring = at(0)
    for req_prod, rsp_cons in moves:
        page.store32(abi.REQ_PROD, req_prod)
        page.store32(abi.RSP_CONS, rsp_cons)
        for use in (ring.consume, lambda: ring.produce(REQUEST)):
            try:
                use()
            except ConnectionFault:
                return
