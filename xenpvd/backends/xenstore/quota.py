"""How much of the store a domain may take.

The numbers are the defaults of Xen's xenstored, which compares watches and transactions before it counts
the new one: 129 and 11 are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from errno import E2BIG, EINVAL, ENOSPC

from xenpvd.errors import XenError


@dataclass(slots=True)
class Quota:
    """The limits of one domain, which may change at any time. The checks raise ``XenError`` with xenstored's
    error for each."""

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
    #: bytes of all that is kept for it
    memory: int = 0x28_0000
    #: watch events that it has not read; more are dropped
    watch_events: int = 1024
    #: seconds that a watch event waits to be read, before it can be dropped
    event_timeout: int = 20

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


NO_LIMIT = 1 << 62
#: Domain 0's: what it keeps in the store is not limited, but what waits for one of its clients is.
DOM0 = replace(Quota(*(NO_LIMIT for _ in fields(Quota))), outstanding=20, watch_events=65536)

#: by the name on the wire, which is xenstored's; it has not the last two
_FIELDS = {
    "nodes": "nodes",
    "watches": "watches",
    "outstanding": "outstanding",
    "memory": "memory",
    "transactions": "transactions",
    "transaction-nodes": "transaction_nodes",
    "node-permissions": "permissions",
    "path-max": "path_max",
    "node-size": "node_size",
    "watch-events": "watch_events",
    "watch-event-timeout": "event_timeout",
}
NAMES = tuple(_FIELDS)
#: those of which something is used up, and given back
USED = ("nodes", "watches", "transactions", "outstanding", "memory")


def field_of(name: str) -> str:
    """The attribute of :class:`Quota` by its name on the wire. Raises ``XenError`` EINVAL."""
    if name not in _FIELDS:
        raise XenError(EINVAL, f"no quota {name[:32]!r}")
    return _FIELDS[name]
