"""The back ring against a front ring: wrap, hostile indexes, and who wakes whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.blkfront import MASK, FrontRing
from tests.fakes.page import FakePage
from xenpvd.abi.io_blkif import X86_32, X86_64, Abi
from xenpvd.abi.io_ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from xenpvd.backends.ring import BackRing
from xenpvd.errors import GuestFault

SIZE = 32


def pair(start: int = 0, abi: Abi = X86_64) -> tuple[FrontRing, BackRing]:
    front = FrontRing([FakePage()], abi, start)
    return front, BackRing([front.page], abi.slot_size)


@pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)
@pytest.mark.parametrize(("order", "size"), [(1, 64), (4, 512)])
def test_a_ring_of_several_pages(order: int, size: int, abi: Abi) -> None:
    """Some slots begin in one page and end in the next."""
    front = FrontRing([FakePage() for _ in range(1 << order)], abi, start=2**32 - 5)
    back = BackRing(front.pages, abi.slot_size)
    assert front.size == back.size == size
    for lap in range(3):
        slots = [slot(front, lap * 1000 + n) for n in range(size)]
        for data in slots:
            front.put(data)
        front.push()
        assert back.consume() == slots
        for n in range(size):
            back.produce(response(front, lap * 1000 + n))
        back.push()
        assert front.take() == [(lap * 1000 + n, 0, 0) for n in range(size)]


def slot(front: FrontRing, number: int) -> bytes:
    return number.to_bytes(8, "little") * (front.abi.slot_size // 8) + bytes(front.abi.slot_size % 8)


def response(front: FrontRing, number: int) -> bytes:
    return front.abi.response.pack(number, 0, 0)


@pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)
@pytest.mark.parametrize("start", [0, 2**32 - 3, 2**31 - 1])
def test_all_slots_go_round(start: int, abi: Abi) -> None:
    front, back = pair(start, abi)
    for lap in range(5):
        slots = [slot(front, lap * 100 + n) for n in range(SIZE)]
        for data in slots:
            front.put(data)
        front.push()
        assert back.consume() == slots
        assert back.consume() == []
        assert back.in_flight == SIZE
        for n in range(SIZE):
            back.produce(response(front, lap * 100 + n))
        assert front.take() == []
        back.push()
        assert [id for id, _, _ in front.take()] == [lap * 100 + n for n in range(SIZE)]
        assert back.in_flight == 0


def test_consume_takes_no_more_than_the_limit() -> None:
    front, back = pair()
    for n in range(10):
        front.put(slot(front, n))
    front.push()
    assert back.consume(4) == [slot(front, n) for n in range(4)]
    assert back.consume(4) == [slot(front, n) for n in range(4, 8)]
    assert back.consume(4) == [slot(front, n) for n in range(8, 10)]


def test_consumed_requests_are_copies() -> None:
    front, back = pair()
    front.put(slot(front, 7))
    front.push()
    (copy,) = back.consume()
    front.page.write(64, slot(front, 8))
    assert copy == slot(front, 7)


def test_req_prod_is_read_once() -> None:
    """A4."""
    front, back = pair()
    for n in range(2):
        front.put(slot(front, n))
    seen = iter([1])
    front.page.load32 = lambda offset: next(seen)  # type: ignore[method-assign]
    assert back.consume() == [slot(front, 0)]


@pytest.mark.parametrize("start", [0, 2**32 - 3])
@pytest.mark.parametrize("jump", [SIZE + 1, 2**31, 2**32 - 1, 2**32 - SIZE])
def test_req_prod_that_cannot_be_true(start: int, jump: int) -> None:
    front, back = pair(start)
    front.page.store32(REQ_PROD, start + jump)
    with pytest.raises(GuestFault, match="req_prod"):
        back.consume()
    with pytest.raises(GuestFault, match="req_prod"):
        back.final_check()
    assert back.req_cons == start & MASK and back.in_flight == 0


def test_req_prod_behind_the_requests_in_flight() -> None:
    front, back = pair()
    for n in range(4):
        front.put(slot(front, n))
    front.push()
    back.consume()
    front.page.store32(REQ_PROD, 2)  # between rsp_prod and req_cons
    with pytest.raises(GuestFault):
        back.consume()


def test_no_more_requests_than_free_response_slots() -> None:
    front, back = pair()
    for n in range(SIZE):
        front.put(slot(front, n))
    front.push()
    assert len(back.consume(8)) == 8
    front.page.store32(REQ_PROD, SIZE + 1)  # one request over the eight that have no response yet
    with pytest.raises(GuestFault):
        back.consume()


def test_a_ring_of_ones_is_refused_at_once() -> None:
    page = FakePage()
    page.view[:] = b"\xff" * 4096
    page.store32(REQ_PROD, 40)
    with pytest.raises(GuestFault):
        BackRing([page], X86_64.slot_size)


def test_guest_garbage_in_our_indexes_does_not_move_us() -> None:
    front, back = pair()
    front.put(slot(front, 1))
    front.push()
    back.consume()
    front.page.store32(RSP_PROD, 0xDEAD_BEEF)
    front.page.store32(RSP_EVENT, 0)  # passed before: no notify, from 0 to 1
    back.produce(response(front, 1))
    assert back.push() is False
    assert front.page.load32(RSP_PROD) == 1
    assert front.take() == [(1, 0, 0)]


def test_more_responses_than_requests_is_our_own_fault() -> None:
    _, back = pair()
    with pytest.raises(AssertionError):
        back.produce(bytes(16))


@pytest.mark.parametrize(
    ("rsp_event", "responses", "notify"),
    [
        (1, 1, True),
        (1, 5, True),
        (2, 1, False),
        (5, 5, True),
        (6, 5, False),
        (0, 1, False),  # passed long ago
        (2**31, 5, False),
    ],
)
def test_notify_by_rsp_event(rsp_event: int, responses: int, notify: bool) -> None:
    front, back = pair()
    for n in range(responses):
        front.put(slot(front, n))
    front.push()
    back.consume()
    for n in range(responses):
        back.produce(response(front, n))
    front.page.store32(RSP_EVENT, rsp_event)
    assert back.push() is notify
    assert back.push() is False  # nothing new


def test_final_check_asks_for_the_next_kick() -> None:
    front, back = pair()
    assert back.final_check() is False
    front.put(slot(front, 0))
    assert front.push() is True
    assert back.final_check() is True
    assert front.page.load32(REQ_EVENT) == 1  # work to do: it is not armed


def test_final_check_sees_a_request_that_comes_at_the_barrier() -> None:
    front, back = pair()
    front.put(slot(front, 0))
    front.page.store32(REQ_EVENT, 0xFFFF)  # the guest will not kick

    def late() -> None:
        front.page.store32(REQ_PROD, 1)

    front.page.on_fence = late
    assert back.final_check() is True


def test_rsp_event_is_read_after_the_barrier() -> None:
    front, back = pair()
    front.put(slot(front, 0))
    front.push()
    back.consume()
    back.produce(response(front, 0))
    front.page.store32(RSP_EVENT, 0)

    def late() -> None:
        assert front.page.load32(RSP_PROD) == 1, "rsp_prod must be out before the barrier"
        front.page.store32(RSP_EVENT, 1)

    front.page.on_fence = late
    assert back.push() is True


@given(
    start=st.integers(0, MASK),
    moves=st.lists(st.tuples(st.sampled_from(["put", "consume", "answer"]), st.integers(0, 40)), max_size=60),
)
def test_nothing_is_lost_doubled_or_reordered(start: int, moves: list[tuple[str, int]]) -> None:
    """Any interleaving, from any index: what goes in comes out once and in order; no side sleeps for ever."""
    front, back = pair(start)
    sent = consumed = answered = taken = 0
    for move, count in moves:
        if move == "put":
            for _ in range(min(count, SIZE - (sent - taken))):
                front.put(slot(front, sent))
                sent += 1
            front.push()
        elif move == "consume":
            for data in back.consume(count):
                assert data == slot(front, consumed)
                consumed += 1
        else:
            for _ in range(min(count, consumed - answered)):
                back.produce(response(front, answered))
                answered += 1
            waiting = back.push()
            got = [id for id, _, _ in front.take()]
            assert got == list(range(taken, answered))
            assert waiting is bool(got)
            taken = answered
        assert back.in_flight == consumed - answered
    assert back.final_check() is (sent > consumed)


@given(req_prod=st.integers(0, MASK), taken=st.integers(0, SIZE), answered=st.integers(0, SIZE))
def test_any_req_prod_is_served_or_refused(req_prod: int, taken: int, answered: int) -> None:
    front, back = pair(2**32 - 20)
    answered = min(answered, taken)
    for n in range(taken):
        front.put(slot(front, n))
    front.push()
    back.consume()
    for n in range(answered):
        back.produce(response(front, n))
    front.page.store32(REQ_PROD, req_prod)
    ahead = (req_prod - back.req_cons) & MASK
    if ahead <= SIZE - (taken - answered):
        assert len(back.consume()) == ahead
    else:
        with pytest.raises(GuestFault):
            back.consume()
