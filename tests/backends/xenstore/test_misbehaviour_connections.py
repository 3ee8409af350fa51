"""Section F of bad guests: how a connection is held up, broken off and begun anew. The rest of F is in
test_misbehaviour_wire.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backends.xenstore.survival import Survivors, begin, heard, post
from tests.backends.xenstore.transports import OK, RingGuest, SocketGuest, message
from tests.fakes.xenstore_frontend import CONNECTION, REQ_CONS, RING, RSP_PROD
from xenpvd.abi import io_xs_wire as abi

BIG = 4000


@pytest.fixture(params=["ring", "socket"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Survivors]:
    async with Survivors(request.param, tmp_path) as world:
        await world.guest(2)
        world.own.write("/local/domain/1/big", bytes(BIG))
        world.own.set_perms("/local/domain/1", ["n0", "r1"])
        world.own.set_perms("/local/domain/1/big", ["n0", "r1"])
        yield world


async def test_f7_the_same_req_id_again_and_again(world: Survivors) -> None:
    """It is the guest's affair: each is answered, with its own tx_id."""
    guest = await world.guest(1)
    tx = await begin(guest)
    for number in (0, tx, 4711, 0):
        await guest.send(message(abi.XS_READ, b"data\0", req_id=0xFFFF_FFFF, tx_id=number))
    answers = [await guest.receive() for _ in range(4)]
    assert [answer[1:3] for answer in answers] == [(0xFFFF_FFFF, number) for number in (0, tx, 4711, 0)]
    assert [answer[0] for answer in answers] == [abi.XS_READ, abi.XS_READ, abi.XS_ERROR, abi.XS_READ]


async def test_f10_all_is_answered_to_who_has_said_all(tmp_path: Path) -> None:
    """More than the kernel takes at once. A ring has no half to close."""
    async with Survivors("socket", tmp_path) as world:
        await world.guest(2)
        tool = await world.tool()
        world.own.write("/big", bytes(BIG))
        for n in range(300):
            post(tool, message(abi.XS_READ, b"/big\0", req_id=n))
        post(tool, message(abi.XS_READ, b"/big\0")[:20])
        tool.writer.write_eof()
        for n in range(300):
            assert await tool.receive() == (abi.XS_READ, n, 0, bytes(BIG))
        with pytest.raises(ConnectionResetError):
            await tool.receive()


async def test_f11_a_client_that_leaves_in_the_middle_of_a_reply(world: Survivors) -> None:
    guest = await world.guest(1)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    await begin(guest)
    for n in range(10):
        post(guest, message(abi.XS_READ, b"big\0", req_id=n))
    if isinstance(guest, RingGuest):
        await world.until(lambda: world.domain(1).outstanding > 1)
        assert len(guest.take()) == RING, "a quarter of the first one"
        await world.store.disconnect(1)
    else:
        assert await guest.reader.readexactly(100)
        guest.writer.transport.abort()
        await world.until(lambda: not world.sockets[1].peers)
    domain = world.domain(1)
    assert (domain.watches, domain.transactions, domain.outstanding, world.unpaid(1)) == (0, 0, 0, 0)


async def test_f12_our_indexes_are_not_the_guests_to_change(tmp_path: Path) -> None:
    """What it writes there is overwritten, and believed by nobody but itself. A socket has none."""
    async with Survivors("ring", tmp_path) as world:
        guest = await world.guest(1)
        assert isinstance(guest, RingGuest)
        for round_ in range(1, 30):
            await guest.send(message(abi.XS_WRITE, b"data/x\0%d" % round_, req_id=round_))
            guest.page.store32(REQ_CONS, round_ * 0x1234_5678)
            guest.page.store32(RSP_PROD, guest.page.load32(RSP_PROD) + 7 * round_ % RING)
            await world.settle()
            assert await guest.receive() == (abi.XS_WRITE, round_, 0, OK)
        assert world.own.read("/local/domain/1/data/x") == b"29"


async def test_f13_replies_that_are_never_read_cost_their_bytes_only(world: Survivors) -> None:
    guest = await world.guest(1)
    requests = b"".join(message(abi.XS_READ, b"big\0", req_id=n) for n in range(1000))
    before, most, sent = world.domain(1).memory, 0, 0
    for _ in range(30):
        sent += post(guest, requests[sent : sent + RING])
        await world.settle()
        most = max(most, world.domain(1).memory - before)
        assert world.domain(1).outstanding <= 20
    assert most <= 20 * (BIG + 16)
    if world.kind == "ring":  # a socket's kernel has taken more
        assert world.domain(1).outstanding == 20
        assert most >= 19 * (BIG + 16), "they are paid for"


async def test_f11_f15_a_guest_that_connects_anew_again_and_again(world: Survivors) -> None:
    """Each time in the middle of all. A ring says so in its page; a socket is closed and opened."""
    await world.guest(1)
    taken = set()
    for n in range(40):
        guest = await world.guest(1)
        await guest.ask(abi.XS_WATCH, b"data\0%d\0" % n)
        tx = await begin(guest)
        await guest.ask(abi.XS_WRITE, b"data/never\0", tx)
        world.own.write("/local/domain/1/data/x", f"{n % 10}")  # an event that it does not read
        post(guest, message(abi.XS_READ, b"big\0") + message(abi.XS_READ, b"big\0")[:19])
        await world.settle()
        if isinstance(guest, RingGuest):
            guest.page.store32(CONNECTION, abi.XENSTORE_RECONNECT)
            guest.port.guest_kick()
            while guest.page.load32(CONNECTION) != abi.XENSTORE_CONNECTED:
                await guest.port.guest_wait()
            assert [guest.page.load32(index) for index in range(2048, 2064, 4)] == [0] * 4
            guest._in = b""
        else:
            guest.writer.transport.abort()
            await world.until(lambda: len(world.sockets[1].peers) == 1)
        domain = world.domain(1)
        taken.add((domain.watches, domain.transactions, domain.outstanding, world.unpaid(1)))
    assert taken == {(0, 0, 0, 0)}
    assert not world.store.exists("/local/domain/1/data/never")


async def test_f18_domains_that_are_released_while_all_look_at_it(world: Survivors) -> None:
    """Many watches and deaf readers: nothing is changed under the feet of who goes through it."""
    one, two = await world.guest(1), await world.guest(2)
    world.own.set_perms("@releaseDomain", ["r0"])
    watch = world.own.watch("@releaseDomain")
    for guest in (one, two):
        for n in range(100):
            await guest.ask(abi.XS_WATCH, b"@releaseDomain\0%d\0" % n)
        await heard(guest)
    for _ in range(20):
        one = await world.guest(1)
        post(one, message(abi.XS_READ, b"data\0")[:9])
        await world.release(1)
        assert len(await heard(two)) == 100
    one = await world.guest(1)
    assert world.domain(1).watches == 0 and await heard(one) == [], "the next one has none of them"
    watch.close()


async def test_f18_who_was_released_is_served_no_more(world: Survivors) -> None:
    guest = await world.guest(1)
    assert world.ask0(abi.XS_RELEASE, b"1\0") == OK
    post(guest, message(abi.XS_WRITE, b"data/x\0late"))
    await world.settle()
    assert not world.store.exists("/local/domain/1/data/x")
    if isinstance(guest, SocketGuest):
        with pytest.raises(ConnectionResetError):
            await guest.receive()
    else:
        assert guest.take() == b""
