"""Operations on domains: rows of who asks what, with domain 1 on a ring and domain 2 on none."""

from __future__ import annotations

import pytest

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.call import call
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.request import State
from xenpvd.backends.xenstore.wire import Message

OK = b"OK\0"


class FakeRings:
    """Fits ``request.Rings``; the ring is domain 1's."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.printed: list[str] = []

    def reset(self, domid: int) -> bool:
        self.calls.append(("reset", domid))
        return domid == 1

    def release(self, domid: int) -> None:
        self.calls.append(("release", domid))

    def print(self, text: str) -> None:
        self.printed.append(text)


class World:
    def __init__(self) -> None:
        self.rings = FakeRings()
        self.state = State(self.rings)
        self.connections = [Connection(self.state.domains.of(n)) for n in range(3)]
        self.state.introduced |= {1: self.connections[1], 2: None}
        self.events: list[tuple[int, bytes]] = []

    def ask(self, who: int, type_: int, payload: bytes = b"") -> bytes | str:
        """The reply's payload, or the error's name as a str."""
        deliveries = list(call(self.state, self.connections[who], Message(type_, 7, 0, payload)))
        self.events = [(c.domain.domid, m.payload) for c, m in deliveries if m.type == abi.XS_WATCH_EVENT]
        [reply] = [m for _, m in deliveries if m.type != abi.XS_WATCH_EVENT]
        return reply.payload.decode().rstrip("\0") if reply.type == abi.XS_ERROR else reply.payload


@pytest.fixture
def world() -> World:
    return World()


GUESTS = [
    (abi.XS_INTRODUCE, b"1\x001\x001\0"),
    (abi.XS_RELEASE, b"1\0"),
    (abi.XS_RESUME, b"1\0"),
    (abi.XS_SET_TARGET, b"1\x002\0"),
    (abi.XS_IS_DOMAIN_INTRODUCED, b"1\0"),
    (abi.XS_CONTROL, b"help\0"),
    (abi.XS_GET_FEATURE, b"1\0"),
    (abi.XS_SET_FEATURE, b"1\x001\0"),
    (abi.XS_GET_QUOTA, b""),
    (abi.XS_GET_QUOTA, b"nodes\0"),
    (abi.XS_SET_QUOTA, b"nodes\x001\0"),
]


@pytest.mark.parametrize(("type_", "payload"), GUESTS)
def test_not_for_guests(world: World, type_: int, payload: bytes):
    """F17, F19."""
    assert world.ask(1, type_, payload) == "EACCES"
    assert world.rings.calls == []


ROWS = [
    (1, abi.XS_GET_DOMAIN_PATH, b"17\0", b"/local/domain/17\0"),
    (1, abi.XS_GET_DOMAIN_PATH, b"007\0", b"/local/domain/7\0"),
    (1, abi.XS_GET_DOMAIN_PATH, b"65536\0", "EINVAL"),
    (1, abi.XS_GET_DOMAIN_PATH, b"x\0", "EINVAL"),
    (1, abi.XS_GET_DOMAIN_PATH, b"\0", "EINVAL"),
    (0, abi.XS_IS_DOMAIN_INTRODUCED, b"0\0", b"T\0"),
    (0, abi.XS_IS_DOMAIN_INTRODUCED, b"2\0", b"T\0"),
    (0, abi.XS_IS_DOMAIN_INTRODUCED, b"32752\0", b"T\0"),
    (0, abi.XS_IS_DOMAIN_INTRODUCED, b"9\0", b"F\0"),
    *(
        (0, abi.XS_INTRODUCE, payload, "EINVAL")
        for payload in (
            b"9\x001\x001\0",  # not known here
            b"2\x001\x001\0",  # on no ring
            b"0\x001\x001\0",
            b"1\x001\x00-1\0",
            b"1\x001\x00\0",
            b"1\x001\0",
            b"x\x001\x001\0",
            b"",
        )
    ),
    (0, abi.XS_INTRODUCE, b"1\x00-5\x002\0", OK),
    *((0, type_, b"0\0", "EINVAL") for type_ in (abi.XS_RELEASE, abi.XS_RESUME)),
    *((0, type_, b"9\0", "ENOENT") for type_ in (abi.XS_RELEASE, abi.XS_RESUME)),
    *((0, type_, b"", "EINVAL") for type_ in (abi.XS_RELEASE, abi.XS_RESUME, abi.XS_SET_TARGET)),
    (0, abi.XS_RESUME, b"1\0", OK),
    (0, abi.XS_SET_TARGET, b"1\x009\0", "ENOENT"),
    (0, abi.XS_SET_TARGET, b"1\x002\0", OK),
    (0, abi.XS_SET_TARGET, b"1\x000\0", "EINVAL"),
    (1, abi.XS_GET_FEATURE, b"", b"7\0"),
    (0, abi.XS_GET_FEATURE, b"1\0", b"7\0"),
    (0, abi.XS_GET_FEATURE, b"9\0", "ENOENT"),
    (0, abi.XS_GET_FEATURE, b"1\x002\0", "EINVAL"),
    (0, abi.XS_SET_FEATURE, b"1\x007\0", "EBUSY"),
    (0, abi.XS_SET_FEATURE, b"9\x007\0", "ENOENT"),
    (0, abi.XS_SET_FEATURE, b"1\x00x\0", "EINVAL"),
    (0, abi.XS_GET_QUOTA, b"nodes\0", b"1000\0"),
    (0, abi.XS_GET_QUOTA, b"1\x00node-size\0", b"2048\0"),
    (0, abi.XS_GET_QUOTA, b"9\x00nodes\0", "ENOENT"),
    (0, abi.XS_GET_QUOTA, b"0\x00nodes\0", "EINVAL"),
    (0, abi.XS_GET_QUOTA, b"hats\0", "EINVAL"),
    (0, abi.XS_GET_QUOTA, b"1\x00nodes\x00x\0", "EINVAL"),
    (0, abi.XS_SET_QUOTA, b"hats\x001\0", "EINVAL"),
    (0, abi.XS_SET_QUOTA, b"nodes\x00-1\0", "EINVAL"),
    (0, abi.XS_SET_QUOTA, b"nodes\0", "EINVAL"),
]


@pytest.mark.parametrize(("who", "type_", "payload", "expected"), ROWS)
def test_rows(world: World, who: int, type_: int, payload: bytes, expected: bytes | str):
    assert world.ask(who, type_, payload) == expected


def test_a_released_domain_loses_its_watches_and_is_introduced_anew(world: World):
    """F18: also while its own events are on their way."""
    world.ask(1, abi.XS_WATCH, b"@releaseDomain\0mine\0")
    world.ask(0, abi.XS_WATCH, b"@releaseDomain\0r\0")
    world.ask(0, abi.XS_WATCH, b"@introduceDomain\0i\0")
    assert world.ask(0, abi.XS_RELEASE, b"1\0") == OK
    assert world.events == [(0, b"@releaseDomain\0r\0")]
    assert world.rings.calls == [("release", 1)]
    assert world.state.domains.of(1).watches == 0
    assert world.ask(0, abi.XS_IS_DOMAIN_INTRODUCED, b"1\0") == b"F\0"
    assert world.ask(0, abi.XS_RELEASE, b"1\0") == "ENOENT"
    assert world.ask(0, abi.XS_INTRODUCE, b"1\x001\x001\0") == OK
    assert world.events == [(0, b"@introduceDomain\0i\0")]


def test_a_quota_is_everybodys_until_a_domain_has_its_own(world: World):
    assert b"transaction-nodes" in world.ask(0, abi.XS_GET_QUOTA)  # type: ignore[operator]
    world.ask(0, abi.XS_SET_QUOTA, b"1\x00nodes\x005\0")
    world.ask(0, abi.XS_SET_QUOTA, b"nodes\x007\0")
    world.ask(0, abi.XS_SET_QUOTA, b"watches\x000\0")
    answers = [
        [world.ask(0, abi.XS_GET_QUOTA, whose + name) for name in (b"nodes\0", b"watches\0")]
        for whose in (b"", b"1\0", b"2\0")
    ]
    assert answers == [[b"7\0", b"0\0"], [b"5\0", b"0\0"], [b"7\0", b"0\0"]]
    assert world.state.domains.of(3).quota.nodes == 7, "one that comes later"
    assert [world.ask(1, abi.XS_WATCH, b"data\0%d\0" % n) for n in range(200)] == [OK] * 200


def test_who_acts_for_another_domain_has_its_rights_until_either_is_gone(world: World):
    for gone in (b"2\0", b"1\0"):
        world.ask(0, abi.XS_WRITE, b"/theirs\0secret")
        world.ask(0, abi.XS_SET_PERMS, b"/theirs\0n2\0")
        world.ask(0, abi.XS_WRITE, b"/shown\0to 2")
        world.ask(0, abi.XS_SET_PERMS, b"/shown\0n0\0r2\0")
        assert world.ask(1, abi.XS_READ, b"/theirs\0") == "EACCES"
        assert world.ask(0, abi.XS_SET_TARGET, b"1\x002\0") == OK
        assert world.ask(1, abi.XS_READ, b"/theirs\0") == b"secret"
        assert world.ask(1, abi.XS_READ, b"/shown\0") == b"to 2"
        world.ask(1, abi.XS_WATCH, b"/theirs\0t\0")
        world.ask(0, abi.XS_WRITE, b"/theirs\0secret")
        assert world.events == [(1, b"/theirs\0t\0")]
        assert world.ask(2, abi.XS_GET_PERMS, b"/theirs\0") == b"n2\0"
        world.ask(0, abi.XS_RELEASE, gone)
        assert world.ask(1, abi.XS_READ, b"/theirs\0") == "EACCES"
        world.state.introduced |= {1: world.connections[1], 2: None}
