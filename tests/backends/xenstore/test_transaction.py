from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.fakes.store import FakeStore
from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore import perms as permissions
from xenpvd.backends.xenstore.domain import Domain
from xenpvd.backends.xenstore.quota import DOM0, Quota
from xenpvd.backends.xenstore.store import View
from xenpvd.backends.xenstore.transaction import Transaction
from xenpvd.errors import XenError


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    for path in ("/a", "/b", "/d/x"):
        store.create(path, b"old", OWN)
    return store


OWN = Domain(0, DOM0)


def begin(store: FakeStore) -> Transaction:
    return Transaction(store, store.own)


def create_and_remove(store: FakeStore, path: str) -> None:
    store.create(path, b"", OWN)
    store.remove(path, OWN)


def write(view: View, path: str, value: bytes = b"new") -> None:
    if view.find(path):
        view.write(path, value, OWN)
    else:
        view.create(path, value, OWN)


# what the transaction does, what happens meanwhile in the store, does it conflict
CONFLICTS: list[tuple[str, Callable[[View], object], Callable[[View], object], bool]] = [
    ("read, other written", lambda t: t.find("/a"), lambda s: write(s, "/b"), False),
    ("read, the same written", lambda t: t.find("/a"), lambda s: write(s, "/a"), True),
    ("read, the same value written", lambda t: t.find("/a"), lambda s: write(s, "/a", b"old"), True),
    ("read, the same removed", lambda t: t.find("/a"), lambda s: s.remove("/a", s.own), True),
    (
        "read, its perms changed",
        lambda t: t.find("/a"),
        lambda s: s.set_perms("/a", permissions.PRIVATE, OWN),
        True,
    ),
    ("read, a child created", lambda t: t.find("/d"), lambda s: write(s, "/d/y"), True),
    ("read, a child written", lambda t: t.find("/d"), lambda s: write(s, "/d/x"), False),
    ("missing, created", lambda t: t.find("/n"), lambda s: write(s, "/n"), True),
    (
        "missing, created and gone",
        lambda t: t.find("/n"),
        lambda s: (write(s, "/n"), s.remove("/n", s.own)),
        False,
    ),
    ("written, other written", lambda t: write(t, "/a"), lambda s: write(s, "/b"), False),
    ("written, the same written", lambda t: write(t, "/a"), lambda s: write(s, "/a"), True),
    ("created, sibling created", lambda t: write(t, "/d/n"), lambda s: write(s, "/d/m"), True),
    ("created, cousin created", lambda t: write(t, "/d/n"), lambda s: write(s, "/m"), False),
    ("removed, child created", lambda t: t.remove("/d", t._creator), lambda s: write(s, "/d/m"), True),
    ("nothing", lambda t: None, lambda s: s.remove("/d", s.own), False),
]


@pytest.mark.parametrize(
    ("name", "inside", "outside", "conflict"), CONFLICTS, ids=[row[0] for row in CONFLICTS]
)
def test_conflicts(store: FakeStore, name, inside, outside, conflict: bool):
    transaction = begin(store)
    inside(transaction)
    outside(store)
    if conflict:
        with pytest.raises(XenError, match="temporarily unavailable"):
            transaction.commit()
    else:
        transaction.commit()


def test_a_write_before_the_first_touch_is_no_conflict(store: FakeStore):
    transaction = begin(store)
    write(store, "/a", b"meanwhile")
    assert transaction.find("/a").value == b"meanwhile"
    write(transaction, "/a")
    transaction.commit()
    assert store.find("/a").value == b"new"


def test_nothing_shows_until_the_commit(store: FakeStore):
    transaction = begin(store)
    write(transaction, "/n/m", b"1")
    transaction.remove("/d", store.own)
    assert transaction.find("/d/x") is None
    assert store.find("/d/x") is not None
    assert store.find("/n") is None
    transaction.commit()
    assert store.find("/d") is None
    assert store.find("/n/m").value == b"1"
    assert [*store.find("/").children] == ["a", "b", "n"]


def test_changes_are_told_in_the_order_of_first_touch(store: FakeStore):
    transaction = begin(store)
    transaction.find("/b")
    write(transaction, "/a")
    transaction.note("/a", exact=False)
    write(transaction, "/b")
    transaction.note("/b", exact=False)
    write(transaction, "/gone")
    transaction.note("/gone", exact=False)
    transaction.remove("/gone", store.own)
    transaction.note("/gone", exact=True)
    changes = transaction.commit()
    assert [(change.path, change.exact) for change in changes] == [
        ("/b", False),
        ("/a", False),
        ("/gone", False),
    ]
    assert changes[2].readers == ()  # it never was, so nobody may know


def test_created_and_removed_leaves_no_trace(store: FakeStore):
    before = store.owned(0)
    transaction = begin(store)
    write(transaction, "/n/m")
    transaction.remove("/n", store.own)
    transaction.commit()
    assert store.find("/n") is None
    assert store.owned(0) == before


def test_nodes_touched_are_limited_and_then_all_fails(store: FakeStore):
    transaction = Transaction(store, store.guest)
    store.guest.quota.transaction_nodes = 3
    for path in ("/a", "/b", "/d", "/a"):
        transaction.find(path)
    with pytest.raises(XenError, match="No space"):
        transaction.find("/d/x")
    with pytest.raises(XenError, match="Cannot allocate"):
        transaction.commit()


def test_a_refused_write_fails_all_of_it(store: FakeStore):
    transaction = Transaction(store, store.guest)
    transaction.write("/b", b"1", store.guest)
    with pytest.raises(XenError, match="No space"):
        transaction.write("/a", bytes(2049), store.guest)
    with pytest.raises(XenError, match="Cannot allocate"):
        transaction.commit()
    assert store.find("/b").value == b"old"


def test_the_node_quota_counts_what_other_transactions_committed(store: FakeStore):
    store.guest.quota.nodes = 3
    store.set_perms("/a", permissions.parse([b"n1"]), OWN)
    store.set_perms("/b", permissions.parse([b"n1"]), OWN)
    one, two = Transaction(store, store.guest), Transaction(store, store.guest)
    one.create("/a/n", b"", store.guest)
    two.create("/b/n", b"", store.guest)
    with pytest.raises(XenError, match="No space"):
        two.create("/b/m", b"", store.guest)
    one.commit()
    assert store.owned(1) == 3
    three = Transaction(store, store.guest)
    with pytest.raises(XenError, match="No space"):
        three.create("/b/n", b"", store.guest)


def test_the_node_quota_is_looked_at_again_by_the_commit(store: FakeStore):
    store.guest.quota.nodes = 3
    for path in ("/a", "/b"):
        store.set_perms(path, permissions.parse([b"n1"]), OWN)
    transaction = Transaction(store, store.guest)
    transaction.create("/b/n", b"", store.guest)
    store.create("/a/n", b"", store.guest)
    with pytest.raises(XenError, match="No space"):
        transaction.commit()
    assert store.find("/b/n") is None


def test_a_torn_view_bears_everything_and_does_not_commit(store: FakeStore):
    transaction = begin(store)
    assert transaction.find("/d") is not None
    store.remove("/d", store.own)
    assert transaction.find("/d/x") is None  # listed, and missing
    write(transaction, "/d/x")
    transaction.remove("/d", store.own)
    other = begin(store)
    assert other.find("/n") is None
    write(store, "/n/m")
    assert other.find("/n/m") is not None  # there, without a parent
    write(other, "/n/m")
    other.remove("/n/m", store.own)
    for torn in (transaction, other):
        with pytest.raises(XenError, match="temporarily unavailable"):
            torn.commit()


PATHS = st.sampled_from(["/a", "/a/x", "/a/x/y", "/b", "/b/x", "/b/z"])
VALUES = st.binary(max_size=2)

Snapshot = dict[str, tuple[bytes, tuple[str, ...]]]


class Transactions(RuleBasedStateMachine):
    """Interleaved transactions against a model that replays each committed one's operations in one go.

    Reads and refusals inside a transaction are recorded; if it commits, doing its operations again on the
    store as it is at that moment must read the same and lead to the same tree.
    """

    open = Bundle("open")

    def __init__(self) -> None:
        super().__init__()
        self.store = FakeStore()
        self.model: Snapshot = {"/": (b"", ())}

    @rule(target=open)
    def begin(self):
        return begin(self.store), []

    @rule(transaction=open, path=PATHS)
    def read(self, transaction, path):
        self.do(transaction, ("read", path, b""))

    @rule(transaction=open, path=PATHS, value=VALUES)
    def write(self, transaction, path, value):
        self.do(transaction, ("write", path, value))

    @rule(transaction=open, path=PATHS)
    def remove(self, transaction, path):
        self.do(transaction, ("remove", path, b""))

    @rule(path=PATHS, value=VALUES)
    def write_outside(self, path, value):
        write(self.store, path, value)
        self.replay("write", path, value)

    @rule(path=PATHS)
    def remove_outside(self, path):
        if self.store.find(path):
            self.store.remove(path, self.store.own)
            self.replay("remove", path, b"")

    @rule(transaction=consumes(open))
    def commit(self, transaction):
        view, operations = transaction
        try:
            view.commit()
        except XenError as fault:
            assert "temporarily" in str(fault)
            return
        for (verb, path, value), saw in operations:
            assert self.replay(verb, path, value) == saw

    @rule(transaction=consumes(open))
    def abort(self, transaction):
        pass

    def do(self, transaction, operation):
        view, operations = transaction
        verb, path, value = operation
        node = view.find(path)
        saw = None if node is None else (node.value, tuple(node.children))
        if verb == "write":
            write(view, path, value)
        elif verb == "remove" and node is not None:
            view.remove(path, self.store.own)
        operations.append((operation, saw))

    def replay(self, verb: str, path: str, value: bytes):
        """The same on the model; returns what was at ``path`` before."""
        saw = self.model.get(path)
        if verb == "write":
            if saw is not None:
                self.model[path] = (value, saw[1])
            else:
                missing = [path]
                while paths.parent(missing[-1]) not in self.model:
                    missing.append(paths.parent(missing[-1]))
                for new in reversed(missing):
                    above = paths.parent(new)
                    old = self.model[above]
                    self.model[above] = (old[0], (*old[1], paths.name(new)))
                    self.model[new] = (value if new == path else b"", ())
        elif verb == "remove" and saw is not None:
            for gone in [p for p in self.model if p == path or p.startswith(path + "/")]:
                del self.model[gone]
            above = paths.parent(path)
            old = self.model[above]
            self.model[above] = (old[0], tuple(leaf for leaf in old[1] if leaf != paths.name(path)))
        return saw

    @invariant()
    def the_trees_are_equal(self):
        for path, (value, children) in self.model.items():
            node = self.store.find(path)
            assert node is not None
            assert (node.value, tuple(node.children)) == (value, children)
            assert node.names_size == sum(len(leaf) + 1 for leaf in children)
        assert self.store.owned(0) == len(self.model) + 2


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_conflict_names_who_made_it(store: FakeStore):
    """Unless it was oneself."""
    for by, rival in ((store.guest, 1), (store.own, None)):
        transaction = begin(store)
        transaction.find("/a")
        store.write("/a", b"theirs", by)
        with pytest.raises(XenError):
            transaction.commit()
        assert transaction.rival == rival


def test_who_removes_is_blamed_as_who_writes(store: FakeStore):
    transaction = begin(store)
    transaction.find("/d/x")
    transaction.find("/b")
    store.remove("/d/x", store.guest)
    store.write("/b", b"mine", store.own)
    with pytest.raises(XenError):
        transaction.commit()
    assert transaction.rival == 1


def test_our_own_change_does_not_hide_anothers(store: FakeStore):
    transaction = begin(store)
    for path in ("/a", "/b"):
        transaction.find(path)
    store.write("/a", b"mine", store.own)
    store.write("/b", b"theirs", store.guest)
    with pytest.raises(XenError):
        transaction.commit()
    assert transaction.rival == 1


@pytest.mark.parametrize(("words", "rival"), [([b"n1"], None), ([b"n1", b"r2"], 1)])
def test_nobody_is_blamed_for_what_the_other_may_not_read(
    store: FakeStore, words: list[bytes], rival: int | None
):
    store.set_perms("/a", permissions.parse(words), store.own)
    transaction = Transaction(store, Domain(2, Quota()))
    transaction.find("/a")
    store.write("/a", b"its own affair", store.guest)
    with pytest.raises(XenError):
        transaction.commit()
    assert transaction.rival == rival
