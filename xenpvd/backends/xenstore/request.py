"""What the handlers of requests are given: all that there is (State), and one request on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EACCES, EINVAL, ENOENT
from typing import NamedTuple, Protocol

from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.domain import Domain, Domains
from xenpvd.backends.xenstore.history import History
from xenpvd.backends.xenstore.perms import WRITE, Perms
from xenpvd.backends.xenstore.store import Change, Node, Store, View
from xenpvd.backends.xenstore.transaction import Transaction
from xenpvd.backends.xenstore.watch import Delivery, Watches
from xenpvd.backends.xenstore.wire import Message, join, strings
from xenpvd.errors import XenError

OK = join("OK")


class Rings(Protocol):
    """What requests can do to other domains' rings."""

    def reset(self, domid: int) -> bool:
        """Let the domain begin anew, be it served now or released before; False if it has no ring here."""

    def release(self, domid: int) -> None:
        """Serve its ring no more. Nothing if it has none."""

    def print(self, text: str) -> None:
        """Into the log."""


class State:
    """All that a request can see or change. ``introduced`` holds the domids that are connected, each with its
    connection; those on a socket have none of their own. ``now`` gives the time for the history, ``clock``
    seconds that never jump."""

    def __init__(
        self,
        rings: Rings | None = None,
        now: Callable[[], float] = float,
        clock: Callable[[], float] = float,
    ) -> None:
        self.rings = rings
        self.clock = clock
        self.domains = Domains()
        self.store = Store(self.domains)
        self.watches = Watches()
        self.history = History(now)
        self.introduced: dict[int, Connection | None] = {0: None}
        #: XS_CONTROL log: whether every request is printed
        self.tracing = False

    def reset(self, connection: Connection) -> None:
        """Drop a connection's watches and transactions."""
        self.watches.reset(connection)
        connection.reset_transactions()

    def release(self, domid: int) -> tuple[list[Change], list[Delivery]]:
        """A domain is gone: nothing of it stays for the next one of its number. What watches hear of it."""
        self.domains.released(domid)
        changes = [
            change
            for gone, above in self.store.release(domid, self.domains.of(0))
            for change in self.watches.of_removal(gone, above)
        ]
        return changes, self.special(paths.RELEASE_DOMAIN, domid)

    def special(self, name: str, domid: int) -> list[Delivery]:
        """The events of @introduceDomain or @releaseDomain."""
        node = self.store.find(name)
        assert node is not None
        return self.watches.fire_special(name, domid, node.perms)


@dataclass(slots=True)
class Request:
    """One request on its way: the events of ``changes`` and ``events`` go out before its reply, ``after``
    behind it."""

    state: State
    connection: Connection
    message: Message
    transaction: Transaction | None = None
    changes: list[Change] = field(default_factory=list)
    events: list[Delivery] = field(default_factory=list)
    after: list[Delivery] = field(default_factory=list)

    @property
    def view(self) -> View:
        return self.transaction or self.state.store

    @property
    def domain(self) -> Domain:
        return self.connection.domain

    def check_privileged(self) -> None:
        if not self.domain.privileged:
            raise XenError(EACCES, "for domain 0 only")

    def argument(self) -> bytes:
        """The payload as the one string it must be. Raises EINVAL."""
        argument, nul, rest = self.message.payload.partition(b"\0")
        if not nul or rest:
            raise XenError(EINVAL, "one NUL-terminated argument is wanted")
        return argument

    def arguments(self, *counts: int) -> list[bytes]:
        """The payload's strings. Raises EINVAL if they are not as many as one of ``counts``."""
        arguments = strings(self.message.payload)
        if len(arguments) not in counts:
            raise XenError(EINVAL, "wrong number of arguments")
        return arguments

    def path(self, raw: bytes, *, special: bool = False) -> str:
        return paths.canonical(raw, self.connection.home, self.domain.quota.path_max, special=special)

    def node(self, path: str, need: int) -> Node:
        return self.view.lookup(path, self.domain.who, need)

    def exists(self, path: str) -> bool:
        """Is there a node, as far as one who may write it can know? Raises EACCES to all others."""
        try:
            self.node(path, WRITE)
        except XenError as fault:
            if fault.errno != ENOENT:
                raise
            return False
        return True

    def changed(self, path: str, *old: Perms) -> None:
        """Tell the watches of a node that is there, now or at the commit; ``old`` are its perms of before."""
        if self.transaction is not None:
            self.transaction.note(path, exact=False)
            return
        node = self.view.find(path)
        assert node is not None
        self.changes.append(Change(path, False, (*old, *self.view.readable(path, node))))

    def removed(self, path: str, gone: dict[str, Node]) -> None:
        """Tell the watches of a node that is gone with all below it, now or at the commit."""
        if self.transaction is None:
            self.changes += self.state.watches.of_removal(gone, self.state.store.above(path))
            return
        for here in reversed(gone):
            self.transaction.note(here, exact=here != path)


class Op(NamedTuple):
    """How one type of message is handled."""

    #: gives the payload of its reply, or raises ``XenError``
    do: Callable[[Request], bytes]
    #: for domain 0 only
    privileged: bool = False
    #: takes part in the transaction that tx_id names; the others ignore tx_id
    in_transaction: bool = True


def number(raw: bytes, what: str, maximum: int) -> int:
    if not raw.isdigit() or len(raw) > 10 or int(raw) > maximum:
        raise XenError(EINVAL, f"no {what}")
    return int(raw)
