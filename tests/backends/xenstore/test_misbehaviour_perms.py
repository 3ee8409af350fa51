"""Section H of bad guests: who may do what, and what is left of a domain that is gone. The rest of H is in
test_misbehaviour_rights.py; H8 is the devices' affair (tests/backends/blkif, test_device.py).

Answers are those of Xen's xenstored 4.17 and 4.20, asked the same by a guest on its ring.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backends.xenstore.survival import Survivors, begin, commit, heard
from tests.backends.xenstore.transports import OK
from xenpvd.abi import io_xs_wire as abi

#: nodes of others, with their perms
THEIRS = {
    "/secret": ["n0"],
    "/secret/a": ["n0"],
    "/shown": ["r0"],
    "/wo": ["w0"],
    "/ro": ["r0"],
    "/ro/wo": ["w0"],
    "/bo": ["b0"],
    "/bo/n": ["n0"],
    "/local/domain/2/data/x": ["n2"],
    "/first": ["n0", "r1", "b1"],  # the first entry that names it counts
    "/not": ["b0", "n1"],
}


@pytest.fixture(params=["ring", "socket"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Survivors]:
    async with Survivors(request.param, tmp_path) as world:
        await world.guest(2)
        for path, perms in THEIRS.items():
            world.own.write(path, "value")
            world.own.set_perms(path, perms)
        yield world


# READ, DIRECTORY, GET_PERMS and DIRECTORY_PART; SET_PERMS; WRITE, MKDIR and RM: - EACCES, ? ENOENT, + done
@pytest.mark.parametrize("where", ["plain", "transaction"])
@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("/secret/a", "---- - ---"),
        ("/secret/none", "---- - ---"),
        ("/none/at/all", "---- - ---"),
        ("/local/domain/2/data/x", "---- - ---"),
        ("/local/domain/2/data/none", "---- - ---"),
        ("/shown", "++++ - ---"),
        ("/shown/none/x", "???? - ---"),
        ("/wo", "---- - +++"),
        ("/wo/none", "---- ? +++"),
        ("/ro/wo", "---- - +++"),
        ("/ro/wo/none", "---- ? +++"),
        ("/ro/none", "???? - ---"),
        ("/bo/n", "---- - ---"),
        ("/bo/n/none", "---- - ---"),
        ("/bo/none", "???? ? +++"),
        ("/first", "++++ - ---"),
        ("/not", "---- - ---"),
        ("/", "---- - ---"),
        ("/local", "---- - ---"),
        ("/local/domain/1", "++++ - ---"),
    ],
)
async def test_h1_rights_on_what_is_not_ones_own(world: Survivors, path: str, may: str, where: str) -> None:
    guest = await world.guest(1)
    tx = await begin(guest) if where == "transaction" else 0
    requests = [
        (abi.XS_READ, b""),
        (abi.XS_DIRECTORY, b""),
        (abi.XS_GET_PERMS, b""),
        (abi.XS_DIRECTORY_PART, b"0\0"),
        (abi.XS_SET_PERMS, b"b1\0"),
        (abi.XS_WRITE, b"mine"),
        (abi.XS_MKDIR, b""),
        (abi.XS_RM, b""),
    ]
    answers = [await guest.ask(type_, path.encode() + b"\0" + rest, tx) for type_, rest in requests]
    signs = ["+" if isinstance(a, bytes) else {"EACCES": "-", "ENOENT": "?"}.get(a, a) for a in answers]
    assert signs == list(may.replace(" ", ""))


async def test_h5_a_domains_nodes_go_with_it(world: Survivors) -> None:
    """With all below them, whoever owns that; and it is told."""
    guest = await world.guest(1)
    await guest.ask(abi.XS_WRITE, b"/bo/one/a\0v")
    world.own.write("/bo/one/theirs", "v")
    world.own.set_perms("/bo/one/theirs", ["n0"])
    tool = await world.tool()
    for path in (b"/bo/one", b"/bo/one/theirs", b"/local/domain/1/data"):
        await tool.ask(abi.XS_WATCH, path + b"\0t\0")
    await heard(tool)
    await world.release(1)
    paths = {path for path, _ in await heard(tool)}
    assert world.own.directory("/bo") == ["n"]
    assert world.own.directory("/local/domain/1") == []
    assert {"/bo/one", "/bo/one/theirs", "/local/domain/1/data"} <= paths
    assert (world.domain(1).nodes, world.domain(1).memory) == (0, 0)


@pytest.mark.parametrize("node", ["/bo/n", "/local/domain/2/data/x", "@introduceDomain", "@releaseDomain"])
async def test_h5_h6_nobody_inherits_the_rights_of_a_domain_that_is_gone(world: Survivors, node: str) -> None:
    owner = "n2" if "/2/" in node else "n0"
    world.own.set_perms(node, [owner, "b1"])
    guest = await world.guest(1)
    assert await guest.ask(abi.XS_GET_PERMS, node.encode() + b"\0") == f"{owner}\0b1\0".encode()
    await world.release(1)
    guest = await world.guest(1)
    for type_, rest in ((abi.XS_GET_PERMS, b""), (abi.XS_READ, b""), (abi.XS_WRITE, b"x")):
        if node[0] == "@" and type_ != abi.XS_GET_PERMS:
            continue
        assert await guest.ask(type_, node.encode() + b"\0" + rest) == "EACCES"


async def test_h5_what_a_domain_had_under_way_goes_with_it(world: Survivors) -> None:
    """The next one of its number finds no transaction, no watch and no reply of it."""
    guest = await world.guest(1)
    tx = await begin(guest)
    await guest.ask(abi.XS_WRITE, b"data/x\0old", tx)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    await world.release(1)
    guest = await world.guest(1)
    assert await guest.ask(abi.XS_READ, b"data/x\0", tx) == "ENOENT"
    assert await commit(guest, tx) == "ENOENT"
    assert (world.domain(1).watches, world.domain(1).transactions, world.unpaid(1)) == (0, 0, 0)
    world.own.write("/local/domain/1/data", "1")
    assert await heard(guest) == []


async def test_h5_who_acted_for_a_domain_does_not_for_the_next(world: Survivors) -> None:
    """Stricter than xenstored, where a domain that was released stays as long as another acts for it."""
    guest, tool = await world.guest(1), await world.tool()
    assert await tool.ask(abi.XS_SET_TARGET, b"1\x002\0") == OK
    path = b"/local/domain/2/data/x\0"
    assert await guest.ask(abi.XS_READ, path) == b"value"
    await world.release(2)
    for type_, rest in ((abi.XS_READ, b""), (abi.XS_WRITE, b"x"), (abi.XS_RM, b"")):
        assert await guest.ask(type_, path + rest) == "EACCES"
    assert await guest.ask(abi.XS_WRITE, b"data/x\0own") == OK
