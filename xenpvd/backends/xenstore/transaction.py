"""A transaction: a private view of the nodes it has touched, laid over the store.

A node is copied when it is first touched, read or written, found or missing. The commit fails if one of them
has changed since in the store, and only then: changes elsewhere are no conflict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EAGAIN, ENOMEM, ENOSPC

from xenpvd.backends.xenstore.domain import Domain
from xenpvd.backends.xenstore.perms import READ, Perms, rights
from xenpvd.backends.xenstore.store import NODE_HEADER, Change, Node, Store, View
from xenpvd.errors import XenError


@dataclass(slots=True)
class _Access:
    node: Node | None
    #: as it was in the store; None if there was no such node
    generation: int | None
    perms: Perms | None
    modified: bool = False
    #: the event that a commit fires: of this node only (True), or seen from above as well (False)
    exact: bool | None = None


class Transaction(View):
    """Begins at ``began`` (seconds), and may be committed once. Its creator pays for all copies, until
    :meth:`forget`."""

    def __init__(self, store: Store, creator: Domain, began: float = 0.0) -> None:
        self.began = began
        #: whose change made the commit fail, if it was another's, of a node that the creator may read
        self.rival: int | None = None
        self._store = store
        self._creator = creator
        self._accessed: dict[str, _Access] = {}
        self._owned: Counter[int] = Counter()
        self._memory = 0
        #: what each owner will pay more, or less
        self._owed: Counter[int] = Counter()
        self._failed = 0  # what a commit fails with, for what has failed before

    def find(self, path: str) -> Node | None:
        return self._access(path).node

    def owned(self, domid: int) -> int:
        return self._store.owned(domid) + self._owned[domid]

    def next_generation(self) -> int:
        return self._store.next_generation()

    def write(self, path: str, value: bytes, by: Domain) -> None:
        with self._all_or_nothing():
            super().write(path, value, by)

    def create(self, path: str, value: bytes, by: Domain) -> None:
        with self._all_or_nothing():
            super().create(path, value, by)

    def set_perms(self, path: str, perms: Perms, by: Domain) -> None:
        with self._all_or_nothing():
            super().set_perms(path, perms, by)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """What cannot be written makes the whole transaction fail."""
        try:
            yield
        except XenError:
            self._failed = self._failed or ENOMEM
            raise

    def _check_nodes(self, by: Domain, more: int) -> None:
        try:
            super()._check_nodes(by, more)
        except XenError:
            self._failed = self._failed or ENOSPC
            raise

    def note(self, path: str, exact: bool) -> None:
        """Remember to fire watches for a node that was touched."""
        access = self._accessed[path]
        access.exact = exact and access.exact is not False

    def commit(self) -> list[Change]:
        """Make it all real at once, and return what watches have to hear of, in the order of first touch.

        Raises ``XenError`` and changes nothing: EAGAIN (conflict), ENOSPC and ENOMEM (an operation in it has
        failed for want of quota, or there is none left for its nodes, its own or their owner's).
        """
        if self._failed:
            raise XenError(self._failed, "an operation of the transaction has failed")
        conflicts = [path for path, access in self._accessed.items() if self._has_changed(path, access)]
        if conflicts:
            self.rival = next(filter(None, map(self._blame, conflicts)), None)
            raise XenError(EAGAIN, conflicts[0])
        creator = self._creator
        creator.quota.check_nodes(creator.nodes, self._owned[creator.domid])
        if not creator.privileged:
            for owner, more in self._owed.items():
                copies = self._memory if owner == creator.domid else 0  # they go now
                self._store.account(owner).check_memory(more, less=copies)
        for path, access in self._accessed.items():
            if access.modified:
                self._store.put(path, access.node)
        return list(self._changes())

    def _has_changed(self, path: str, access: _Access) -> bool:
        now = self._store.find(path)
        return (None if now is None else now.generation) != access.generation

    def _blame(self, path: str) -> int | None:
        """Who has changed it; None for ourselves, and for what is none of our business: or whoever asks in
        vain for another's nodes could keep that one from working."""
        seen, now = self._accessed[path].perms, self._store.find(path)
        perms = now.perms if seen is None and now is not None else seen
        if perms is not None and not rights(perms, self._creator.who) & READ:
            return None
        writer = self._store.writer(path)
        return None if writer == self._creator.domid else writer

    def forget(self) -> None:
        """Drop everything."""
        self._accessed.clear()
        self._pay(-self._memory)

    def _changes(self) -> Iterable[Change]:
        for path, access in self._accessed.items():
            if access.exact is None:
                continue
            readers: tuple[Perms, ...] = () if access.perms is None else (access.perms,)
            if access.node is not None:
                readers += self._store.readable(path, access.node)
            yield Change(path, access.exact, readers)

    def _access(self, path: str) -> _Access:
        access = self._accessed.get(path)
        if access is None:
            node = self._store.find(path)
            size = NODE_HEADER + len(path) if node is None else node.memory(path)
            with self._all_or_nothing():
                self._creator.quota.check_transaction_nodes(len(self._accessed) + 1)
                self._check_memory(self._creator, self._creator.domid, size)
            self._pay(size)
            access = (
                _Access(None, None, None)
                if node is None
                else _Access(node.copy(), node.generation, node.perms)
            )
            self._accessed[path] = access
        return access

    def _touch(self, path: str) -> Node:
        access = self._access(path)
        assert access.node is not None
        access.modified = True
        return access.node

    def _insert(self, path: str, node: Node) -> None:
        access = self._access(path)
        access.node, access.modified = node, True

    def _take(self, path: str) -> Node | None:
        access = self._access(path)
        node = access.node
        if node is not None:
            access.node, access.modified = None, True
        return node

    def _payer(self, owner: int) -> Domain:
        return self._creator

    def _charge(self, owner: int, nodes: int, memory: int) -> None:
        self._owned[owner] += nodes
        self._owed[owner] += memory
        self._pay(memory)

    def _pay(self, size: int) -> None:
        self._memory += size
        self._creator.memory += size
