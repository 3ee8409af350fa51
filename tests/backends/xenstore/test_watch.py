from __future__ import annotations

from math import inf

import pytest

from xenpvd.backends.xenstore import perms as permissions
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.domain import Domain
from xenpvd.backends.xenstore.quota import DOM0, Quota
from xenpvd.backends.xenstore.store import Change, Node
from xenpvd.backends.xenstore.watch import Watches
from xenpvd.errors import XenError

OPEN = permissions.parse([b"r0"])
CLOSED = permissions.PRIVATE


@pytest.fixture
def watches() -> Watches:
    return Watches()


@pytest.fixture
def guest() -> Connection:
    return Connection(Domain(1, Quota()))


def heard(deliveries) -> list[tuple[int, bytes]]:
    return [(connection.domain.domid, message.payload) for connection, message in deliveries]


def fire(watches: Watches, path: str, readers, exact: bool = False):
    return list(watches.fire([Change(path, exact, tuple(readers))]))


# watched, depth, changed, exact, does it hear
MATCHES = [
    ("/a", None, "/a", False, True),
    ("/a", None, "/a/b", False, True),
    ("/a", None, "/ab", False, False),
    ("/a/b", None, "/a", False, False),
    ("/", None, "/a/b/c", False, True),
    ("/a", None, "/a/b", True, False),
    ("/a/b", None, "/a/b", True, True),
    ("/a", 0, "/a", False, True),
    ("/a", 0, "/a/b", False, False),
    ("/a", 1, "/a/b", False, True),
    ("/a", 1, "/a/b/c", False, False),
    ("/", 1, "/a", False, True),
    ("/", 1, "/a/b", False, False),
    ("@x", None, "/a", False, False),
]


@pytest.mark.parametrize(("watched", "depth", "changed", "exact", "hears"), MATCHES)
def test_matches(watches: Watches, guest: Connection, watched, depth, changed, exact, hears):
    watches.add(guest, watched, b"t", depth, 0)
    assert heard(fire(watches, changed, [OPEN], exact=exact)) == [(1, changed.encode() + b"\0t\0")] * hears


@pytest.mark.parametrize(
    ("readers", "hears"),
    [([CLOSED, CLOSED], False), ([CLOSED, OPEN], True), ([OPEN, CLOSED], True), ([], False)],
)
def test_only_those_who_may_read_hear(watches: Watches, guest: Connection, readers, hears: bool):
    watches.add(guest, "/a", b"t", None, 0)
    assert bool(fire(watches, "/a", readers)) is hears


def test_order_is_that_of_registration(watches: Watches, guest: Connection):
    own = Connection(Domain(0, DOM0))
    watches.add(guest, "/a/b", b"1", None, 0)
    watches.add(own, "/", b"2", None, 0)
    watches.add(guest, "/a", b"3", None, 0)
    watches.add(guest, "/a/b", b"4", None, 0)
    assert [payload[-2:-1] for _, payload in heard(fire(watches, "/a/b", [OPEN]))] == [b"1", b"2", b"3", b"4"]


def test_a_relative_watch_hears_relative_paths(watches: Watches, guest: Connection):
    watches.add(guest, "/local/domain/1/data", b"t", None, len("/local/domain/1/"))
    assert heard(fire(watches, "/local/domain/1/data/x", [OPEN])) == [(1, b"data/x\0t\0")]


def test_an_event_too_long_for_the_wire_is_dropped(watches: Watches, guest: Connection):
    watches.add(guest, "/a", b"t" * 4092, None, 0)
    assert len(heard(fire(watches, "/a", [OPEN]))[0][1]) == 4096
    assert fire(watches, "/a/b", [OPEN]) == []


def test_same_path_and_token_is_refused_others_are_not(watches: Watches, guest: Connection):
    watches.add(guest, "/a", b"t", None, 0)
    watches.add(guest, "/a", b"u", None, 0)
    watches.add(Connection(Domain(1, Quota())), "/a", b"t", None, 0)
    with pytest.raises(XenError, match="exists"):
        watches.add(guest, "/a", b"t", 3, 0)


def test_quota_and_reset(watches: Watches, guest: Connection):
    for n in range(guest.domain.quota.watches + 1):
        watches.add(guest, "/a", str(n).encode(), None, 0)
    with pytest.raises(XenError, match="too long"):
        watches.add(guest, "/a", b"more", None, 0)
    watches.reset(guest)
    assert guest.domain.watches == 0
    assert fire(watches, "/a", [OPEN]) == []
    watches.reset(guest)


def test_remove(watches: Watches, guest: Connection):
    watches.add(guest, "/a", b"t", None, 0)
    for path, token in (("/a", b"u"), ("/b", b"t")):
        with pytest.raises(XenError, match="No such"):
            watches.remove(guest, path, token)
    watches.remove(guest, "/a", b"t")
    assert fire(watches, "/a", [OPEN]) == []


def test_special(watches: Watches):
    own, guest = Connection(Domain(0, DOM0)), Connection(Domain(1, Quota()))
    for n, (path, depth) in enumerate(
        [("@x", None), ("@x", 1), ("@x", 0), ("@x/7", None), ("@x/8", None), ("/", None)]
    ):
        watches.add(own, path, str(n).encode(), depth, 0)
    watches.add(guest, "@x", b"g", None, 0)
    expected = [(0, b"@x\x000\0"), (0, b"@x/7\x001\0"), (0, b"@x/7\x003\0")]
    assert heard(watches.fire_special("@x", 7, CLOSED)) == expected
    assert heard(watches.fire_special("@x", 7, OPEN)) == [*expected, (1, b"@x\0g\0")]


def test_nothing_is_made_for_who_is_deaf(watches: Watches, guest: Connection):
    other = Connection(Domain(2, Quota()))
    for connection in (guest, other):
        watches.add(connection, "/a", b"t", None, 0)
    changes = watches.fire([Change("/a", False, (OPEN,)), Change("/a/b", False, (OPEN,))])
    assert next(changes).connection is guest
    guest.deaf_until = inf
    assert [delivery.connection for delivery in changes] == [other, other]


def test_what_an_outbox_would_merge_is_made_once(watches: Watches, guest: Connection):
    for path, depth in (("/a", None), ("/a/b", None), ("/a/b/c", 9)):
        watches.add(guest, path, b"t", depth, 0)
    change = [Change("/a/b/c", False, (OPEN,))]
    assert len(heard(watches.fire(change))) == 3
    guest.merges = True
    assert len(heard(watches.fire(change))) == 2, "a depth may keep one of them silent"


def test_of_a_removal_only_what_is_watched_is_told(watches: Watches, guest: Connection):
    """By their own watches those below, children first; by those above, too, only the topmost."""
    gone = {path: Node(b"", OPEN, 1) for path in ("/a", "/a/c", "/a/b", "/a/b/x")}
    for path in ("/", "/a/b", "/a"):
        watches.add(guest, path, b"t", None, 0)
    told = list(watches.of_removal(gone, CLOSED))
    assert told == [Change("/a/b", True, (OPEN, OPEN)), Change("/a", False, (OPEN, CLOSED))]
    assert [payload for _, payload in heard(watches.fire(told))] == [b"/a/b\0t\0", b"/a\0t\0", b"/a\0t\0"]
