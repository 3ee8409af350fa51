from __future__ import annotations

import pytest

from tests.fakes.store import FakeStore
from xenpvd.backends.xenstore import perms as permissions
from xenpvd.backends.xenstore.perms import READ, WRITE
from xenpvd.backends.xenstore.store import Node
from xenpvd.errors import XenError


@pytest.fixture
def store() -> FakeStore:
    """/home belongs to domain 1, /closed to domain 0, /shared may be read by all."""
    store = FakeStore()
    for path, words in (("/home", [b"n1"]), ("/closed", [b"n0"]), ("/shared", [b"r0"])):
        store.create(path, b"", store.own)
        store.set_perms(path, permissions.parse(words), store.own)
    return store


def get(store: FakeStore, path: str) -> Node:
    node = store.find(path)
    assert node is not None
    return node


def test_creation_makes_what_is_missing_above(store: FakeStore):
    store.create("/home/a/b/c", b"\0\xff", store.guest)
    assert get(store, "/home/a/b/c").value == b"\0\xff"
    assert get(store, "/home/a/b").value == b""
    assert [*get(store, "/home/a").children] == ["b"]
    assert permissions.words(get(store, "/home/a/b").perms) == ["n1"]


def test_ownership_is_counted(store: FakeStore):
    assert store.owned(1) == 1
    store.create("/home/a/b", b"", store.guest)
    store.create("/home/x", b"", store.own)
    assert store.owned(1) == 4  # domain 0's creation is the owner's too
    store.set_perms("/home/x", permissions.parse([b"n0"]), store.own)
    assert store.owned(1) == 3
    store.remove("/home", store.own)
    assert (store.owned(1), store.owned(0)) == (0, 5)


@pytest.mark.parametrize(
    ("path", "need", "error"),
    [
        ("/home", WRITE, None),
        ("/shared", READ, None),
        ("/shared", WRITE, "Permission"),
        ("/closed", READ, "Permission"),
        ("/home/missing/deep", READ, "No such"),
        ("/shared/missing", READ, "No such"),
        ("/shared/missing", WRITE, "Permission"),
        ("/closed/missing", READ, "Permission"),
        ("/missing", READ, "Permission"),
        ("@noSuchThing", READ, "Permission"),
    ],
)
def test_lookup_tells_no_more_than_it_may(store: FakeStore, path: str, need: int, error: str | None):
    if error is None:
        assert store.lookup(path, (1,), need) is store.find(path)
    else:
        with pytest.raises(XenError, match=error):
            store.lookup(path, (1,), need)


def test_removal_is_children_first_in_their_order(store: FakeStore):
    for path in ("/home/a/x", "/home/a/y", "/home/b"):
        store.create(path, b"", store.guest)
    removed = [*reversed(store.remove("/home", store.own))]
    assert removed == ["/home/a/x", "/home/a/y", "/home/a", "/home/b", "/home"]
    assert store.find("/home/a/x") is None
    assert [*get(store, "/").children] == ["closed", "shared"]


def test_a_domain_that_is_gone_has_nothing_any_more(store: FakeStore):
    """Its nodes go with all below them; the root and the special nodes stay, and become domain 0's."""
    store.create("/home/a/theirs", b"", store.guest)
    store.set_perms("/home/a/theirs", permissions.parse([b"n0"]), store.own)
    store.create("/kept", b"", store.own)
    for path, words in (
        ("/kept", [b"n2", b"b1", b"r3", b"w1"]),
        ("/", [b"r1", b"b1"]),
        ("@releaseDomain", [b"n1"]),
    ):
        store.set_perms(path, permissions.parse(words), store.own)
    before = get(store, "/kept").generation
    gone = store.release(1, store.own)
    assert [[*nodes] for nodes, _ in gone] == [["/home", "/home/a", "/home/a/theirs"]]
    assert permissions.words(gone[0][1]) == ["r0"], "the root's"
    assert permissions.words(get(store, "/kept").perms) == ["n2", "r3"]
    assert get(store, "/kept").generation != before, "who has looked at it in a transaction shall look again"
    assert permissions.words(get(store, "/").perms) == ["r0"]
    assert permissions.words(get(store, "@releaseDomain").perms) == ["n0"]
    assert (store.account(1).nodes, store.account(1).memory) == (0, 0)
    assert store.account(0).nodes == store.owned(0)


def test_of_what_is_released_the_topmost_goes_first_whatever_was_written_last(store: FakeStore):
    for path in ("/home/a", "/home/a/b", "/home/a-b"):
        store.create(path, b"", store.guest)
    for path in ("/home", "/home/a"):  # as a commit does, and is behind its children in the dict then
        store.put(path, get(store, path).copy())
    ((gone, _),) = store.release(1, store.own)
    assert sorted(gone) == ["/home", "/home/a", "/home/a-b", "/home/a/b"]


def test_the_next_domain_of_a_number_has_not_the_blame_of_the_last(store: FakeStore):
    store.create("/shared/x", b"", store.own)
    store.write("/shared/x", b"1", store.guest)
    assert store.writer("/shared/x") == 1
    store.release(1, store.own)
    assert store.writer("/shared/x") == 0


def test_every_change_has_its_own_generation(store: FakeStore):
    seen = {get(store, "/home").generation}
    store.write("/home", b"1", store.guest)
    seen.add(get(store, "/home").generation)
    store.write("/home", b"1", store.guest)
    seen.add(get(store, "/home").generation)
    store.create("/home/a", b"", store.guest)
    seen.add(get(store, "/home").generation)
    before = get(store, "/home").generation
    store.write("/home/a", b"1", store.guest)
    store.remove("/shared", store.own)
    assert get(store, "/home").generation == before
    assert len(seen) == 4


def test_a_quota_refuses_before_anything_changes(store: FakeStore):
    for n in range(store.guest.quota.nodes - 2):
        store.create(f"/home/d{n % 30}/n{n}" if n >= 30 else f"/home/d{n}", b"", store.guest)
    before = get(store, "/home/d1").generation
    with pytest.raises(XenError, match="No space"):
        store.create("/home/d1/x/y", b"", store.guest)
    assert get(store, "/home/d1").generation == before
    assert store.owned(1) == 999
    store.create("/home/last", b"", store.guest)
    with pytest.raises(XenError, match="No space"):
        store.create("/home/more", b"", store.guest)


def test_node_size_counts_the_childrens_names(store: FakeStore):
    store.write("/home", bytes(2048), store.guest)
    with pytest.raises(XenError, match="No space"):
        store.create("/home/a", b"", store.guest)
    store.write("/home", bytes(2046), store.guest)
    store.create("/home/a", b"", store.guest)
    with pytest.raises(XenError, match="No space"):
        store.write("/home", bytes(2047), store.guest)
    store.remove("/home/a", store.own)
    store.write("/home", bytes(2048), store.guest)


def test_a_thousand_levels(store: FakeStore):
    deep = "/home" + "/a" * 1000
    store.create(deep, b"end", store.own)
    assert get(store, deep).value == b"end"
    assert len(store.remove("/home/a", store.own)) == 1000
    assert store.owned(1) == 1
