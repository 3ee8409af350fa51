"""How much of the store a domain may take; domain 0 is exempt.

The numbers are the defaults of Xen's xenstored, which compares watches and transactions before it counts
the new one: 129 and 11 are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from errno import E2BIG, ENOSPC

from xenpvd.errors import XenError


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of one domain. The checks raise ``XenError`` with xenstored's error for each."""

    #: nodes that it owns, in the whole tree
    nodes: int = 1000
    watches: int = 128
    transactions: int = 10
    #: nodes that one transaction looks at or changes
    transaction_nodes: int = 1024
    #: bytes of a node: its value and its children's names with their NULs
    node_size: int = 2048
    #: entries of a node's permissions
    permissions: int = 5
    #: bytes of a path, without /local/domain/<domid>/
    path_max: int = 2048
    #: replies that it has not read; no more requests are taken until it reads
    outstanding: int = 20
    #: watch events that it has not read; more are dropped
    watch_events: int = 1024

    def check_nodes(self, owned: int, more: int) -> None:
        if more > 0 and owned + more > self.nodes:
            raise XenError(ENOSPC, f"more than {self.nodes} nodes")

    def check_node_size(self, size: int) -> None:
        if size > self.node_size:
            raise XenError(ENOSPC, f"a node of {size} bytes, {self.node_size} at most")

    def check_permissions(self, count: int) -> None:
        if count > self.permissions:
            raise XenError(ENOSPC, f"{count} permissions, {self.permissions} at most")

    def check_watches(self, count: int) -> None:
        if count > self.watches:
            raise XenError(E2BIG, f"more than {self.watches} watches")

    def check_transactions(self, count: int) -> None:
        if count > self.transactions:
            raise XenError(ENOSPC, f"more than {self.transactions} transactions")

    def check_transaction_nodes(self, count: int) -> None:
        if count > self.transaction_nodes:
            raise XenError(ENOSPC, f"more than {self.transaction_nodes} nodes in a transaction")


#: Domain 0's.
UNLIMITED = Quota(*(1 << 62 for _ in fields(Quota)))
