"""Section K of bad guests: who hears of what, in which order, and how much waits for whom. The rest of K is
in test_misbehaviour_changes.py. Answers are those of Xen's xenstored 4.17 and 4.20, asked the same."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backends.xenstore.survival import Survivors, begin, commit, heard, post
from tests.backends.xenstore.transports import OK, Guest, RingGuest, message
from tests.fakes.xenstore_frontend import RING
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.client import WAITING

SP, W, RM = abi.XS_SET_PERMS, abi.XS_WRITE, abi.XS_RM


@pytest.fixture(params=["ring", "socket"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Survivors]:
    async with Survivors(request.param, tmp_path) as world:
        await world.guest(2)
        yield world


async def watch(guest: Guest, *watches: tuple[str, str]) -> None:
    for path, token in watches:
        assert await guest.ask(abi.XS_WATCH, f"{path}\0{token}\0".encode()) == OK
    guest.events.clear()
    await heard(guest)


#: what domain 0 does, one after the other, and by which tokens a guest hears of it, that watches /secret and
#: /secret/a
RIGHTS = [
    (W, "/secret/a", "1", ""),
    (SP, "/secret/a", "n0 r1", "sa"),  # the right is gained
    (W, "/secret/a", "2", "sa"),
    (SP, "/secret/a", "n0", "sa"),  # and lost
    (SP, "/secret/a", "n0 w1", ""),
    (RM, "/secret/a", "", ""),
    (W, "/secret/a", "", ""),
    (SP, "/secret", "n0 r1", "s"),
    (W, "/secret/a", "3", "sa"),  # who may list it may hear of it
    (W, "/secret/a/b/c", "4", ""),
    (RM, "/secret/a/b", "", ""),
    (SP, "/secret/a", "n0 r1", "sa"),
    (SP, "/secret", "n0", "s"),
    (RM, "/secret/a", "", "sa"),  # it was readable
    (W, "/secret/z", "", ""),
    (SP, "/secret/z", "n1", "s"),
    (RM, "/secret/z", "", "s"),
    (W, "/secret/a/x", "", ""),
    (SP, "/secret/a/x", "r0", "sa"),
    (RM, "/secret", "", ""),
]


@pytest.mark.parametrize("where", ["plain", "transaction"])
async def test_k2_who_may_read_hears(world: Survivors, where: str) -> None:
    guest, tool = await world.guest(1), await world.tool()
    await watch(guest, ("/secret", "s"), ("/secret/a", "a"))
    for type_, path, rest, tokens in RIGHTS:
        tx = await begin(tool) if where == "transaction" else 0
        words = "".join(f"{word}\0" for word in rest.split()) if type_ == SP else rest
        assert await tool.ask(type_, f"{path}\0{words}".encode(), tx) == OK
        if tx:
            assert await heard(guest) == [], "K7"
            assert await commit(tool, tx) == OK
        assert await heard(guest) == [(path, token) for token in tokens], (path, rest)


async def test_k2_what_a_transaction_shows_and_hides_again_was_never_there(world: Survivors) -> None:
    guest, tool = await world.guest(1), await world.tool()
    world.own.write("/secret/q", "")
    await watch(guest, ("/secret", "s"))
    for steps, events in (
        ([(SP, b"/secret/q\0r0\0"), (RM, b"/secret/q\0")], []),
        ([(W, b"/secret/q\0"), (SP, b"/secret/q\0r0\0")], [("/secret/q", "s")]),
        ([(RM, b"/secret/q\0"), (W, b"/secret/q\0new")], [("/secret/q", "s")]),  # readable before
        ([(SP, b"/secret/q\0r0\0"), (SP, b"/secret/q\0n0\0")], []),
    ):
        tx = await begin(tool)
        for type_, payload in steps:
            assert await tool.ask(type_, payload, tx) == OK
        assert await heard(guest) == []
        assert await commit(tool, tx) == OK
        assert await heard(guest) == events, steps


@pytest.mark.parametrize(("name", "fits"), [(b"y" * 88, True), (b"y" * 89, True), (b"y" * 90, False)])
async def test_k3_the_longest_event(world: Survivors, name: bytes, fits: bool) -> None:
    """4096 bytes of payload: the path, the token, and a NUL behind each. What is longer is not sent."""
    guest = await world.guest(1)
    token = "t" * 4000
    await watch(guest, ("data", token), ("data", "short"))
    path = b"data/" + name
    for type_, payload in ((W, path + b"\0v"), (RM, path + b"\0")):
        assert await guest.ask(type_, payload) == OK
        assert await heard(guest) == [(path.decode(), t) for t in (token, "short") if fits or t == "short"]


@pytest.mark.parametrize(
    ("steps", "events"),
    [
        (
            [(RM, b"data/tree\0")],
            [("data/tree", "as"), ("data/tree/1", "1"), ("data/tree/3", "3"), ("data/tree/3/deep", "d")],
        ),
        (
            [(RM, b"data/tree/3\0"), (RM, b"data/tree\0"), (W, b"data/tree/3\0")],
            [("data/tree", "as"), ("data/tree/1", "1"), ("data/tree/3", "as3"), ("data/tree/3/deep", "d")],
        ),
        (
            [(W, b"data/tree/3\0x"), (RM, b"data/tree\0")],
            [("data/tree", "as"), ("data/tree/1", "1"), ("data/tree/3", "as3"), ("data/tree/3/deep", "d")],
        ),
        ([(W, b"data/p/q/r\0"), (RM, b"data/p\0")], []),  # nobody could read it, before or after
        ([(W, b"data/p/q/r\0"), (W, b"data/p\0x")], [("data/p", "a"), ("data/p/q/r", "a")]),
        ([(abi.XS_READ, b"data/tree\0"), (abi.XS_MKDIR, b"data/tree/3\0")], []),
    ],
    ids=["tree", "within-first", "changed-first", "made-and-removed", "twice", "nothing"],
)
async def test_k6_k7_what_a_transaction_has_done_is_told_once(
    world: Survivors, steps: list[tuple[int, bytes]], events: list[tuple[str, str]]
) -> None:
    """Of a node that went with its parent, only who watches that very node hears."""
    guest = await world.guest(1)
    for path in (b"data/tree/1\0", b"data/tree/3/deep\0"):
        assert await guest.ask(W, path) == OK
    watches = {"data": "a", "data/tree": "s", "data/tree/3": "3", "data/tree/3/deep": "d", "data/tree/1": "1"}
    await watch(guest, *watches.items(), ("data/tree/none", "none"))
    tx = await begin(guest)
    for type_, payload in steps:
        assert isinstance(await guest.ask(type_, payload, tx), bytes)
    assert await heard(guest) == []
    assert await commit(guest, tx) == OK
    assert sorted(await heard(guest)) == sorted((path, token) for path, tokens in events for token in tokens)


async def test_k8_a_guest_that_writes_its_state_for_ever(world: Survivors) -> None:
    """It watches its device 129 times and reads nothing; a back end watches, too, and is busy elsewhere.

    An event waits once for each watch of the guest's, a back end's queue is bounded, and a tool that reads
    misses nothing.
    """
    guest, tool = await world.guest(1), await world.tool()
    home = "/local/domain/1/data"
    await watch(guest, *((f"{home}/device", f"{n}") for n in range(129)))
    await watch(tool, (home, "tool"))
    backend = world.own.watch(home)
    for n in range(400):
        world.own.write(f"{home}/device/state", f"{n}")
        await asyncio.sleep(0)
    assert world.unpaid(1) < 129 * 200, "129 watches, and an event for each"
    for n in range(WAITING + 500):
        world.own.write(f"{home}/other/{n}", "")
        world.own.remove(f"{home}/other/{n}")
        if n % 100 == 0:
            await world.settle()
    assert len(backend._paths) <= WAITING
    found = {await anext(backend) for _ in range(len(backend._paths))}
    assert home in found, "it has to look at all again"
    assert {f"{home}/other/{n}" for n in range(WAITING + 500)} <= {path for path, _ in await heard(tool)}
    if isinstance(guest, RingGuest):  # what a socket's kernel takes is no affair of ours
        waiting = await heard(guest)
        assert len(waiting) <= 129 + RING // len(f"{home}/device/state"), "and those in the ring already"
        assert {token for _, token in waiting} == {f"{n}" for n in range(129)}
    backend.close()


async def test_i7_k8_events_that_nobody_will_get_take_no_memory(tmp_path: Path) -> None:
    """A fifth of what a guest may do in one request; of these 25,800 events no more than 1024 are kept.

    On a ring: there they are lost, on a socket its client is cut off.
    """
    async with Survivors("ring", tmp_path) as world:
        await world.guest(2)
        guest = await world.guest(1)
        await watch(guest, *(("data", f"{n}") for n in range(129)))
        tx = await begin(guest)
        for n in range(200):
            assert await guest.ask(W, b"data/%s/%d\0" % (b"x" * 1000, n), tx) == OK
        post(guest, message(abi.XS_TRANSACTION_END, b"T\0", req_id=1, tx_id=tx))
        tracemalloc.start()
        await world.until(lambda: world.domain(1).transactions == 0)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 4 << 20


@pytest.mark.parametrize("kind", ["merged", "not due", "too long"])
async def test_i7_events_that_nobody_hears_cost_next_to_nothing(
    tmp_path: Path, kind: str, no_collection: None
) -> None:
    """128 watches and 600 writes in one commit: 77,000 pairs. On a ring, where equal events are merged."""
    async with Survivors("ring", tmp_path) as world:
        guest = await world.guest(1)
        for n in range(128):
            words = {
                "merged": ["data" + "/a" * n, "same"],
                "not due": ["data", f"{n}", "0"],
                "too long": ["data", f"{n}".ljust(4000, "t")],
            }[kind]
            assert await guest.ask(abi.XS_WATCH, "".join(f"{word}\0" for word in words).encode()) == OK
        tx = await begin(guest)
        for n in range(600):
            assert await guest.ask(W, f"data{'/a' * 128}/{n % 4}/{n}\0".encode(), tx) == OK
        post(guest, message(abi.XS_TRANSACTION_END, b"T\0", req_id=1, tx_id=tx))
        before = time.process_time()
        await world.until(lambda: world.domain(1).transactions == 0)
        assert time.process_time() - before < 0.15


@pytest.mark.parametrize("many", [1, 100])
async def test_k9_events_that_wait_come_before_the_ok_and_none_after(world: Survivors, many: int) -> None:
    guest = await world.guest(1)
    home = "/local/domain/1/data"
    await watch(guest, ("data", "t"), ("data", "other"))
    for n in range(many):
        world.own.write(f"{home}/{n}", "before")
    post(guest, message(abi.XS_UNWATCH, b"data\0t\0", req_id=9))
    await world.settle()
    world.own.write(f"{home}/after", "")
    replies = [await guest.receive() for _ in range(2 * many + 2)]
    at = next(n for n, reply in enumerate(replies) if reply.type == abi.XS_UNWATCH)
    assert replies[at][1:] == (9, 0, OK)
    tokens = [[reply.payload.split(b"\0")[1] for reply in part] for part in (replies[:at], replies[at + 1 :])]
    assert tokens[0].count(b"t") == many and b"t" not in tokens[1]
    assert await heard(guest) == []


async def test_k1_k10_a_watch_says_its_path_as_it_was_given(world: Survivors) -> None:
    guest = await world.guest(1)
    for path, token in (("data", ""), ("data", "t"), ("/local/domain/1/data", "u"), ("@any/1", "v")):
        await guest.send(message(abi.XS_WATCH, f"{path}\0{token}\0".encode()))
        replies = [await guest.receive(), await guest.receive()]
        assert [reply.type for reply in replies] == [abi.XS_WATCH, abi.XS_WATCH_EVENT], "in this order"
        assert replies[1] == (abi.XS_WATCH_EVENT, 0, 0, f"{path}\0{token}\0".encode())
    assert await guest.ask(abi.XS_UNWATCH, b"/local/domain/1/data\0t\0") == OK, "by its other name"
    assert await guest.ask(W, b"data/x\0") == OK
    assert await heard(guest) == [("data/x", ""), ("/local/domain/1/data/x", "u")]
