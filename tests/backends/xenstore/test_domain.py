from __future__ import annotations

import pytest

from tests.fakes.store import FakeStore
from xenpvd.backends.xenstore import perms as permissions
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.domain import Domains
from xenpvd.backends.xenstore.store import NODE_HEADER, PERM_SIZE, Node
from xenpvd.backends.xenstore.transaction import Transaction
from xenpvd.backends.xenstore.watch import Watches
from xenpvd.errors import XenError

GUESTS = permissions.parse([b"n1"])


@pytest.fixture
def store() -> FakeStore:
    """/home belongs to domain 1, whose memory is limited to 1000 bytes more than that."""
    store = FakeStore()
    store.create("/home", b"", store.own)
    store.set_perms("/home", GUESTS, store.own)
    store.guest.quota.memory = store.guest.memory + 1000
    return store


def recount(store: FakeStore, domid: int) -> int:
    return sum(node.memory(path) for path, node in store.nodes() if node.perms[0].domid == domid)


def test_a_node_costs_its_path_its_value_its_perms_and_its_childrens_names(store: FakeStore):
    assert Node(b"four", GUESTS, 1).memory("/a") == NODE_HEADER + 2 + 4 + PERM_SIZE
    before = store.guest.memory
    store.create("/home/x", b"1", store.guest)
    assert store.guest.memory - before == Node(b"1", GUESTS, 1).memory("/home/x") + len("x\0")


def test_the_accounts_are_those_of_the_tree(store: FakeStore):
    steps = (
        lambda: store.create("/home/a/b/c", b"123", store.guest),
        lambda: store.write("/home/a/b", b"12345", store.own),
        lambda: store.write("/home/a/b", b"", store.guest),
        lambda: store.set_perms("/home/a", permissions.parse([b"n1", b"r2", b"r3"]), store.guest),
        lambda: store.set_perms("/home/a/b", permissions.parse([b"n0"]), store.own),
        lambda: store.create("/home/a/b/by-0", b"x", store.own),
        lambda: store.remove("/home/a/b/c", store.own),
        lambda: store.put("/home/a/b", Node(b"other", GUESTS, 0)),
        lambda: store.remove("/home", store.own),
    )
    for step in steps:
        step()
        assert (store.own.memory, store.guest.memory) == (recount(store, 0), recount(store, 1))
    assert (store.guest.nodes, store.guest.memory) == (0, 0)


def test_who_has_no_memory_left_is_refused_and_nothing_changes(store: FakeStore):
    store.create("/home/x", bytes(500), store.guest)
    before = store.guest.memory
    for refused in (
        lambda: store.create("/home/y", bytes(500), store.guest),
        lambda: store.write("/home/x", bytes(1100), store.guest),
        lambda: store.set_perms("/home/x", GUESTS * 60, store.guest),
        lambda: Watches().add(Connection(store.guest), "/home", bytes(1000), None, 0),
    ):
        with pytest.raises(XenError, match="Cannot allocate"):
            refused()
        assert store.guest.memory == before
    store.write("/home/x", bytes(400), store.guest)
    store.create("/home/y", bytes(300), store.guest)


def test_domain_0_is_not_refused_for_what_others_pay(store: FakeStore):
    store.create("/home/x", bytes(2000), store.own)
    assert store.guest.memory > store.guest.quota.memory
    with pytest.raises(XenError, match="Cannot allocate"):
        store.create("/home/y", b"", store.guest)


def test_the_creator_of_a_transaction_pays_for_its_copies(store: FakeStore):
    store.create("/big", bytes(600), store.own)
    before = store.guest.memory
    transaction = Transaction(store, store.guest)
    assert transaction.find("/big") is not None
    assert store.guest.memory - before == store.find("/big").memory("/big")
    store.create("/big2", bytes(600), store.own)
    with pytest.raises(XenError, match="Cannot allocate"):
        transaction.find("/big2")
    with pytest.raises(XenError, match="Cannot allocate"):
        transaction.commit()
    transaction.forget()
    assert store.guest.memory == before


def test_what_a_transaction_writes_is_paid_once_it_is_over(store: FakeStore):
    transaction = Transaction(store, store.guest)
    transaction.create("/home/x", bytes(300), store.guest)
    transaction.write("/home/x", bytes(200), store.guest)
    transaction.commit()
    transaction.forget()
    assert store.guest.memory == recount(store, 1)


def test_a_quota_is_found_by_its_name_on_the_wire():
    domains = Domains()
    assert domains.get_quota("watch-event-timeout") == 20
    domains.set_quota("memory", 0)
    assert domains.get_quota("memory", 7) == 0
    assert domains.of(7).quota.memory > 1 << 60
    assert domains.get_quota("nodes", 0) == 0, "domain 0 has none, whatever the others have"
    for name in ("Nodes", "permissions", "", "of"):
        with pytest.raises(XenError, match="Invalid"):
            domains.get_quota(name)


def test_a_commit_looks_at_what_the_nodes_owners_will_pay(store: FakeStore):
    other = store.account(3)
    for n in range(5):
        store.create(f"/theirs/{n}", b"", store.own)
        store.set_perms(f"/theirs/{n}", permissions.parse([b"n1", b"b3"]), store.own)
    store.guest.quota.memory = store.guest.memory + 1000
    transaction = Transaction(store, other)
    for n in range(5):
        transaction.write(f"/theirs/{n}", bytes(500), other)
    with pytest.raises(XenError, match="Cannot allocate"):
        transaction.commit()
    transaction.forget()
    assert store.find("/theirs/0").value == b"" and other.memory == 0


def test_a_commit_within_what_is_left_goes_though_its_copies_fill_it(store: FakeStore):
    store.create("/home/x", bytes(400), store.guest)
    transaction = Transaction(store, store.guest)
    transaction.write("/home/x", bytes(450), store.guest)
    transaction.commit()
    transaction.forget()
    assert len(store.find("/home/x").value) == 450


def test_who_made_anothers_transaction_fail_rests_twice_as_long_and_is_spared_then():
    domain = Domains().of(1)
    assert domain.resting(10.0) is None
    domain.rest(10.0, 0.1)
    assert domain.resting(10.0) == pytest.approx(0.2)
    assert domain.resting(10.15) == pytest.approx(0.05)
    domain.rest(10.3, 0.1)
    assert domain.resting(10.3) is None, "at most half of the time"
    domain.rest(10.5, 60.0)
    assert domain.resting(10.5) == pytest.approx(0.4)


def test_domain_0_never_rests():
    own = Domains().of(0)
    own.rest(10.0, 0.1)
    assert own.resting(10.0) is None
