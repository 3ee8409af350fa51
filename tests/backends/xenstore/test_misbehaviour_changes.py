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


@pytest.mark.parametrize(
    ("inside", "outside", "outcome"),
    [
        ((abi.XS_READ, b"data/x\0"), b"data/x", "EAGAIN"),
        ((abi.XS_READ, b"data/x\0"), b"data/y", OK),
        ((abi.XS_DIRECTORY, b"data\0"), b"data/new", "EAGAIN"),
        ((abi.XS_READ, b"data/new\0"), b"data/new", "EAGAIN"),
        ((abi.XS_WRITE, b"data/x\0mine"), b"data/y", OK),
    ],
)
async def test_j1_conflicts(world: World, inside: tuple[int, bytes], outside: bytes, outcome: object) -> None:
    guest = await world.guest(1)
    for node in (b"data/x\0old", b"data/y\0old"):
        await guest.ask(abi.XS_WRITE, node)
    tx = await begin(guest)
    await guest.ask(*inside, tx)
    world.own.write(f"/local/domain/1/{outside.decode()}", "meanwhile")
    assert await end(guest, tx) == outcome
    assert await end(guest, tx) == "ENOENT", "it is over either way"


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


async def test_j8_of_two_that_conflict_one_gets_on(world: World) -> None:
    one, two = await world.guest(1), await world.guest(2)
    world.own.mkdir("/both")
    world.own.set_perms("/both", ["b0"])
    world.own.write("/both/n", "0")
    done = [0, 0]
    for _ in range(50):
        started = [await begin(one), await begin(two)]
        for guest, tx in zip((one, two), started, strict=True):
            value = await guest.ask(abi.XS_READ, b"/both/n\0", tx)
            assert isinstance(value, bytes)
            await guest.ask(abi.XS_WRITE, b"/both/n\0%d" % (int(value) + 1), tx)
        answers = [await end(one, started[0]), await end(two, started[1])]
        assert answers == [OK, "EAGAIN"]
        done[0] += 1
    assert world.own.read("/both/n") == b"50"


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


async def test_k3_an_event_too_long_for_the_wire(world: World) -> None:
    guest = await world.guest(1)
    token = b"t" * 4080
    assert await guest.ask(abi.XS_WATCH, b"data\0" + token + b"\0") == OK
    assert (await guest.event())[0] == "data"
    await guest.ask(abi.XS_WRITE, b"data/" + b"x" * 100 + b"\0")
    assert await no_event(guest)
    await guest.ask(abi.XS_WRITE, b"data\0x")
    assert (await guest.event())[0] == "data"


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


async def test_k8_the_same_event_again_and_again_is_one(world: World) -> None:
    deaf, writer = await world.guest(1), await world.guest(2)
    world.own.mkdir("/both")
    world.own.set_perms("/both", ["b0"])
    for n in range(100):
        await deaf.ask(abi.XS_WATCH, b"/both\0%d\0" % n)
    deaf.events.clear()
    before = world.domain(1).memory
    for n in range(2000):
        await writer.ask(abi.XS_WRITE, b"/both/state\0%d" % n)
    if world.kind == "ring":  # what a socket takes is the kernel's affair
        assert world.domain(1).memory - before < 100 * 64
    await world.assert_survived()
    seen = [await deaf.event() for _ in range(100)]
    assert {path for path, _ in seen} <= {"/both", "/both/state"}


async def test_k9_a_watch_that_is_gone_is_silent(world: World) -> None:
    guest = await world.guest(1)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    await guest.event()
    world.own.write("/local/domain/1/data/x", "1")
    assert await guest.ask(abi.XS_UNWATCH, b"data\0t\0") == OK
    guest.events.clear()
    world.own.write("/local/domain/1/data/x", "2")
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
