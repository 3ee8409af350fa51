from __future__ import annotations

import pytest

from tests.fakes.store import FakeStore
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.transaction import Transaction
from xenpvd.errors import XenError


def begin(connection: Connection) -> int:
    return connection.begin(Transaction(FakeStore(), connection.domain))


def test_ids_are_not_reused_while_open():
    guest = Connection(FakeStore().guest)
    first = begin(guest)
    guest._last_tx_id = 2**32 - 2
    assert [begin(guest) for _ in range(3)] == [2**32 - 1, first + 1, first + 2]
    assert first == 1


def test_eleven_transactions_and_no_more():
    guest = Connection(FakeStore().guest)
    ids = [begin(guest) for _ in range(11)]
    with pytest.raises(XenError, match="No space"):
        begin(guest)
    guest.end(ids[3])
    begin(guest)
    guest.reset_transactions()
    with pytest.raises(XenError, match="No such"):
        guest.transaction(ids[0])


def test_domain_0_is_exempt():
    own = Connection(FakeStore().own)
    assert len({begin(own) for _ in range(100)}) == 100


def test_what_is_forgotten_is_given_back():
    store = FakeStore()
    connection = Connection(store.guest)
    for _ in range(3):
        transaction = Transaction(store, store.guest)
        connection.begin(transaction)
        transaction.find("/")
    assert store.guest.transactions == 3
    assert store.guest.memory > 0
    connection.reset_transactions()
    assert (store.guest.transactions, store.guest.memory) == (0, 0)
