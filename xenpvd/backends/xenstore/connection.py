"""What xenstored knows of one connection."""

from __future__ import annotations

from errno import ENOENT

from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore.quota import UNLIMITED, Quota
from xenpvd.backends.xenstore.transaction import Transaction
from xenpvd.errors import XenError


class Connection:
    """A domain's connection and its open transactions. Two connections are never equal."""

    def __init__(self, domid: int, quota: Quota | None = None, *, implicit_path: bool = True) -> None:
        self.domid = domid
        #: what relative paths begin with; None: they are refused, as xenstored does on its socket
        self.home = paths.home(domid) if implicit_path else None
        self.quota = quota if quota is not None else UNLIMITED if domid == 0 else Quota()
        self._transactions: dict[int, Transaction] = {}
        self._last_tx_id = 0

    @property
    def privileged(self) -> bool:
        return self.domid == 0

    @property
    def transactions(self) -> int:
        """How many are open."""
        return len(self._transactions)

    def begin(self, transaction: Transaction) -> int:
        """Keep a new transaction; returns its tx_id. Raises ``XenError`` ENOSPC beyond the quota."""
        self.quota.check_transactions(len(self._transactions))
        while True:
            self._last_tx_id = (self._last_tx_id + 1) & 0xFFFF_FFFF
            if self._last_tx_id and self._last_tx_id not in self._transactions:
                break
        self._transactions[self._last_tx_id] = transaction
        return self._last_tx_id

    def transaction(self, tx_id: int) -> Transaction:
        """Raises ``XenError`` ENOENT."""
        if tx_id not in self._transactions:
            raise XenError(ENOENT, f"no transaction {tx_id}")
        return self._transactions[tx_id]

    def end(self, tx_id: int) -> None:
        """Forget a transaction."""
        del self._transactions[tx_id]

    def reset_transactions(self) -> None:
        self._transactions.clear()
