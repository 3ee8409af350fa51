"""How much of the store a domain may take; domain 0 is exempt.

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


_NONE = 1 << 62
#: Domain 0's.
UNLIMITED = Quota(*(_NONE for _ in fields(Quota)))

#: by the name on the wire, which is xenstored's; it has no watch-events
_FIELDS = {
    "nodes": "nodes",
    "watches": "watches",
    "outstanding": "outstanding",
    "transactions": "transactions",
    "transaction-nodes": "transaction_nodes",
    "node-permissions": "permissions",
    "path-max": "path_max",
    "node-size": "node_size",
    "watch-events": "watch_events",
}
NAMES = tuple(_FIELDS)


class Quotas:
    """The quotas of all domains. A domain's is the global one until it gets one of its own, and keeps that
    when it is rebooted. Everything raises ``XenError`` EINVAL for a name that is none; 0 means no limit."""

    def __init__(self) -> None:
        self._common = Quota()
        self._domains: dict[int, Quota] = {}
        self._own: set[tuple[int, str]] = set()

    def of(self, domid: int) -> Quota:
        """The one object that a domain's connections look at."""
        if domid == 0:
            return UNLIMITED
        return self._domains.setdefault(domid, replace(self._common))

    def get(self, name: str, domid: int | None = None) -> int:
        """The global one without ``domid``."""
        quota = self._common if domid is None else self.of(domid)
        value: int = getattr(quota, self._field(name))
        return 0 if value == _NONE else value

    def set(self, name: str, value: int, domid: int | None = None) -> None:
        field, value = self._field(name), value or _NONE
        if domid is not None:
            self._own.add((domid, field))
            setattr(self.of(domid), field, value)
            return
        setattr(self._common, field, value)
        for each, quota in self._domains.items():
            if (each, field) not in self._own:
                setattr(quota, field, value)

    def _field(self, name: str) -> str:
        if name not in _FIELDS:
            raise XenError(EINVAL, f"no quota {name[:32]!r}")
        return _FIELDS[name]
