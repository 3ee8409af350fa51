"""Section I of bad guests: accounts that come out even, and memory that is bounded. The rest of I is in
test_misbehaviour_rights.py."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.backends.xenstore.survival import Clock, Survivors, begin, commit, heard, post
from tests.backends.xenstore.transports import OK, Guest, SocketGuest, message
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore import socket as store_socket

HOME = "/local/domain/1"


@pytest.fixture(params=["ring", "socket"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Survivors]:
    async with Survivors(request.param, tmp_path) as world:
        await world.guest(2)
        yield world


# ---- I1: what is created and removed again, in each way there is


async def plainly(world: Survivors, guest: Guest) -> None:
    assert await guest.ask(abi.XS_WRITE, b"data/a/b/c\0value") == OK
    assert await guest.ask(abi.XS_WRITE, b"data/a/b\0longer") == OK
    assert await guest.ask(abi.XS_SET_PERMS, b"data/a/b\0n1\0r2\0w3\0") == OK
    assert await guest.ask(abi.XS_RM, b"data/a\0") == OK


async def by_a_transaction(world: Survivors, guest: Guest) -> None:
    for type_, payload in ((abi.XS_WRITE, b"data/a/b\0value"), (abi.XS_RM, b"data/a\0")):
        tx = await begin(guest)
        assert await guest.ask(type_, payload, tx) == OK
        assert await commit(guest, tx) == OK


async def by_a_transaction_that_is_dropped(world: Survivors, guest: Guest) -> None:
    tx = await begin(guest)
    assert await guest.ask(abi.XS_WRITE, b"data/a/b\0value", tx) == OK
    assert await guest.ask(abi.XS_RM, b"data\0", tx) == OK
    assert await commit(guest, tx, b"F\0") == OK


async def by_one_that_conflicts(world: Survivors, guest: Guest) -> None:
    tx = await begin(guest)
    assert await guest.ask(abi.XS_WRITE, b"data/a/b\0value", tx) == OK
    world.own.write(f"{HOME}/data", "")
    assert await commit(guest, tx) == "EAGAIN"


async def by_one_that_is_too_large(world: Survivors, guest: Guest) -> None:
    tx = await begin(guest)
    assert await guest.ask(abi.XS_WRITE, b"data/a/b\0value", tx) == OK
    assert await guest.ask(abi.XS_WRITE, b"data/x\0" + bytes(2049), tx) == "ENOSPC"
    assert await commit(guest, tx) != OK


async def by_one_that_is_forgotten(world: Survivors, guest: Guest) -> None:
    tx = await begin(guest)
    assert await guest.ask(abi.XS_WRITE, b"data/a/b\0value", tx) == OK
    assert await guest.ask(abi.XS_RESET_WATCHES) == OK


async def as_a_gift_of_domain_0(world: Survivors, guest: Guest) -> None:
    """Guests pay for what they own, wherever it comes from."""
    world.own.write(f"{HOME}/data/a/theirs", "x" * 100)
    for owner in ("n1", "n2", "n1"):
        world.own.set_perms(f"{HOME}/data/a/theirs", [owner])
    assert await guest.ask(abi.XS_RM, b"data/a\0") == OK


async def by_somebody_else(world: Survivors, guest: Guest) -> None:
    """One's nodes below another's, gone with those."""
    other = await world.guest(2)
    assert await guest.ask(abi.XS_SET_PERMS, b"data\0n1\0b2\0") == OK
    assert await other.ask(abi.XS_WRITE, b"/local/domain/1/data/a/b\0value") == OK
    assert await other.ask(abi.XS_SET_PERMS, b"/local/domain/1/data/a\0b2\0") == OK
    assert await guest.ask(abi.XS_WRITE, b"data/a/mine\0value") == OK
    tx = await begin(guest)
    assert await guest.ask(abi.XS_RM, b"data/a\0", tx) == OK
    assert await commit(guest, tx) == OK
    assert await guest.ask(abi.XS_WRITE, b"data/c/d\0value") == OK
    assert await other.ask(abi.XS_RM, b"/local/domain/1/data/c\0") == OK
    assert await guest.ask(abi.XS_SET_PERMS, b"data\0n1\0") == OK


@pytest.mark.parametrize(
    "way",
    [
        plainly,
        by_a_transaction,
        by_a_transaction_that_is_dropped,
        by_one_that_conflicts,
        by_one_that_is_too_large,
        by_one_that_is_forgotten,
        as_a_gift_of_domain_0,
        by_somebody_else,
    ],
)
async def test_i1_what_was_taken_is_given_back(
    world: Survivors, way: Callable[[Survivors, Guest], Awaitable[None]]
) -> None:
    guest = await world.guest(1)
    accounts = set()
    for _ in range(25):
        await way(world, guest)
        for domid in (1, 2):
            domain = world.domain(domid)
            accounts.add((domid, domain.nodes, domain.transactions, world.unpaid(domid)))
    assert accounts == {(1, 1, 0, 0), (2, 1, 0, 0)}, "their data, and nothing else"


# ---- what is bounded


async def test_i4_the_thousand_and_twenty_fifth_node_of_a_transaction(world: Survivors) -> None:
    """Whether it is there or not. What is refused costs nothing, and the transaction is lost."""
    guest = await world.guest(1)
    tx = await begin(guest)
    made = 0
    while (answer := await guest.ask(abi.XS_READ, b"data/%d\0" % made, tx)) == "ENOENT":
        made += 1
    assert (answer, made) == ("ENOSPC", 1023), "data itself was looked at, too"
    before = world.domain(1).memory
    for n in range(100):
        assert await guest.ask(abi.XS_READ, b"data/x%d\0" % n, tx) == "ENOSPC"
        assert await guest.ask(abi.XS_WRITE, b"data/y%d\0v" % n, tx) == "ENOSPC"
    assert world.domain(1).memory == before
    assert await commit(guest, tx) == "ENOMEM"
    assert world.unpaid(1) == 0 and world.own.directory(f"{HOME}/data") == []


async def watched_with_long_tokens(guest: Guest) -> None:
    for n in range(129):
        assert await guest.ask(abi.XS_WATCH, b"data\0%04d" % n + b"t" * 3800 + b"\0") == OK
    guest.events.clear()


async def test_i5_i6_events_do_not_lead_over_the_memory_quota(tmp_path: Path) -> None:
    """xenstored drops what would. On a ring; a socket's guest is cut off by then."""
    async with Survivors("ring", tmp_path) as world:
        await world.guest(2)
        guest = await world.guest(1)
        await watched_with_long_tokens(guest)
        for n in range(30):
            world.own.write(f"{HOME}/data/{n}", "x")
        await world.settle()
        most, quota = world.domain(1).memory, world.domain(1).quota.memory
    assert most <= quota


async def test_i6_who_does_not_read_holds_up_nobody(world: Survivors) -> None:
    """A ring's guest loses events, and is told of by one event a time; a socket's is cut off."""
    deaf, writer = await world.guest(1), await world.guest(2)
    world.own.mkdir("/both")
    world.own.set_perms("/both", ["b0"])
    await deaf.ask(abi.XS_WATCH, b"/both\0" + b"t" * 3000 + b"\0")
    charged = world.unpaid(2)
    if isinstance(deaf, SocketGuest):
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sock = deaf.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for n in range(1500):
        assert await writer.ask(abi.XS_WRITE, b"/both/%d\0" % (n % 700)) == OK
        assert await writer.ask(abi.XS_RM, b"/both/%d\0" % (n % 700)) == OK
        assert await writer.ask(abi.XS_WRITE, b"/both/x%d\0" % n) == OK
        assert await writer.ask(abi.XS_RM, b"/both/x%d\0" % n) == OK
    assert world.unpaid(2) == charged, "who makes the events does not pay for them"
    lost = [data for name, data in world.told if name == "xenstore.lost"]
    if world.kind == "ring":
        assert lost == [{"domid": 1}]
        assert world.domain(1).memory < 1100 * (3000 + 40)
        path, _ = await deaf.event()
        assert path == "/both", "it goes on where it was"
    else:
        await world.until(lambda: len(world.sockets[1].peers) == 0)
        assert (world.domain(1).watches, world.unpaid(1)) == (0, 0)


async def test_i6_an_event_that_waits_for_twenty_seconds(tmp_path: Path) -> None:
    """On a ring it gives way to others, by a clock that stands still while the guest cannot run."""
    async with Survivors("ring", tmp_path) as world:
        world.clock = clock = Clock()
        world.own.write(f"{HOME}/big", bytes(4000))
        await world.guest(2)
        guest = await world.guest(1)
        world.own.set_perms(f"{HOME}/big", ["r0"])
        await guest.ask(abi.XS_WATCH, b"data\0t\0")
        await guest.event()
        post(guest, message(abi.XS_READ, b"big\0"))  # fills the ring
        await world.settle()
        for seconds, node in ((0, "old"), (10, "late"), (10, "later"), (0.5, "new")):
            clock.now += seconds
            world.own.write(f"{HOME}/data/{node}", "x")
        assert [data for name, data in world.told if name == "xenstore.lost"] == [{"domid": 1}]
        assert (await guest.receive()).type == abi.XS_READ
        assert [path for path, _ in await heard(guest)] == ["data/late", "data/later", "data/new"]


async def test_i6_a_client_that_does_not_read_for_twenty_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a socket it is cut off, and leaves nothing behind."""
    clock = Clock()
    async with Survivors("socket", tmp_path) as world:
        monkeypatch.setattr(store_socket, "monotonic", clock)
        await world.guest(2)
        world.own.write("/big", bytes(4000))
        world.own.set_perms("/big", ["r0"])
        guest = await world.guest(1)
        assert isinstance(guest, SocketGuest)
        await guest.ask(abi.XS_WATCH, b"data\0t\0")
        guest.writer.transport.pause_reading()  # type: ignore[attr-defined]
        while not any(peer._full for peer in world.sockets[1].peers):
            post(guest, message(abi.XS_READ, b"/big\0") * 10)
            await world.settle()
        for seconds, node in ((0, "old"), (20, "later")):
            clock.now += seconds
            world.own.write(f"{HOME}/data/{node}", "x")
            assert world.sockets[1].peers
        clock.now += 0.5
        world.own.write(f"{HOME}/data/new", "x")
        assert not world.sockets[1].peers
        assert world.unpaid(1) == 0


def blocks() -> int:
    """How many pieces of memory Python has given out: to the last one, where RSS knows pages only, and
    ``ru_maxrss`` the most that there ever was."""
    gc.collect()
    return sys.getallocatedblocks()


async def test_i7_a_hostile_guest_does_not_make_the_store_grow(world: Survivors) -> None:
    """All of I1 to I5, again and again, never the same names: after each time nothing is left."""
    guest = await world.guest(1)

    async def lap(n: int) -> None:
        for k in range(20):
            assert await guest.ask(abi.XS_WRITE, b"data/%d-%d\0" % (n, k) + bytes(500)) == OK
        for k in range(129):
            assert await guest.ask(abi.XS_WATCH, b"data/%d-%d\0%d\0" % (n, k, k)) == OK
        for _ in range(11):
            tx = await begin(guest)
            for k in range(5):
                assert await guest.ask(abi.XS_WRITE, b"data/%d-%d\0y" % (n, k), tx) == OK
        assert await guest.ask(abi.XS_TRANSACTION_START, b"\0") == "ENOSPC"
        assert await guest.ask(abi.XS_WATCH, b"data\0x\0") == "E2BIG"
        assert await guest.ask(abi.XS_RESET_WATCHES) == OK
        for k in range(20):
            assert await guest.ask(abi.XS_RM, b"data/%d-%d\0" % (n, k)) == OK
        guest.events.clear()

    for n in range(5):  # by then the history is full, too
        await lap(100 + n)
    before = blocks()
    for n in range(10):
        await lap(200 + n)
    assert world.unpaid(1) == 0 and world.domain(1).nodes == 1
    assert blocks() - before < 100, "one watch, one node or one transaction a lap would be as much"


async def test_i8_domain_0s_tools_are_bounded_like_anybody(tmp_path: Path) -> None:
    """A tool that asks, and never reads: nothing more is taken from it, and all is answered in order."""
    async with Survivors("socket", tmp_path) as world:
        await world.guest(2)
        world.own.write("/big", bytes(4000))
        deaf, other = await world.tool(), await world.tool()
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        assert await other.ask(abi.XS_READ, b"/\0") == b""
        requests = 3000
        for n in range(requests):
            post(deaf, message(abi.XS_READ, b"/big\0", req_id=n))
        assert world._tool_socket is not None
        await world.until(lambda: any(peer._full for peer in world._tool_socket.peers))  # type: ignore[union-attr]
        await world.settle()
        for peer in world._tool_socket.peers:
            assert peer._outbox.outstanding <= 20
        assert world.domain(0).outstanding <= 20
        assert await other.ask(abi.XS_READ, b"/\0") == b""
        deaf.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for n in range(requests):
            assert (await deaf.receive())[:2] == (abi.XS_READ, n)
        assert await heard(deaf) == []
