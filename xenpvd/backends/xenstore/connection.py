"""What xenstored knows of one connection."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOENT

from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore.domain import Domain
from xenpvd.backends.xenstore.transaction import Transaction
from xenpvd.errors import XenError


class Connection:
    """A domain's connection and its open transactions. Two connections are never equal."""

    def __init__(self, domain: Domain, name: str = "ring") -> None:
        self.domain = domain
        #: who is at its other end, for people
        self.name = name
        #: what relative paths begin with
        self.home = paths.home(domain.domid)
        #: until when, by ``clock``, so much waits for it that no event fits in: none is even made
        self.deaf_until = 0.0
        self.clock: Callable[[], float] = float
        #: whether all its events go through an outbox, which merges equal ones
        self.merges = False
        self._transactions: dict[int, Transaction] = {}
        self._last_tx_id = 0

    @property
    def deaf(self) -> bool:
        return bool(self.deaf_until) and self.clock() < self.deaf_until

    def begin(self, transaction: Transaction) -> int:
        """Keep a new transaction; returns its tx_id. Raises ``XenError`` ENOSPC beyond the quota."""
        self.domain.quota.check_transactions(self.domain.transactions)
        while True:
            self._last_tx_id = (self._last_tx_id + 1) & 0xFFFF_FFFF
            if self._last_tx_id and self._last_tx_id not in self._transactions:
                break
        self._transactions[self._last_tx_id] = transaction
        self.domain.transactions += 1
        return self._last_tx_id

    def transaction(self, tx_id: int) -> Transaction:
        """Raises ``XenError`` ENOENT."""
        if tx_id not in self._transactions:
            raise XenError(ENOENT, f"no transaction {tx_id}")
        return self._transactions[tx_id]

    def end(self, tx_id: int) -> None:
        """Forget a transaction."""
        self._transactions.pop(tx_id).forget()
        self.domain.transactions -= 1

    def reset_transactions(self) -> None:
        for tx_id in tuple(self._transactions):
            self.end(tx_id)
