"""Section J of bad guests: which transactions conflict, many at once, and who gets on. The rest of J is in
test_misbehaviour_changes.py. Answers are those of Xen's xenstored 4.17 and 4.20, asked the same."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.backends.xenstore.model import Answer, Tree
from tests.backends.xenstore.survival import Survivors, begin, commit
from tests.backends.xenstore.transports import OK, Guest
from xenpvd.abi import io_xs_wire as abi

HOME = "/local/domain/1"


@pytest.fixture(params=["ring", "socket"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Survivors]:
    async with Survivors(request.param, tmp_path) as world:
        await world.guest(2)
        yield world


#: what somebody else does while a transaction is open; x and y are there, new is not
OUTSIDE = [
    (abi.XS_WRITE, b"/x\0other"),
    (abi.XS_WRITE, b"/y\0other"),
    (abi.XS_WRITE, b"/new\0other"),
    (abi.XS_RM, b"/x\0"),
    (abi.XS_WRITE, b"\0other"),
    (abi.XS_SET_PERMS, b"/x\0n1\0r2\0"),
    (abi.XS_WRITE, b"/x/below\0other"),
]


@pytest.mark.parametrize(
    ("name", "type_", "payload", "conflicts"),
    [
        ("read", abi.XS_READ, b"data/x\0", "X..X.XX"),
        ("read-missing", abi.XS_READ, b"data/new\0", "..XXX.."),
        ("read-missing-below-missing", abi.XS_READ, b"data/new/deep\0", "..XXX.."),
        ("read-above", abi.XS_READ, b"data\0", "..XXX.."),
        ("list", abi.XS_DIRECTORY, b"data\0", "..XXX.."),
        ("get-perms", abi.XS_GET_PERMS, b"data/x\0", "X..X.XX"),
        ("write", abi.XS_WRITE, b"data/x\0mine", "X..X.XX"),
        ("create", abi.XS_WRITE, b"data/new\0mine", "..XXX.."),
        ("mkdir", abi.XS_MKDIR, b"data/x\0", "X..X.XX"),
        ("mkdir-missing", abi.XS_MKDIR, b"data/new\0", "..XXX.."),
        ("remove", abi.XS_RM, b"data/x\0", "X.XXXXX"),
        ("remove-missing", abi.XS_RM, b"data/new\0", "..XXX.."),
        ("set-perms", abi.XS_SET_PERMS, b"data/x\0n1\0", "X..X.XX"),
    ],
)
async def test_j1_what_conflicts_with_what(
    world: Survivors, name: str, type_: int, payload: bytes, conflicts: str
) -> None:
    """X: EAGAIN, and nothing has happened; else both have."""
    guest, tool = await world.guest(1), await world.tool()
    found = ""
    for other, rest in OUTSIDE:
        for node in (b"data/x", b"data/new"):
            await guest.ask(abi.XS_RM, node + b"\0")
        for node in (b"data\0", b"data/x\0old", b"data/y\0old"):
            await guest.ask(abi.XS_WRITE, node)
        tx = await begin(guest)
        await guest.ask(type_, payload, tx)
        assert await tool.ask(other, f"{HOME}/data".encode() + rest) == OK
        outside = list(world.store.tree(f"{HOME}/data"))
        verdict = await commit(guest, tx)
        assert verdict in (OK, "EAGAIN")
        found += "." if verdict == OK else "X"
        if verdict == "EAGAIN":
            assert list(world.store.tree(f"{HOME}/data")) == outside
    assert found == conflicts


async def test_j3_two_that_fit_alone_and_not_together(world: Survivors) -> None:
    """The quota is looked at again when it counts, and the second one leaves nothing."""
    guest = await world.guest(1)
    for node in (b"data/p\0", b"data/q\0"):
        assert await guest.ask(abi.XS_MKDIR, node) == OK
    world.domain(1).quota.nodes = 6
    first, second = await begin(guest), await begin(guest)
    for tx, node in ((first, b"p"), (second, b"q")):
        for n in range(2):
            assert await guest.ask(abi.XS_WRITE, b"data/%s/%d\0x" % (node, n), tx) == OK
    assert await commit(guest, first) == OK
    assert await commit(guest, second) == "ENOSPC"
    assert world.own.directory(f"{HOME}/data/q") == [] and world.domain(1).nodes == 5


async def test_j3_the_error_of_a_transaction_with_too_many_nodes(world: Survivors) -> None:
    guest = await world.guest(1)
    world.domain(1).quota.nodes = 3
    tx = await begin(guest)
    answers = [await guest.ask(abi.XS_WRITE, b"data/%d\0x" % n, tx) for n in range(3)]
    assert answers == [OK, OK, "ENOSPC"]
    assert await commit(guest, tx) == "ENOSPC"


# ---- J6: against the model of test_model.py


OPERATIONS = {
    "read": abi.XS_READ,
    "directory": abi.XS_DIRECTORY,
    "get_perms": abi.XS_GET_PERMS,
    "write": abi.XS_WRITE,
    "mkdir": abi.XS_MKDIR,
    "remove": abi.XS_RM,
    "set_perms": abi.XS_SET_PERMS,
}
ROOTS = (f"{HOME}/data", "/local/domain/2/data", "/both")


@dataclass
class Open:
    """A transaction, and what it was answered."""

    who: int
    tx: int
    began: int
    done: list[tuple[str, str, bytes, Answer]] = field(default_factory=list)

    def touched(self, path: str) -> bool:
        """Has it looked at anything above, at or below ``path``?"""
        mine = [each for _, each, _, _ in self.done]
        return any(f"{path}/".startswith(f"{each}/") or f"{each}/".startswith(f"{path}/") for each in mine)


class Interleaved:
    """Random operations of two guests and a tool, plain and in ten transactions, and the model of them."""

    def __init__(self, clients: dict[int, Guest], seed: int) -> None:
        self.clients = clients
        self.random = random.Random(seed)
        self.tree = Tree()
        self.changed: list[str] = []
        self.open: list[Open] = []
        self.ends = {OK: 0, "EAGAIN": 0}
        for path, perms in ((HOME, b"n0\0r1\0"), ("/local/domain/2", b"n0\0r2\0"), ("/both", b"b0\0")):
            self.tree.do("mkdir", path, b"", 0, None)
            self.tree.do("set_perms", path, perms, 0, None)
        for domid in (1, 2):
            self.tree.do("mkdir", ROOTS[domid - 1], b"", 0, None)
            self.tree.do("set_perms", ROOTS[domid - 1], b"n%d\0" % domid, 0, None)

    def pick(self) -> tuple[str, str, bytes]:
        choose = self.random.choice
        path = choose(ROOTS) + choose(("", "/a", "/b", "/a/a", "/a/b", "/b/c/d"))
        operation = choose(("read", "read", "write", "write", *OPERATIONS))
        if operation == "remove" and path in ROOTS:
            operation = "directory"
        perms = choose((b"n1\0", b"n2\0r1\0", b"b0\0", b"r2\0b1\0", b"n1\0b2\0"))
        value = {"write": b"%d" % self.random.randrange(10), "set_perms": perms}
        return operation, path, value.get(operation, b"")

    async def ask(self, who: int, operation: str, path: str, rest: bytes, tx: int) -> Answer:
        answer = await self.clients[who].ask(OPERATIONS[operation], path.encode() + b"\0" + rest, tx)
        return in_order(answer) if operation == "directory" else answer

    def do(self, who: int, operation: str, path: str, rest: bytes) -> Answer:
        """In the model."""
        before = self.tree.changes
        answer = self.tree.do(operation, path, rest, who, None)
        if self.tree.changes > before:
            self.changed.append(path)
        return answer

    async def step(self) -> None:
        dice = self.random.random()
        if dice < 0.1 and len(self.open) < 10:
            who = self.random.choice((0, 1, 2))
            self.open.append(Open(who, await begin(self.clients[who]), len(self.changed)))
        elif dice < 0.2 and self.open:
            await self.finish(self.open.pop(self.random.randrange(len(self.open))))
        elif self.open and self.random.random() < 0.8:
            mine = self.random.choice(self.open)
            what = self.pick()
            mine.done.append((*what, await self.ask(mine.who, *what, mine.tx)))
        else:
            who, what = self.random.choice((0, 1, 2)), self.pick()
            assert await self.ask(who, *what, 0) == self.do(who, *what), (who, what)

    async def finish(self, mine: Open) -> None:
        """Committed, it was as if all of it had been done just now; refused, there was a reason."""
        verdict = await commit(self.clients[mine.who], mine.tx)
        assert isinstance(verdict, str | bytes)
        self.ends[verdict] += 1
        if verdict == OK:
            for operation, path, rest, answer in mine.done:
                assert self.do(mine.who, operation, path, rest) == answer, (operation, path, rest)
        else:
            assert any(mine.touched(path) for path in self.changed[mine.began :]), mine


def in_order(names: Answer) -> Answer:
    return (
        b"".join(sorted(name + b"\0" for name in names.split(b"\0")[:-1]))
        if isinstance(names, bytes)
        else names
    )


@pytest.mark.parametrize("seed", range(3))
async def test_j6_ten_transactions_interleaved(world: Survivors, seed: int) -> None:
    clients = {0: await world.tool(), 1: await world.guest(1), 2: await world.guest(2)}
    world.own.mkdir("/both")
    world.own.set_perms("/both", ["b0"])
    rig = Interleaved(clients, seed)
    for _ in range(700):
        await rig.step()
    while rig.open:
        await rig.finish(rig.open.pop())
    assert min(rig.ends.values()) > 5, "both ends were seen"
    for root in ROOTS:
        mine = {node.path: (node.value.encode(), list(node.perms)) for node in world.store.tree(root)}
        theirs = {
            path: (node.value, [f"{letter}{domid}" for letter, domid in node.perms])
            for path, node in rig.tree.nodes.items()
            if f"{path}/".startswith(f"{root}/")
        }
        assert mine == theirs


# ---- J8: who gets on

#: seconds; the case says 5. Xen's xenstored slows down who writes while others have transactions, and lets
#: these wait for 0.4 at most
PATIENCE = 0.5


async def increment(client: Guest, reads: int) -> bool:
    """A transaction that reads a counter, and other things meanwhile, and counts on. Has it come about?"""
    tx = await begin(client)
    value = await client.ask(abi.XS_READ, b"/both/n\0", tx)
    assert isinstance(value, bytes)
    for _ in range(reads):
        await client.ask(abi.XS_READ, b"/both\0", tx)
    assert await client.ask(abi.XS_WRITE, b"/both/n\0%d" % (int(value) + 1), tx) == OK
    verdict = await commit(client, tx)
    assert verdict in (OK, "EAGAIN")
    return verdict == OK


@pytest.fixture
async def shared(world: Survivors) -> Survivors:
    for path, value in (("/both", ""), ("/both/n", "0")):
        world.own.write(path, value)
        world.own.set_perms(path, ["b0"])
    return world


@pytest.mark.parametrize(("rival", "who"), [("writes", "guest"), ("counts", "guest"), ("writes", "tool")])
async def test_j8_nobody_starves(shared: Survivors, rival: str, who: str) -> None:
    """One counts by long transactions; a guest in a loop of its own does so by short ones, or just writes."""
    other = await shared.guest(1)
    client = await shared.guest(2) if who == "guest" else await shared.tool()
    over = asyncio.Event()

    async def hurry() -> None:
        while not over.is_set():
            if rival == "counts":
                await increment(other, 1)
            else:
                assert await other.ask(abi.XS_WRITE, b"/both/n\x000") == OK

    async def get_on() -> int:
        rounds, end = 0, time.monotonic() + PATIENCE
        counted = False
        while not counted and time.monotonic() < end:
            counted, rounds = await increment(client, 8), rounds + 1
        over.set()
        assert rounds > 10 or counted, "it was not tried"
        return counted

    _, counted = await asyncio.gather(hurry(), get_on())
    assert counted
