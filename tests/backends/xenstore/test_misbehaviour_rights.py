"""Sections H and I of bad guests and clients, each case over a ring and over a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backends.xenstore.transports import OK, World
from xenpvd.abi import io_xs_wire as abi

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["ring", "socket"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = World(request.param, tmp_path)
    await world.guest(2)
    for path, perms in (("/secret/a", ["n0"]), ("/shown", ["r0"]), ("/local/domain/2/data/x", ["n2"])):
        world.own.write(path, "value")
        world.own.set_perms(path, perms)
    yield world
    await world.assert_survived()
    await world.end()


@pytest.mark.parametrize(
    ("path", "may_read"),
    [
        (b"/secret/a", "EACCES"),
        (b"/secret/none", "EACCES"),  # not to be told from one that is there
        (b"/none/at/all", "EACCES"),
        (b"/local/domain/2/data/x", "EACCES"),
        (b"/local/domain/2/data/none", "EACCES"),
        (b"/local/domain/0/backend/vbd/1/51712/state", "EACCES"),
        (b"/shown", b"value"),
        (b"/shown/none", "ENOENT"),
    ],
)
async def test_h1_h7_what_is_not_ones_own(world: World, path: bytes, may_read: bytes | str) -> None:
    guest = await world.guest(1)
    before = world.own.directory("/")
    assert await guest.ask(abi.XS_READ, path + b"\0") == may_read
    listed = await guest.ask(abi.XS_DIRECTORY, path + b"\0")
    assert listed == (b"" if isinstance(may_read, bytes) else may_read)
    for type_, payload in (
        (abi.XS_WRITE, path + b"\0mine"),
        (abi.XS_MKDIR, path + b"/x\0"),
        (abi.XS_RM, path + b"\0"),
        (abi.XS_SET_PERMS, path + b"\0b1\0"),
    ):
        assert await guest.ask(type_, payload) == "EACCES", type_
    assert world.own.directory("/") == before
    assert world.own.read("/secret/a") == b"value"


@pytest.mark.parametrize("node", [b"", b"name", b"domid", b"memory/target", b"console/ring-ref", b"vm"])
async def test_h7_what_a_toolstack_writes_for_a_guest(world: World, node: bytes) -> None:
    guest = await world.guest(1)
    world.own.set_perms("/local/domain/1", ["n0", "r1"])
    if node:
        world.own.write(f"/local/domain/1/{node.decode()}", "theirs")
    path = b"/local/domain/1/" + node if node else b"/local/domain/1"
    assert await guest.ask(abi.XS_WRITE, path + b"\0mine") == "EACCES"
    assert await guest.ask(abi.XS_RM, path + b"\0") == "EACCES"
    assert await guest.ask(abi.XS_SET_PERMS, path + b"\0b1\0") == "EACCES"
    assert await guest.ask(abi.XS_READ, path + b"\0") == (b"theirs" if node else b"")


async def test_h2_ownership_is_not_given_away(world: World) -> None:
    guest = await world.guest(1)
    for perms in (b"n2\0", b"n0\0", b"b2\0b1\0"):
        assert await guest.ask(abi.XS_SET_PERMS, b"data\0" + perms) == "EPERM"
    assert world.own.get_perms("/local/domain/1/data") == ["n1"]
    assert await guest.ask(abi.XS_SET_PERMS, b"data\0r1\0b2\0") == OK


@pytest.mark.parametrize("count", [5, 6, 100])
async def test_h3_too_many_permissions(world: World, count: int) -> None:
    guest = await world.guest(1)
    perms = b"n1\0" + b"".join(b"r%d\0" % n for n in range(2, count + 1))
    assert await guest.ask(abi.XS_SET_PERMS, b"data\0" + perms) == (OK if count <= 5 else "ENOSPC")


@pytest.mark.parametrize("perms", [b"x1", b"n", b"n99999999", b"n-1", b"b1|", b"", b"1", b"N1", b"n+1"])
async def test_h4_permissions_that_are_none(world: World, perms: bytes) -> None:
    guest = await world.guest(1)
    assert await guest.ask(abi.XS_SET_PERMS, b"data\0" + perms + b"\0") == "EINVAL"
    assert await guest.ask(abi.XS_SET_PERMS, b"data\0n1\0" + perms + b"\0") == "EINVAL"
    assert world.own.get_perms("/local/domain/1/data") == ["n1"]


async def test_h5_the_next_domain_of_a_number_inherits_nothing_that_was_removed(world: World) -> None:
    """What a toolstack leaves behind is the next one's; the daemon removes the home (domain.py)."""
    guest = await world.guest(1)
    for n in range(20):
        await guest.ask(abi.XS_WRITE, b"data/%d\0x" % n)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    await guest.ask(abi.XS_TRANSACTION_START, b"\0")
    await guest.leave()
    if world.kind == "ring":
        await world.store.disconnect(1)
        world.rings.pop(1)
    else:
        await world.until(lambda: not world.sockets[1].peers)
    world.own.remove("/local/domain/1")
    domain = world.domain(1)
    assert (domain.nodes, domain.memory, domain.watches, domain.transactions) == (0, 0, 0, 0)
    again = await world.guest(1)
    assert await again.ask(abi.XS_READ, b"data/1\0") == "ENOENT"


async def test_i1_nodes_to_the_limit_and_back(world: World) -> None:
    guest = await world.guest(1)
    world.domain(1).quota.nodes = 50
    for lap in range(20):
        made = 0
        while (answer := await guest.ask(abi.XS_WRITE, b"data/%d/%d\0x" % (made % 7, made))) == OK:
            made += 1
        assert answer == "ENOSPC" and world.domain(1).nodes in (49, 50), lap
        for n in range(7):
            assert await guest.ask(abi.XS_RM, b"data/%d\0" % n) == OK
    assert world.domain(1).nodes <= 2


async def test_i2_watches_to_the_limit_and_back(world: World) -> None:
    guest = await world.guest(1)
    for _ in range(5):
        answers = [await guest.ask(abi.XS_WATCH, b"data\0%d\0" % n) for n in range(131)]
        assert answers == [OK] * 129 + ["E2BIG"] * 2, "xenstored compares before it counts"
        assert await guest.ask(abi.XS_RESET_WATCHES) == OK
        assert world.domain(1).watches == 0


async def test_i3_transactions_to_the_limit_and_left_open(world: World) -> None:
    guest = await world.guest(1)
    answers = [await guest.ask(abi.XS_TRANSACTION_START, b"\0") for _ in range(13)]
    assert answers[-2:] == ["ENOSPC"] * 2 and world.domain(1).transactions == 11


async def test_i5_all_the_memory_that_there_is(world: World) -> None:
    """The largest nodes, in as many transactions as it may have: at its limit it can still end them."""
    guest = await world.guest(1)
    world.own.write("/local/domain/1/data/theirs", "")
    n, value = 0, bytes(2000)
    while world.domain(1).memory < world.domain(1).quota.memory // 2:
        assert await guest.ask(abi.XS_WRITE, b"data/%d/%d\0" % (n % 20, n) + value) == OK
        n += 1
    open_ = []
    for _ in range(11):
        started = await guest.ask(abi.XS_TRANSACTION_START, b"\0")
        assert isinstance(started, bytes)
        open_.append(int(started[:-1]))
        k = 0
        while k < n and await guest.ask(abi.XS_READ, b"data/%d/%d\0" % (k % 20, k), open_[-1]) == value:
            k += 1
    assert world.domain(1).memory <= world.domain(1).quota.memory
    assert await guest.ask(abi.XS_WRITE, b"data/more\0" + value) == "ENOMEM"
    assert await guest.ask(abi.XS_WATCH, b"data\0" + b"t" * 2000 + b"\0") == "ENOMEM"
    world.own.write("/local/domain/1/data/theirs", bytes(2048))  # domain 0 is not refused
    await world.assert_survived()
    for tx in open_:
        assert await guest.ask(abi.XS_TRANSACTION_END, b"F\0", tx) == OK
    assert await guest.ask(abi.XS_WRITE, b"data/0/0\0" + value) == OK
