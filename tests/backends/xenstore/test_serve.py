"""The ring's task, with a handler of the test's own behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.fakes.evtchn import FakeEvtchnPort
from tests.fakes.page import FakePage
from tests.fakes.xenstore_frontend import XenstoreFrontend, request
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.domain import Domain
from xenpvd.backends.xenstore.outbox import Outbox
from xenpvd.backends.xenstore.quota import Quota
from xenpvd.backends.xenstore.serve import BURST, PENANCE, RingServer
from xenpvd.backends.xenstore.wire import ConnectionFault, Message

READ = abi.XS_READ


class Rig:
    """Answers each request with its own payload."""

    def __init__(self) -> None:
        self.page, self.port = FakePage(), FakeEvtchnPort()
        self.handled: list[Message] = []
        self.resets = 0
        self.rest: float | None = None
        self.looks: list[float] = []  # what the next looks at it find
        self.cut: list[BaseException] = []
        outbox = Outbox(Connection(Domain(1, Quota())), lambda: 0.0, lambda: None)
        self.server = RingServer(
            "xenstore-1",
            self.page,
            self.port,
            outbox,
            self.handle,
            self.reset,
            self.on_cut,
            self.resting,
        )
        self.guest = XenstoreFrontend(self.page, self.port)

    def handle(self, message: Message) -> None:
        self.handled.append(message)
        if message.payload == b"boom":
            raise ZeroDivisionError
        self.server.deliver(message)

    def resting(self) -> float | None:
        return self.looks.pop(0) if self.looks else self.rest

    def reset(self) -> None:
        self.resets += 1

    def on_cut(self, name: str, fault: BaseException) -> None:
        self.cut.append(fault)

    async def settle(self) -> None:
        """Let the task do all it can do without another kick."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.server.close()
    rig.port.close()


@pytest.mark.parametrize("piece", [1, 7, 16, 1024])
async def test_requests_in_pieces(rig: Rig, piece: int):
    payload = bytes(range(256))
    for _ in range(5):
        assert await rig.guest.ask(READ, payload, piece=piece) == payload


@pytest.mark.parametrize("length", [0, 1008, 1009, 4096])
async def test_messages_up_to_four_rings_long(rig: Rig, length: int):
    payload = bytes(i % 251 for i in range(length))
    assert await rig.guest.ask(READ, payload) == payload


async def test_across_the_end_of_the_indexes(rig: Rig):
    rig.guest.start_at(2**32 - 300)
    rig.server._ring._req_cons = rig.server._ring._rsp_prod = 2**32 - 300
    for n in range(40):
        assert await rig.guest.ask(READ, b"%d" % n * 10) == b"%d" % n * 10
    assert rig.page.load32(abi.REQ_PROD) < 2**31


async def test_half_a_request_is_taken_and_waited_for(rig: Rig):
    whole = request(READ, b"hello", 1)
    rig.guest.put(whole[:9])
    await rig.guest.port.guest_wait()
    assert rig.page.load32(abi.REQ_CONS) == 9
    assert rig.handled == []
    rig.guest.put(whole[9:])
    assert (await rig.guest.receive()).payload == b"hello"


@pytest.mark.parametrize("looks", [1, 2, 3])
async def test_a_rest_that_ends_while_it_is_looked_at(rig: Rig, looks: int):
    await rig.settle()
    rig.looks = [0.001] * looks
    async with asyncio.timeout(5):
        assert await rig.guest.ask(READ, b"x") == b"x"


async def test_one_notify_for_many_replies(rig: Rig):
    rig.guest.put(request(READ, b"x") * 10)
    await rig.guest.port.guest_wait()
    assert len(rig.handled) == 10
    assert rig.port.notified == 1


async def test_a_kick_without_news_is_no_notify(rig: Rig):
    for _ in range(10):
        rig.port.guest_kick()
        await rig.settle()
    assert rig.port.notified == 0


async def test_a_write_while_we_look_needs_no_kick(rig: Rig):
    def sneak() -> None:
        if rig.page.load32(abi.REQ_CONS) == len(first):
            rig.page.on_fence = lambda: None
            rig.page.write(len(first), first)
            rig.page.store32(abi.REQ_PROD, 2 * len(first))  # and no kick

    first = request(READ, b"x", 1)
    rig.page.on_fence = sneak
    rig.guest.put(first)
    await rig.settle()
    assert len(rig.handled) == 2


async def test_a_guest_that_does_not_read_is_not_served_on(rig: Rig):
    flood = request(READ, bytes(100), 1)
    sent = 0
    for _ in range(100):
        sent += rig.guest.put(flood[sent % len(flood) :])
        await rig.settle()
    fits = 1024 // len(flood)
    assert len(rig.handled) == fits + 20
    assert rig.page.load32(abi.RSP_PROD) - rig.page.load32(abi.RSP_CONS) == 1024
    assert rig.page.load32(abi.REQ_PROD) - rig.page.load32(abi.REQ_CONS) == 1024
    replies = [await rig.guest.receive() for _ in range(sent // len(flood))]
    assert {reply.payload for reply in replies} == {bytes(100)}
    assert len(rig.handled) == sent // len(flood) > fits + 20


async def test_events_reach_a_guest_that_asks_nothing(rig: Rig):
    rig.server.deliver(Message(abi.XS_WATCH_EVENT, 0, 0, b"path\0token\0"))
    assert await rig.guest.event() == ("path", "token")


@pytest.mark.parametrize(
    ("harm", "error", "why"),
    [
        (lambda rig: rig.page.store32(abi.REQ_PROD, 1025), abi.XENSTORE_ERROR_RINGIDX, "req_prod"),
        (lambda rig: rig.page.store32(abi.REQ_PROD, 2**32 - 1), abi.XENSTORE_ERROR_RINGIDX, "req_prod"),
        (
            lambda rig: (rig.page.store32(abi.RSP_CONS, 1), rig.guest.put(request(READ))),
            abi.XENSTORE_ERROR_RINGIDX,
            "rsp_cons",
        ),
        (lambda rig: rig.guest.put(b"\2" + b"\0" * 11 + b"\1\x10\0\0"), abi.XENSTORE_ERROR_PROTO, "4097"),
        (
            lambda rig: rig.page.write(0, b"\xff" * 1024) or rig.page.store32(abi.REQ_PROD, 16),
            3,
            "4294967295",
        ),
    ],
)
async def test_broken_protocol_cuts_off(rig: Rig, harm, error: int, why: str):
    harm(rig)
    rig.port.guest_kick()
    while not rig.cut:
        await rig.port.guest_wait()
    (fault,) = rig.cut
    assert isinstance(fault, ConnectionFault)
    assert why in str(fault)
    assert rig.page.load32(abi.ERROR) == error
    handled = len(rig.handled)
    rig.page.store32(abi.REQ_PROD, rig.page.load32(abi.REQ_CONS))
    rig.guest.put(request(READ, b"again"))
    outstanding = rig.server._outbox.outstanding
    rig.server.deliver(Message(READ, 0, 0, b""))
    await rig.settle()
    assert rig.server._outbox.outstanding == outstanding
    assert len(rig.handled) == handled
    assert len(rig.cut) == 1


async def test_who_was_cut_off_can_connect_anew(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """F12, F15: not at once, or each fault of an endless row would be an event."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr("xenpvd.backends.xenstore.serve.asyncio.sleep", note)
    for n in range(1, 4):
        rig.page.store32(abi.REQ_PROD, rig.page.load32(abi.REQ_CONS) + 1025)
        rig.port.guest_kick()
        while len(rig.cut) < n:
            await rig.port.guest_wait()
        rig.page.store32(abi.CONNECTION, abi.XENSTORE_RECONNECT)
        rig.port.guest_kick()
        while rig.page.load32(abi.CONNECTION) != abi.XENSTORE_CONNECTED:
            await rig.port.guest_wait()
        assert rig.page.load32(abi.ERROR) == abi.XENSTORE_ERROR_NONE and rig.resets == n
        assert await rig.guest.ask(READ, b"again") == b"again"
    assert pauses.count(PENANCE) == 3


async def test_halted_it_answers_nothing_and_restarted_it_begins_anew(rig: Rig):
    assert await rig.guest.ask(READ, b"one") == b"one"
    rig.server.halt()
    rig.guest.put(request(READ, b"two"))
    rig.server.deliver(Message(abi.XS_WATCH_EVENT, 0, 0, b"path\0token\0"))
    await rig.settle()
    assert len(rig.handled) == 1
    rig.server.restart()
    await rig.port.guest_wait()
    assert [rig.page.load32(offset) for offset in range(2048, 2064, 4)] == [0] * 4 and rig.resets == 1
    assert await rig.guest.ask(READ, b"three") == b"three"
    assert [message.payload for message in rig.handled] == [b"one", b"three"]


async def test_our_fault_is_told_too(rig: Rig):
    rig.guest.put(request(READ, b"boom"))
    while not rig.cut:
        await rig.port.guest_wait()
    assert isinstance(rig.cut[0], ZeroDivisionError)
    assert rig.page.load32(abi.ERROR) == abi.XENSTORE_ERROR_COMM


async def test_after_our_fault_it_can_be_begun_anew(rig: Rig):
    await rig.guest.send(request(READ, b"boom"))
    await rig.settle()
    assert rig.cut
    rig.server.restart()
    rig.guest = XenstoreFrontend(rig.page, rig.port)
    assert await rig.guest.ask(READ, b"data") == b"data"


async def test_reconnect_forgets_what_was_under_way(rig: Rig):
    rig.guest.put(request(READ, b"never finished")[:20])
    await rig.port.guest_wait()
    rig.page.store32(abi.CONNECTION, abi.XENSTORE_RECONNECT)
    rig.port.guest_kick()
    await rig.port.guest_wait()
    assert rig.page.load32(abi.CONNECTION) == abi.XENSTORE_CONNECTED
    assert rig.resets == 1
    assert [rig.page.load32(offset) for offset in range(2048, 2064, 4)] == [0] * 4
    assert await rig.guest.ask(READ, b"fresh") == b"fresh"


async def test_a_guest_that_never_pauses_does_not_starve_the_loop(rig: Rig):
    """Another vCPU writes CONNECTION all the time, so there is always something to do."""
    load32 = rig.page.load32
    rig.page.load32 = lambda offset: 1 if offset == abi.CONNECTION else load32(offset)
    rig.port.guest_kick()
    await rig.settle()
    assert 5 * BURST < rig.resets < 20 * BURST


async def test_closing_is_quiet(rig: Rig):
    await rig.server.close()
    rig.server.deliver(Message(READ, 0, 0, b""))
    await rig.server.close()
    assert rig.cut == []
    assert rig.port.notified == 0


async def test_who_rests_hears_but_is_not_heard_until_then(rig: Rig):
    rig.rest = 0.01
    rig.guest.put(request(READ, b"x"))
    rig.port.guest_kick()
    await rig.settle()
    assert rig.handled == []
    rig.server.deliver(Message(abi.XS_WATCH_EVENT, 0, 0, b"a\0t\0"))
    assert (await rig.guest.receive()).type == abi.XS_WATCH_EVENT
    rig.rest = None
    assert (await rig.guest.receive()).payload == b"x", "with no other kick"
