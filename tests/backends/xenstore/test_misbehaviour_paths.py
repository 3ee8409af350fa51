"""Section G of bad guests: paths at their limits, and what a large tree costs everybody else. The rest of G
is in test_misbehaviour_wire.py. Answers are those of Xen's xenstored 4.17 and 4.20, asked the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backends.xenstore.survival import Survivors, begin, commit, heard, stall
from tests.backends.xenstore.transports import OK
from xenpvd.abi import io_xs_wire as abi

#: what a request may hold up the others, in seconds
STALL_MAX = 0.25

ALL = [
    (abi.XS_READ, b""),
    (abi.XS_DIRECTORY, b""),
    (abi.XS_DIRECTORY_PART, b"0\0"),
    (abi.XS_GET_PERMS, b""),
    (abi.XS_SET_PERMS, b"n1\0"),
    (abi.XS_WRITE, b"value"),
    (abi.XS_MKDIR, b""),
    (abi.XS_RM, b""),
    (abi.XS_WATCH, b"t\0"),
    (abi.XS_UNWATCH, b"t\0"),
]


@pytest.fixture(params=["ring", "socket"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Survivors]:
    async with Survivors(request.param, tmp_path) as world:
        await world.guest(2)
        yield world


@pytest.mark.parametrize(
    "path",
    [b"", b"//", b"/a//b", b"/a/", b"data/", b"/a%b", b"\x80", b"a b", b"/a\n", b"/local/domain/", b"@/"],
)
async def test_g1_g2_every_operation_knows_what_is_no_path(world: Survivors, path: bytes) -> None:
    guest = await world.guest(1)
    for type_, rest in ALL:
        assert await guest.ask(type_, path + b"\0" + rest) == "EINVAL", type_
    assert world.domain(1).watches == 0


LONG = b"a" * 2048


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        (LONG, True),
        (LONG + b"a", False),
        (b"/local/domain/1/" + LONG, True),
        (b"/local/domain/1/" + LONG + b"a", False),
        (b"/local/domain/2/" + LONG, True),
        (b"/local/domain/00001/" + LONG, True),
        (b"/local/domain/100000/" + LONG[:2027], True),  # no domid: all of it counts, 2048 bytes
        (b"/local/domain/100000/" + LONG[:2028], False),
        (b"/" + LONG[:2047], True),
        (b"/" + LONG, False),
    ],
    ids=lambda value: f"{value[:21].decode()}-{len(value)}" if isinstance(value, bytes) else "",
)
async def test_g3_a_paths_length_counts_without_the_home(world: Survivors, path: bytes, is_one: bool) -> None:
    """None of these nodes exists, and none can be made: its name is longer than a node's names may be."""
    guest = await world.guest(1)
    mine = not path.startswith(b"/") or path.startswith(b"/local/domain/1/")
    expected = ("ENOENT" if mine else "EACCES") if is_one else "EINVAL"
    assert await guest.ask(abi.XS_READ, path + b"\0") == expected
    assert await guest.ask(abi.XS_WRITE, path + b"\0v") == ("EACCES" if is_one else "EINVAL")
    assert await guest.ask(abi.XS_WATCH, path + b"\0t\0") == (OK if is_one else "EINVAL")


async def test_g3_g4_domain_0s_paths(tmp_path: Path) -> None:
    """xenstore.txt: 3072 bytes, though Xen's xenstored takes more from domain 0. Relative ones are below its
    home, as for all."""
    async with Survivors("socket", tmp_path) as world:
        tool = await world.tool()
        assert await tool.ask(abi.XS_WRITE, b"local/x\0v") == OK
        assert await tool.ask(abi.XS_READ, b"/local/domain/0/local/x\0") == b"v"
        assert await tool.ask(abi.XS_RM, b"/local\0") == OK
        longest = b"/" + b"a" * 3071
        assert await tool.ask(abi.XS_MKDIR, longest + b"\0") == OK
        assert await tool.ask(abi.XS_DIRECTORY, b"/\0") == longest[1:] + b"\0"
        assert await tool.ask(abi.XS_RM, longest + b"\0") == OK
        assert await tool.ask(abi.XS_MKDIR, longest + b"a\0") == "EINVAL"


@pytest.mark.parametrize("name", [b"@x", b"@introduceDomain", b"@releaseDomain/2", b"@@", b"@"])
async def test_g9_names_are_no_nodes(world: Survivors, name: bytes) -> None:
    guest = await world.guest(1)
    for type_, rest in ALL:
        named = type_ in (abi.XS_WATCH, abi.XS_UNWATCH, abi.XS_GET_PERMS, abi.XS_SET_PERMS)
        expected = (OK if type_ in (abi.XS_WATCH, abi.XS_UNWATCH) else "EACCES") if named else "EINVAL"
        assert await guest.ask(type_, name + b"\0" + rest) == expected, type_
    assert await guest.ask(abi.XS_WRITE, b"data/" + name.replace(b"/", b"") + b"\0v") == OK, "within a path"


@pytest.mark.parametrize("where", ["plain", "transaction"])
async def test_g5_a_path_deeper_than_the_recursion_limit(world: Survivors, where: str) -> None:
    guest = await world.guest(1)
    deep = b"data" + b"/a" * 1020
    world.domain(1).quota.nodes = 2000
    before = world.domain(1).nodes, world.domain(1).memory
    for path in (b"data", deep, deep + b"/b"):
        assert await guest.ask(abi.XS_WATCH, path + b"\0t\0") == OK
    await heard(guest)
    tx = await begin(guest) if where == "transaction" else 0
    assert await guest.ask(abi.XS_WRITE, deep + b"\0x", tx) == OK
    assert await guest.ask(abi.XS_SET_PERMS, deep + b"\0n1\0r2\0", tx) == OK
    assert await guest.ask(abi.XS_DIRECTORY, deep[:-2] + b"\0", tx) == b"a\0"
    if tx:
        assert await commit(guest, tx) == OK
    assert {path for path, _ in await heard(guest)} == {deep.decode()}
    assert world.ask0(abi.XS_CONTROL, b"check\0") == OK
    assert len(list(world.store.tree("/local/domain/1/data"))) == 1021
    tx = await begin(guest) if where == "transaction" else 0
    assert await guest.ask(abi.XS_RM, b"data/a\0", tx) == OK
    if tx:
        assert await commit(guest, tx) == OK
    assert sorted(await heard(guest)) == [("data/a", "t"), (deep.decode(), "t")]
    assert await guest.ask(abi.XS_RESET_WATCHES) == OK
    assert (world.domain(1).nodes, world.domain(1).memory) == before


async def test_g6_fifty_thousand_nodes_are_removed_and_nobody_waits(
    tmp_path: Path, no_collection: None
) -> None:
    """Domain 0 has a socket only, and who waits is on a ring."""
    async with Survivors("ring", tmp_path) as world:
        guest, tool = await world.guest(1), await world.tool()
        for n in range(50_000):
            world.store._state.store.create(f"/tree/{n % 100}/{n}", b"x", world.domain(0))
        async with stall() as held:
            assert await tool.ask(abi.XS_RM, b"/tree\0") == OK
            assert await guest.ask(abi.XS_READ, b"data\0") == b""
        assert not world.store.exists("/tree") and not world.store.exists("/tree/7/7")
    assert held.seconds <= STALL_MAX


async def test_g6_one_guest_cannot_hold_up_the_others(tmp_path: Path, no_collection: None) -> None:
    """All that a guest may have, in one request: 990 changed nodes, below one another, and 129 watches above.

    On a ring; a socket's guest is cut off in the middle, as more events wait for it than it may have.
    """
    async with Survivors("ring", tmp_path) as world:
        guest, other = await world.guest(1), await world.guest(2)
        assert await guest.ask(abi.XS_MKDIR, b"data" + b"/a" * 990 + b"\0") == OK
        for n in range(129):
            assert await guest.ask(abi.XS_WATCH, b"data\0%d\0" % n) == OK
        tx = await begin(guest)
        for depth in range(1, 991):
            assert await guest.ask(abi.XS_WRITE, b"data" + b"/a" * depth + b"\0x", tx) == OK
        async with stall() as held:
            assert await commit(guest, tx) == OK
            assert await other.ask(abi.XS_READ, b"data\0") == b""
    assert held.seconds <= STALL_MAX
