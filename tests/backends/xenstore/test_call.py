"""Operations as tables: who asks what and what comes back, on a fresh store for each row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.call import call
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.request import State
from xenpvd.backends.xenstore.wire import Message

DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, START, END = range(1, 8)
WRITE, MKDIR, RM, SET_PERMS, WATCH_EVENT, ERROR = range(11, 17)
RESET, PART = abi.XS_RESET_WATCHES, abi.XS_DIRECTORY_PART

OK = b"OK\0"


class World:
    """Two guests' homes as a toolstack makes them, /secret for domain 0 only and /open for all to read."""

    def __init__(self) -> None:
        self.state = State()
        self.connections = [Connection(self.state.domains.of(n)) for n in range(3)]
        for path, perms in (
            (b"/local/domain/1", b"n0\0r1\0"),
            (b"/local/domain/1/name", b"n0\0r1\0"),
            (b"/local/domain/1/data", b"n1\0"),
            (b"/local/domain/2", b"n0\0r2\0"),
            (b"/local/domain/2/data", b"n2\0"),
            (b"/secret/a", b"n0\0"),
            (b"/open", b"r0\0"),
        ):
            self.ask(0, MKDIR, path + b"\0")
            self.ask(0, SET_PERMS, path + b"\0" + perms)
        self.ask(0, WRITE, b"/local/domain/1/name\0web1")

    def all(self, who: int, type_: int, payload: bytes = b"", tx_id: int = 0) -> list[tuple[int, int, bytes]]:
        """(to whom, type, payload) of all that follows."""
        deliveries = list(call(self.state, self.connections[who], Message(type_, 7, tx_id, payload)))
        replies = [m for c, m in deliveries if c.domain.domid == who and m.type != WATCH_EVENT]
        assert len(replies) == 1
        assert replies[0][1:3] == (7, tx_id)
        assert replies[0].type in (type_, ERROR)
        return [(c.domain.domid, m.type, m.payload) for c, m in deliveries]

    def ask(self, who: int, type_: int, payload: bytes = b"", tx_id: int = 0) -> bytes | str:
        """The reply's payload, or the error's name as a str."""
        for to, kind, answer in self.all(who, type_, payload, tx_id):
            if to == who and kind != WATCH_EVENT:
                return answer.decode().rstrip("\0") if kind == ERROR else answer
        raise AssertionError("no reply")

    def events(self, who: int, type_: int, payload: bytes = b"", tx_id: int = 0) -> list[tuple[int, bytes]]:
        return [(to, text) for to, kind, text in self.all(who, type_, payload, tx_id) if kind == WATCH_EVENT]


@pytest.fixture
def world() -> World:
    return World()


ROWS = [
    # reading
    (1, READ, b"name\0", b"web1"),
    (1, READ, b"/local/domain/1/name\0", b"web1"),
    (0, READ, b"/local/domain/1/name\0", b"web1"),
    (2, READ, b"/local/domain/1/name\0", "EACCES"),
    (1, READ, b"data\0", b""),
    (1, READ, b"data/no\0", "ENOENT"),
    (1, READ, b"/secret/a\0", "EACCES"),
    (1, READ, b"/secret/no\0", "EACCES"),
    (1, READ, b"/open/no\0", "ENOENT"),
    (0, READ, b"/secret/no\0", "ENOENT"),
    (0, READ, b"/\0", b""),
    (1, READ, b"@introduceDomain\0", "EINVAL"),
    # malformed arguments
    (1, READ, b"", "EINVAL"),
    (1, READ, b"\0", "EINVAL"),
    (1, READ, b"name", "EINVAL"),
    (1, READ, b"name\0\0", "EINVAL"),
    (1, READ, b"na\0me\0", "EINVAL"),
    (1, READ, b"//\0", "EINVAL"),
    (1, READ, b"/local/domain/\0", "EINVAL"),
    (1, READ, b"/a%b\0", "EINVAL"),
    (1, WRITE, b"data/x", "EINVAL"),
    (1, WRITE, b"", "EINVAL"),
    # writing
    (1, WRITE, b"data/x\0value", OK),
    (1, WRITE, b"data/x\0", OK),
    (1, WRITE, b"data/x\0\0\xff\0", OK),
    (1, WRITE, b"data/x\0" + bytes(2048), OK),
    (1, WRITE, b"data/x\0" + bytes(2049), "ENOSPC"),
    (0, WRITE, b"/big\0" + bytes(4000), OK),
    (1, WRITE, b"name\0other", "EACCES"),
    (1, WRITE, b"new\0x", "EACCES"),
    (1, WRITE, b"/open/new\0x", "EACCES"),
    (1, WRITE, b"/local/domain/2/data\0x", "EACCES"),
    (0, WRITE, b"/x/y/z\0v", OK),
    (1, MKDIR, b"data/a/b\0", OK),
    (1, MKDIR, b"data\0", OK),
    (1, MKDIR, b"name\0", "EACCES"),
    (1, MKDIR, b"@x\0", "EINVAL"),
    # removing
    (1, RM, b"data\0", OK),
    (1, RM, b"data/no\0", OK),
    (1, RM, b"data/no/no\0", "ENOENT"),
    (1, RM, b"name\0", "EACCES"),
    (1, RM, b"/\0", "EACCES"),
    (0, RM, b"/\0", "EINVAL"),
    (0, RM, b"/no\0", OK),
    (0, RM, b"/no/no\0", "ENOENT"),
    # listing
    (0, DIRECTORY, b"/\0", b"local\0secret\0open\0"),
    (0, DIRECTORY, b"/local/domain/1\0", b"name\0data\0"),
    (1, DIRECTORY, b"data\0", b""),
    (1, DIRECTORY, b"/secret\0", "EACCES"),
    (1, PART, b"data\0", "EINVAL"),
    (1, PART, b"data\0x\0", "EINVAL"),
    (1, PART, b"data\0-1\0", "EINVAL"),
    (1, PART, b"data\0" + b"9" * 100 + b"\0", "EINVAL"),
    (1, PART, b"data\x000\0x\0", "EINVAL"),
    (1, PART, b"/secret\x000\0", "EACCES"),
    # permissions
    (1, GET_PERMS, b"name\0", b"n0\0r1\0"),
    (1, GET_PERMS, b"/secret\0", "EACCES"),
    (0, GET_PERMS, b"@releaseDomain\0", b"n0\0"),
    (1, GET_PERMS, b"@releaseDomain\0", "EACCES"),
    (0, GET_PERMS, b"@noSuch\0", "ENOENT"),
    (0, SET_PERMS, b"@releaseDomain\0n0\0r1\0", OK),
    (1, SET_PERMS, b"data\0b1\0r2\0w0\0n3\0r4\0", OK),
    (1, SET_PERMS, b"data\0b1\0r2\0w0\0n3\0r4\0r5\0", "ENOSPC"),
    (1, SET_PERMS, b"name\0n0\0b1\0", "EACCES"),
    (1, SET_PERMS, b"data\0n2\0", "EPERM"),
    (1, SET_PERMS, b"data\0n0\0", "EPERM"),
    (0, SET_PERMS, b"/local/domain/1/data\0n2\0", OK),
    (1, SET_PERMS, b"data\0", "EINVAL"),
    (1, SET_PERMS, b"data\0n1", "EINVAL"),
    (1, SET_PERMS, b"", "EINVAL"),
    *(
        (1, SET_PERMS, b"data\0" + bad + b"\0", "EINVAL")
        for bad in (b"x1", b"n", b"n99999999", b"n-1", b"b1|")
    ),
    # watches
    (1, WATCH, b"data\0t\0", OK),
    (1, WATCH, b"/secret\0t\0", OK),
    (1, WATCH, b"@introduceDomain\0t\0", OK),
    (1, WATCH, b"data\0", "EINVAL"),
    (1, WATCH, b"data\0t\x001\0", OK),
    (1, WATCH, b"data\0t\0-1\0", "EINVAL"),
    (1, WATCH, b"data\0t\x001\0x\0", "EINVAL"),
    (1, WATCH, b"a//b\0t\0", "EINVAL"),
    (1, UNWATCH, b"data\0t\0", "ENOENT"),
    (1, UNWATCH, b"data\0", "EINVAL"),
    (1, RESET, b"\0", OK),
    (1, RESET, b"", OK),
    # transactions
    (1, START, b"\0", b"1\0"),
    (1, START, b"", b"1\0"),
    (1, END, b"T\0", "ENOENT"),
    (1, END, b"X\0", "EINVAL"),
    (1, END, b"T", "EINVAL"),
    (1, END, b"", "EINVAL"),
    # what is none
    *((who, type_, b"/\0", "ENOSYS") for type_ in (15, 16, 20, 27, 28, 65535, 2**32 - 1) for who in (0, 1)),
]


@pytest.mark.parametrize(("who", "type_", "payload", "expected"), ROWS)
def test_rows(world: World, who: int, type_: int, payload: bytes, expected: bytes | str):
    assert world.ask(who, type_, payload) == expected


@pytest.mark.parametrize(
    "type_", [READ, WRITE, MKDIR, RM, DIRECTORY, GET_PERMS, SET_PERMS, START, END, RESET, PART]
)
def test_an_unknown_transaction_is_enoent_before_anything_else(world: World, type_: int):
    assert world.ask(1, type_, b"", tx_id=9) == "ENOENT"


@pytest.mark.parametrize("type_", [WATCH, UNWATCH])
def test_watches_ignore_the_transaction(world: World, type_: int):
    assert world.ask(1, type_, b"", tx_id=9) == "EINVAL"


def test_values_are_kept_byte_by_byte(world: World):
    value = bytes(range(256)) * 8
    world.ask(1, WRITE, b"data/x\0" + value)
    assert world.ask(1, READ, b"data/x\0") == value


def test_what_a_guest_creates_is_its_own(world: World):
    world.ask(0, SET_PERMS, b"/open\0b0\0r2\0")
    world.ask(1, WRITE, b"/open/x/y\0v")
    assert world.ask(1, GET_PERMS, b"/open/x\0") == b"b1\0r2\0"
    world.ask(0, WRITE, b"/open/x/z\0v")
    assert world.ask(0, GET_PERMS, b"/open/x/z\0") == b"b1\0r2\0"


def test_mkdir_leaves_values(world: World):
    assert world.ask(0, MKDIR, b"/local/domain/1/name\0") == OK
    assert world.ask(1, READ, b"name\0") == b"web1"


def test_long_directories_come_in_parts(world: World):
    names = [f"{'n' * 60}{i}" for i in range(200)]
    for name in names:
        world.ask(0, MKDIR, f"/open/{name}\0".encode())
    assert world.ask(1, DIRECTORY, b"/open\0") == "E2BIG"
    got, generations = b"", set()
    while not got.endswith(b"\0\0"):
        reply = world.ask(1, PART, b"/open\0%d\0" % len(got))
        assert isinstance(reply, bytes)
        assert len(reply) <= 4096
        generation, _, part = reply.partition(b"\0")
        generations.add(generation)
        got += part
    assert got[:-2].decode().split("\0") == names
    assert len(generations) == 1
    assert world.ask(1, PART, b"/open\x0099999\0") == generations.pop() + b"\0\0"
    world.ask(0, MKDIR, b"/open/more\0")
    assert world.ask(1, PART, b"/open\x0099999\0") != reply


def test_a_watch_is_answered_then_fires_once_with_the_path_as_asked(world: World):
    assert world.all(1, WATCH, b"data\0t\0") == [(1, WATCH, OK), (1, WATCH_EVENT, b"data\0t\0")]
    assert world.all(1, WATCH, b"/no/such\0t\0") == [(1, WATCH, OK), (1, WATCH_EVENT, b"/no/such\0t\0")]
    assert world.all(1, WATCH, b"@releaseDomain\0t\0")[1:] == [(1, WATCH_EVENT, b"@releaseDomain\0t\0")]
    assert world.all(1, WATCH, b"/local/domain/1/data\0t\0") == [(1, ERROR, b"EEXIST\0")]


def test_events_come_before_the_reply_that_caused_them(world: World):
    world.ask(1, WATCH, b"data\0t\0")
    assert world.all(1, WRITE, b"data/x\0v") == [(1, WATCH_EVENT, b"data/x\0t\0"), (1, WRITE, OK)]


def test_unwatch_ends_it(world: World):
    world.ask(1, WATCH, b"data\0t\0")
    assert world.ask(1, UNWATCH, b"/local/domain/1/data\0t\0") == OK
    assert world.events(1, WRITE, b"data/x\0v") == []
    assert world.ask(1, UNWATCH, b"data\0t\0") == "ENOENT"


def test_each_kind_of_change_fires(world: World):
    world.ask(0, WATCH, b"/local/domain/1/data\0t\0")
    event = [(0, b"/local/domain/1/data/x\0t\0")]
    assert world.events(1, MKDIR, b"data/x\0") == event
    assert world.events(1, MKDIR, b"data/x\0") == []
    assert world.events(1, WRITE, b"data/x\0") == event
    assert world.events(1, SET_PERMS, b"data/x\0n1\0") == event
    assert world.events(1, RM, b"data/x\0") == event
    assert world.events(1, RM, b"data/x\0") == []
    assert world.events(1, READ, b"data\0") == []


def test_creation_fires_for_the_deepest_only(world: World):
    world.ask(0, WATCH, b"/\0t\0")
    assert world.events(0, WRITE, b"/p/q/r\0v") == [(0, b"/p/q/r\0t\0")]


def test_removal_of_a_tree_fires_each_watch_once_by_its_own_path(world: World):
    for path in (b"data/a/b", b"data/a/c"):
        world.ask(1, MKDIR, path + b"\0")
    for path in (b"data", b"data/a", b"data/a/b", b"data/a/b/never"):
        world.ask(1, WATCH, path + b"\0t\0")
    assert world.events(1, RM, b"data/a\0") == [
        (1, b"data/a/b\0t\0"),
        (1, b"data/a\0t\0"),
        (1, b"data/a\0t\0"),
    ]


def test_no_events_of_what_one_may_not_read(world: World):
    for path in (b"/", b"/secret", b"/local/domain/1"):
        world.ask(2, WATCH, path + b"\0t\0")
    assert world.events(0, WRITE, b"/secret/a\0v") == []
    assert world.events(1, WRITE, b"data/x\0v") == []
    assert world.events(0, RM, b"/secret\0") == []


def test_the_loss_and_the_gain_of_the_right_to_read_are_told(world: World):
    world.ask(2, WATCH, b"/local/domain/1/data\0t\0")
    event = [(2, b"/local/domain/1/data\0t\0")]
    assert world.events(1, SET_PERMS, b"data\0n1\0r2\0") == event
    assert world.events(1, SET_PERMS, b"data\0n1\0") == event
    assert world.events(1, SET_PERMS, b"data\0w1\0") == []


def test_special_events_need_the_right_to_read_them(world: World):
    world.ask(0, WATCH, b"@introduceDomain\0t\0")
    world.ask(1, WATCH, b"@introduceDomain\0t\0")
    assert [c.domain.domid for c, _ in world.state.special("@introduceDomain", 5)] == [0]
    world.ask(0, SET_PERMS, b"@introduceDomain\0n0\0r1\0")
    assert [c.domain.domid for c, _ in world.state.special("@introduceDomain", 5)] == [0, 1]


def test_a_transaction_commits_with_its_events(world: World):
    world.ask(0, WATCH, b"/local/domain/1/data\0t\0")
    assert world.ask(1, START, b"\0") == b"1\0"
    assert world.events(1, WRITE, b"data/x\0v", tx_id=1) == []
    assert world.events(1, WRITE, b"data/y\0v", tx_id=1) == []
    assert world.events(1, WRITE, b"data/x\0w", tx_id=1) == []
    assert world.ask(1, READ, b"data/x\0", tx_id=1) == b"w"
    assert world.ask(1, READ, b"data/x\0") == "ENOENT"
    assert world.events(1, END, b"T\0", tx_id=1) == [
        (0, b"/local/domain/1/data/x\0t\0"),
        (0, b"/local/domain/1/data/y\0t\0"),
    ]
    assert world.ask(1, READ, b"data/x\0") == b"w"
    assert world.ask(1, END, b"T\0", tx_id=1) == "ENOENT"


def test_a_removal_in_a_transaction_is_told_to_those_who_could_read(world: World):
    world.ask(1, WRITE, b"data/x/y\0v")
    for who, path in ((0, b"/local/domain/1/data/x/y"), (1, b"data/x"), (2, b"/")):
        world.ask(who, WATCH, path + b"\0t\0")
    world.ask(1, START, b"\0")
    world.ask(1, RM, b"data/x\0", tx_id=1)
    assert world.events(1, END, b"T\0", tx_id=1) == [
        (1, b"data/x\0t\0"),
        (0, b"/local/domain/1/data/x/y\0t\0"),
    ]


def test_a_discarded_transaction_leaves_nothing(world: World):
    world.ask(1, START, b"\0")
    world.ask(1, WRITE, b"data/x\0v", tx_id=1)
    assert world.ask(1, END, b"X\0", tx_id=1) == "EINVAL"
    assert world.all(1, END, b"F\0", tx_id=1) == [(1, END, OK)]
    assert world.ask(1, READ, b"data/x\0") == "ENOENT"


def test_a_conflict_is_eagain_and_ends_the_transaction(world: World):
    world.ask(1, START, b"\0")
    world.ask(1, READ, b"name\0", tx_id=1)
    world.ask(1, WRITE, b"data/x\0v", tx_id=1)
    world.ask(0, WRITE, b"/local/domain/1/name\0web1")
    assert world.ask(1, END, b"T\0", tx_id=1) == "EAGAIN"
    assert world.ask(1, END, b"T\0", tx_id=1) == "ENOENT"
    assert world.ask(1, READ, b"data/x\0") == "ENOENT"


def test_a_write_elsewhere_is_no_conflict(world: World):
    world.ask(1, START, b"\0")
    world.ask(1, WRITE, b"data/x\0v", tx_id=1)
    world.ask(0, WRITE, b"/local/domain/1/name\0other")
    assert world.ask(1, END, b"T\0", tx_id=1) == OK


def test_transactions_do_not_nest_nor_cross(world: World):
    world.ask(1, START, b"\0")
    assert world.ask(1, START, b"\0", tx_id=1) == "EBUSY"
    assert world.ask(2, READ, b"/open\0", tx_id=1) == "ENOENT"


def test_reset_within_a_transaction(world: World):
    world.ask(1, WATCH, b"data\0t\0")
    world.ask(1, START, b"\0")
    assert world.ask(1, RESET, b"\0", tx_id=1) == OK
    assert world.ask(1, READ, b"data\0", tx_id=1) == "ENOENT"
    assert world.events(1, WRITE, b"data\0v") == []


def test_quotas_as_xenstored_counts(world: World):
    def accepted(type_: int, payloads) -> tuple[int, bytes | str]:
        for n, payload in enumerate(payloads):
            reply = world.ask(1, type_, payload)
            if isinstance(reply, str):
                return n, reply
        raise AssertionError("no limit")

    assert accepted(WATCH, (b"data\0%d\0" % n for n in range(200))) == (129, "E2BIG")
    assert accepted(START, (b"\0" for n in range(20))) == (11, "ENOSPC")
    deep = (b"data/%d/%d\0" % (n % 30, n) for n in range(2000))
    assert accepted(MKDIR, deep)[1] == "ENOSPC"
    assert world.state.store.owned(1) == 1000
    world.ask(1, RM, b"data\0")
    assert world.state.store.owned(1) == 0


@given(st.sampled_from(range(28)), st.binary(max_size=40), st.sampled_from([0, 0, 1]))
def test_no_request_does_more_than_answer(type_: int, payload: bytes, tx_id: int):
    world = World()
    world.ask(1, START, b"\0")
    for form in (payload, payload + b"\0", b"data\0" + payload, b"data/x\0" + payload + b"\0"):
        reply = world.ask(1, type_, form, tx_id)
        assert isinstance(reply, bytes) or reply in abi.XSD_ERRORS.values()
    assert world.ask(0, DIRECTORY, b"/\0") == b"local\0secret\0open\0"
