"""Sections F and G of bad guests and clients, each case over a ring and over a socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.backends.xenstore.transports import OK, World, message
from tests.fakes.xenstore_frontend import CONNECTION, REQ_PROD, RSP_CONS
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore import serve
from xenpvd.errors import XenstoreFault

pytestmark = pytest.mark.timeout(60)


async def test_f1_a_header_and_then_silence(world: World) -> None:
    guest = await world.guest(1)
    await guest.send(message(abi.XS_READ, b"data\0")[:16])
    await world.assert_survived()
    await guest.send(b"data\0")
    assert (await guest.receive()).type == abi.XS_READ


@pytest.mark.parametrize("piece", [1, 3, 15, 17])
async def test_f2_pieces(world: World, piece: int) -> None:
    guest = await world.guest(1)
    assert await guest.ask(abi.XS_WRITE, b"data/x\0" + bytes(200), piece=piece) == OK
    assert world.own.read("/local/domain/1/data/x") == bytes(200)


@pytest.mark.parametrize("length", [4097, 1 << 31, (1 << 32) - 1])
async def test_f3_a_length_that_cannot_be(world: World, length: int) -> None:
    guest = await world.guest(1)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    await guest.send(message(abi.XS_READ)[:12] + length.to_bytes(4, "little"))
    assert await guest.cut_off() == abi.XENSTORE_ERROR_PROTO
    await world.until(lambda: world.domain(1).watches == 0)


@pytest.mark.parametrize("type_", [15, 16, 20, 27, 28, 99, 65535, 1 << 31, (1 << 32) - 1])
async def test_f4_a_type_that_is_none(world: World, type_: int) -> None:
    guest = await world.guest(1)
    for payload in (b"", b"data\0", b"data\0x"):
        await guest.send(message(type_, payload, req_id=7, tx_id=3))
        assert await guest.receive() == (abi.XS_ERROR, 7, 3, b"ENOSYS\0")


ON_PATHS = [
    abi.XS_DIRECTORY, abi.XS_READ, abi.XS_GET_PERMS, abi.XS_WATCH, abi.XS_UNWATCH, abi.XS_WRITE, abi.XS_MKDIR,
    abi.XS_RM, abi.XS_SET_PERMS, abi.XS_DIRECTORY_PART,
]  # fmt: skip


@pytest.mark.parametrize("type_", ON_PATHS)
async def test_f5_f6_f7_payloads(world: World, type_: int) -> None:
    """No NUL, too many, nothing but one; and every answer names its request."""
    guest = await world.guest(1)
    payloads = [b"", b"\0", b"data", b"\0data\0", b"data\0data\0data\0data\0"]
    for n, payload in enumerate(payloads):
        if (type_, payload) == (abi.XS_WRITE, b"data\0data\0data\0data\0"):
            continue  # that is a value with NULs in it
        await guest.send(message(type_, payload, req_id=n))
        assert await guest.receive() == (abi.XS_ERROR, n, 0, b"EINVAL\0"), payload
    if type_ not in (abi.XS_WATCH, abi.XS_UNWATCH):  # they belong to no transaction
        await guest.send(message(type_, b"data\0x\0", req_id=9, tx_id=4711))
        assert await guest.receive() == (abi.XS_ERROR, 9, 4711, b"ENOENT\0")


async def test_f8_more_names_than_a_message_holds(world: World) -> None:
    guest = await world.guest(1)
    names = [f"a-rather-long-name-of-a-node-{n}" for n in range(200)]
    world.domain(1).quota.node_size = 1 << 20
    for name in names:
        await guest.ask(abi.XS_MKDIR, f"data/{name}\0".encode())
    assert await guest.ask(abi.XS_DIRECTORY, b"data\0") == "E2BIG"
    found, generation = b"", None
    while True:
        part = await guest.ask(abi.XS_DIRECTORY_PART, b"data\0%d\0" % len(found))
        assert isinstance(part, bytes)
        tag, _, rest = part.partition(b"\0")
        assert generation in (None, tag)
        generation = tag
        if rest.endswith(b"\0\0") or rest == b"\0":
            found += rest[:-1]
            break
        found += rest
    assert found.decode().split("\0")[:-1] == names


async def test_f9_who_asks_and_does_not_read(world: World) -> None:
    """No more than 20 replies wait; the rest comes in order once it reads."""
    guest = await world.guest(1)
    world.own.write("/local/domain/1/big", bytes(1500))
    count = 100 if world.kind == "ring" else 2000
    requests = b"".join(message(abi.XS_READ, b"big\0", req_id=n) for n in range(count))
    sending = None
    if world.kind == "ring":
        requests = requests[guest.put(requests) :]
    else:
        sending, requests = asyncio.gather(guest.send(requests)), b""
    await world.settle()
    assert world.domain(1).outstanding <= 20
    await world.assert_survived()
    await guest.send(requests)
    for n in range(count):
        assert (await guest.receive())[:2] == (abi.XS_READ, n)
    if sending is not None:
        await sending


async def test_f10_a_client_that_has_said_all(world: World) -> None:
    guest = await world.guest(1)
    await guest.send(message(abi.XS_READ, b"data\0"))
    if world.kind == "socket":  # a ring has no such thing
        guest.writer.write_eof()  # type: ignore[union-attr]
    assert (await guest.receive()).type == abi.XS_READ
    if world.kind == "socket":
        assert await guest.cut_off()


async def test_f11_a_client_that_leaves_in_the_middle(world: World) -> None:
    guest = await world.guest(1)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    await guest.ask(abi.XS_TRANSACTION_START, b"\0")
    await guest.send(message(abi.XS_WRITE, b"data/x\0" + bytes(1000))[:500])
    await guest.leave()
    if world.kind == "ring":
        await world.store.disconnect(1)
    await world.until(lambda: world.domain(1).transactions == world.domain(1).watches == 0)
    assert not world.store.exists("/local/domain/1/data/x")


@pytest.mark.parametrize(("index", "value"), [(REQ_PROD, 1025), (REQ_PROD, 1 << 31), (RSP_CONS, 1)])
async def test_f12_indexes_that_cannot_be(tmp_path: Path, index: int, value: int) -> None:
    """A socket has none."""
    world = World("ring", tmp_path)
    guest = await world.guest(1)
    await guest.send(message(abi.XS_READ, b"data\0"))
    guest.page.store32(index, guest.page.load32(index) + value)
    guest.port.guest_kick()
    assert await guest.cut_off() == abi.XENSTORE_ERROR_RINGIDX
    await world.assert_survived()
    await world.end()


async def test_f14_a_page_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """What is parsed is one copy; a socket's bytes are ours already."""
    world = World("ring", tmp_path)
    guest = await world.guest(1)
    whole = message(abi.XS_WRITE, b"data/x\0good", req_id=5)

    def flip() -> None:
        nonlocal fences
        fences += 1
        if fences == 2:  # it has been copied by now
            guest.page.write(12, b"\xff\xff\xff\xff")

    fences = 0
    guest.page.on_fence = flip
    await guest.send(whole)
    assert await guest.receive() == (abi.XS_WRITE, 5, 0, OK)
    assert fences >= 2 and world.own.read("/local/domain/1/data/x") == b"good"
    await world.assert_survived()
    await world.end()


async def test_f15_a_guest_that_connects_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket is closed and opened."""
    monkeypatch.setattr(serve, "PENANCE", 0.0)
    world = World("ring", tmp_path)
    guest = await world.guest(1)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    await guest.ask(abi.XS_TRANSACTION_START, b"\0")
    await guest.send(message(abi.XS_READ)[:12] + b"\xff\xff\xff\xff")
    assert await guest.cut_off() == abi.XENSTORE_ERROR_PROTO
    guest.page.store32(CONNECTION, abi.XENSTORE_RECONNECT)
    guest.port.guest_kick()
    while guest.page.load32(CONNECTION) != abi.XENSTORE_CONNECTED:
        await guest.port.guest_wait()
    guest._in = b""
    assert (world.domain(1).watches, world.domain(1).transactions) == (0, 0)
    assert await guest.ask(abi.XS_READ, b"data\0") == b""
    await world.assert_survived()
    await world.end()


async def test_f16_reset_watches_in_a_transaction(world: World) -> None:
    guest = await world.guest(1)
    await guest.ask(abi.XS_WATCH, b"data\0t\0")
    started = await guest.ask(abi.XS_TRANSACTION_START, b"\0")
    assert isinstance(started, bytes)
    tx = int(started[:-1])
    await guest.ask(abi.XS_WRITE, b"data/x\0new", tx)
    assert await guest.ask(abi.XS_RESET_WATCHES, b"", tx) == OK
    assert await guest.ask(abi.XS_TRANSACTION_END, b"T\0", tx) == "ENOENT"
    assert not world.store.exists("/local/domain/1/data/x")


@pytest.mark.parametrize(
    ("type_", "payload"),
    [
        (abi.XS_INTRODUCE, b"1\x001\x001\0"),
        (abi.XS_RELEASE, b"1\0"),
        (abi.XS_RELEASE, b"2\0"),
        (abi.XS_RESUME, b"1\0"),
        (abi.XS_SET_TARGET, b"1\x002\0"),
        (abi.XS_IS_DOMAIN_INTRODUCED, b"1\0"),
        (abi.XS_CONTROL, b"check\0"),
        (abi.XS_CONTROL, b"quota\0set\0nodes\x00100000\0"),
        (abi.XS_GET_QUOTA, b"nodes\0"),
        (abi.XS_SET_QUOTA, b"nodes\x00100000\0"),
        (abi.XS_SET_FEATURE, b"1\x001\0"),
    ],
)
async def test_f17_f19_what_is_domain_0s(world: World, type_: int, payload: bytes) -> None:
    guest = await world.guest(1)
    assert await guest.ask(type_, payload) == "EACCES"
    assert await guest.ask(type_, b"") == "EACCES"


async def test_f18_a_release_while_its_own_events_go_out(world: World) -> None:
    one, two = await world.guest(1), await world.guest(2)
    for guest in (one, two):
        world.own.set_perms("@releaseDomain", ["r0"])
        await guest.ask(abi.XS_WATCH, b"@releaseDomain\0t\0")
        await guest.event()
    assert world.ask0(abi.XS_RELEASE, b"1\0") == OK
    assert await two.event() == ("@releaseDomain", "t")
    assert world.ask0(abi.XS_RELEASE, b"1\0") == "ENOENT"


PATHS = [
    b"", b".", b"//", b"/a//b", b"/a/", b"data/", b"/a%b", b"\x80", b"/\xff", b"a b", b"/a\n", b"/a\x1b[2J",
    b"/local/domain/", b"@x", b"@introduceDomain/1", b"/@@/", b"a" * 2049, b"/" + b"a" * 3072,
    b"/local/domain/1/" + b"a" * 2049,
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=repr)
async def test_g1_g2_g3_g9_paths_that_are_none(world: World, path: bytes) -> None:
    guest = await world.guest(1)
    for type_, payload in (
        (abi.XS_READ, path + b"\0"),
        (abi.XS_WRITE, path + b"\0value"),
        (abi.XS_MKDIR, path + b"\0"),
        (abi.XS_RM, path + b"\0"),
        (abi.XS_DIRECTORY, path + b"\0"),
    ):
        if path == b"." and type_ != abi.XS_READ:
            continue
        assert await guest.ask(type_, payload) == "EINVAL", (type_, path[:40])


async def test_g3_the_longest_paths(world: World) -> None:
    guest = await world.guest(1)
    longest = b"data/" + b"a" * 2043
    assert await guest.ask(abi.XS_MKDIR, longest + b"\0") == OK
    assert await guest.ask(abi.XS_READ, b"/local/domain/1/" + longest + b"\0") == b""
    assert await guest.ask(abi.XS_RM, longest + b"\0") == OK


async def test_g7_values(world: World) -> None:
    guest = await world.guest(1)
    value = bytes(range(256)) * 8
    assert await guest.ask(abi.XS_WRITE, b"data/x\0" + value) == OK
    assert await guest.ask(abi.XS_READ, b"data/x\0") == value
    assert await guest.ask(abi.XS_WRITE, b"data/x\0" + value + b"!") == "ENOSPC"
    assert await guest.ask(abi.XS_WRITE, b"data/y\0" + value + b"!") == "ENOSPC"
    assert await guest.ask(abi.XS_READ, b"data/x\0") == value
    assert not world.store.exists("/local/domain/1/data/y")


async def test_g8_the_root_stays(world: World) -> None:
    guest = await world.guest(1)
    assert await guest.ask(abi.XS_RM, b"/\0") in ("EACCES", "EINVAL")
    with pytest.raises(XenstoreFault, match="EINVAL"):
        world.own.remove("/")
