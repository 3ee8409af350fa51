"""Sections J and K of bad guests and clients, each case over a ring and over a socket."""

from __future__ import annotations

import pytest

from tests.backends.xenstore.transports import OK, Guest, World
from xenpvd.abi import io_xs_wire as abi

pytestmark = pytest.mark.timeout(60)


async def begin(guest: Guest) -> int:
    started = await guest.ask(abi.XS_TRANSACTION_START, b"\0")
    assert isinstance(started, bytes)
    return int(started[:-1])


async def end(guest: Guest, tx: int, verdict: bytes = b"T\0") -> bytes | str:
    return await guest.ask(abi.XS_TRANSACTION_END, verdict, tx)


async def no_event(guest: Guest) -> bool:
    """Events come before the reply to what comes after them."""
    await guest.ask(abi.XS_READ, b"data\0")
    return not guest.events


async def test_j2_created_and_deleted_in_one(world: World) -> None:
    guest = await world.guest(1)
    before = world.domain(1).nodes, world.domain(1).memory
    tx = await begin(guest)
    for _ in range(3):
        assert await guest.ask(abi.XS_WRITE, b"data/a/b\0x", tx) == OK
        assert await guest.ask(abi.XS_RM, b"data/a\0", tx) == OK
    assert await end(guest, tx) == OK
    assert (world.domain(1).nodes, world.domain(1).memory) == before


async def test_j3_a_quota_that_ends_in_the_middle_ends_all(world: World) -> None:
    guest = await world.guest(1)
    world.domain(1).quota.nodes = world.domain(1).nodes + 2
    tx = await begin(guest)
    answers = [await guest.ask(abi.XS_WRITE, b"data/%d\0x" % n, tx) for n in range(4)]
    assert answers == [OK, OK, "ENOSPC", "ENOSPC"]
    assert await end(guest, tx) == "ENOSPC"
    assert world.own.directory("/local/domain/1/data") == []


async def test_j4_transactions_do_not_nest(world: World) -> None:
    guest = await world.guest(1)
    tx = await begin(guest)
    assert await guest.ask(abi.XS_TRANSACTION_START, b"\0", tx) == "EBUSY"
    assert await end(guest, tx) == OK


@pytest.mark.parametrize("verdict", [b"X\0", b"", b"T", b"t\0", b"T\0F\0", b"TF\0"])
async def test_j5_an_end_that_is_none(world: World, verdict: bytes) -> None:
    guest, other = await world.guest(1), await world.guest(2)
    tx = await begin(guest)
    assert await end(guest, tx, verdict) == "EINVAL"
    assert await end(other, tx) == "ENOENT", "it is somebody else's"
    assert await end(guest, 0) == "ENOENT"
    assert await end(guest, tx, b"F\0") == OK


async def test_j7_what_was_not_committed_is_never_seen(world: World) -> None:
    guest = await world.guest(1)
    tx = await begin(guest)
    await guest.ask(abi.XS_WRITE, b"data/x\0secret", tx)
    await guest.leave()
    if world.kind == "ring":
        await world.store.disconnect(1)
    await world.until(lambda: world.domain(1).transactions == 0)
    assert not world.store.exists("/local/domain/1/data/x")


async def test_k1_k10_the_first_event_says_the_path_as_it_was_asked_for(world: World) -> None:
    guest = await world.guest(1)
    for path, token in ((b"data", b"t"), (b"/local/domain/1/data", b"u"), (b"none/at/all", b"t")):
        assert await guest.ask(abi.XS_WATCH, path + b"\0" + token + b"\0") == OK
        assert await guest.event() == (path.decode(), token.decode())
    assert await no_event(guest)
    await guest.ask(abi.XS_WRITE, b"data/x\0")
    assert [await guest.event(), await guest.event()] == [("data/x", "t"), ("/local/domain/1/data/x", "u")]


async def test_k2_what_one_may_not_read_is_not_heard_of(world: World) -> None:
    guest = await world.guest(1)
    world.own.write("/secret/a", "")
    assert await guest.ask(abi.XS_WATCH, b"/secret\0t\0") == OK
    assert await guest.event() == ("/secret", "t")
    world.own.write("/secret/a", "1")
    assert await no_event(guest)
    world.own.set_perms("/secret/a", ["n0", "r1"])
    assert await guest.event() == ("/secret/a", "t"), "the right was gained"
    world.own.set_perms("/secret/a", ["n0"])
    assert await guest.event() == ("/secret/a", "t"), "and lost"
    world.own.remove("/secret/a")
    assert await no_event(guest)


async def test_k4_k5_the_same_twice_and_one_that_is_none(world: World) -> None:
    guest, other = await world.guest(1), await world.guest(2)
    assert await guest.ask(abi.XS_WATCH, b"data\0t\0") == OK
    assert await guest.ask(abi.XS_WATCH, b"data\0t\0") == "EEXIST"
    assert await guest.ask(abi.XS_WATCH, b"data\0u\0") == OK
    for wrong in (b"data\0v\0", b"dat\0t\0"):
        assert await guest.ask(abi.XS_UNWATCH, wrong) == "ENOENT"
    assert await other.ask(abi.XS_UNWATCH, b"/local/domain/1/data\0t\0") == "ENOENT"
    assert await guest.ask(abi.XS_UNWATCH, b"data\0t\0") == OK
    assert await guest.ask(abi.XS_UNWATCH, b"data\0t\0") == "ENOENT"


async def test_k6_the_removal_of_a_tree_is_one_event_a_watch(world: World) -> None:
    guest = await world.guest(1)
    for n in range(5):
        await guest.ask(abi.XS_WRITE, b"data/tree/%d\0" % n)
    await guest.ask(abi.XS_WATCH, b"data\0above\0")
    await guest.ask(abi.XS_WATCH, b"data/tree/3\0within\0")
    assert [await guest.event(), await guest.event()]
    assert await guest.ask(abi.XS_RM, b"data/tree\0") == OK
    assert sorted([await guest.event(), await guest.event()]) == [
        ("data/tree", "above"),
        ("data/tree/3", "within"),
    ]
    assert await no_event(guest)


async def test_k7_a_transactions_events_come_with_its_end(world: World) -> None:
    guest = await world.guest(1)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    await guest.event()
    for verdict, heard in ((b"F\0", False), (b"T\0", True)):
        tx = await begin(guest)
        await guest.ask(abi.XS_WRITE, b"data/x\0x", tx)
        assert await no_event(guest)
        assert await end(guest, tx, verdict) == OK
        if heard:
            assert await guest.event() == ("data/x", "t")
        assert await no_event(guest)


async def test_k11_domains_that_come_and_go_are_domain_0s_affair(world: World) -> None:
    guest = await world.guest(1)
    for name in (b"@introduceDomain", b"@releaseDomain", b"@introduceDomain/2"):
        assert await guest.ask(abi.XS_WATCH, name + b"\0t\0") == OK
        await guest.event()
    await world.guest(2)
    world.ask0(abi.XS_RELEASE, b"2\0")
    assert await no_event(guest)
    if world.kind == "ring":
        world.ask0(abi.XS_INTRODUCE, b"2\x001\x001\0")
    else:
        world.store.introduce(2)
