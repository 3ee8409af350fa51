"""Watches: who wants to hear of which paths, and what a change makes them hear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import EEXIST, ENOENT
from itertools import count
from math import inf
from operator import attrgetter
from typing import NamedTuple

from xenpvd.abi.io_xs_wire import XENSTORE_PAYLOAD_MAX, XS_WATCH_EVENT
from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.perms import READ, Perms, rights
from xenpvd.backends.xenstore.store import Change, Node
from xenpvd.backends.xenstore.wire import Message, join
from xenpvd.errors import XenError


class Delivery(NamedTuple):
    """A message and whom it goes to."""

    connection: Connection
    message: Message


@dataclass(frozen=True, slots=True)
class Watch:
    """``deepest`` is the level of the deepest paths that it hears of, ``inf`` without a ``depth``; ``prefix``
    is how many characters of a path its owner does not see, as it asked for a relative one; ``seq`` is the
    order of registration."""

    connection: Connection
    path: str
    token: bytes
    depth: int | None
    deepest: float
    prefix: int
    seq: int

    def event(self, path: str) -> list[Delivery]:
        """The event that says ``path``; none if it would be too long for the wire."""
        if len(path) - self.prefix + len(self.token) + 2 > XENSTORE_PAYLOAD_MAX:
            return []
        payload = join(path[self.prefix :], self.token)
        return [Delivery(self.connection, Message(XS_WATCH_EVENT, 0, 0, payload))]


_seq = attrgetter("seq")


def _distinct(watches: list[Watch]) -> list[Watch]:
    """Without those whose events are the same as another's, where the outbox would merge them."""
    said: set[tuple[Connection, int, bytes]] = set()
    kept = []
    for watch in watches:
        if watch.connection.merges and watch.depth is None:
            says = watch.connection, watch.prefix, watch.token
            if says in said:
                continue
            said.add(says)
        kept.append(watch)
    return kept


class Watches:
    """All watches of all connections."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[tuple[Connection, bytes], Watch]] = {}
        self._by_connection: dict[Connection, dict[tuple[str, bytes], Watch]] = {}
        self._seq = count()

    def has(self, connection: Connection, path: str, token: bytes) -> bool:
        return (path, token) in self._by_connection.get(connection, ())

    def add(self, connection: Connection, path: str, token: bytes, depth: int | None, prefix: int) -> Watch:
        """Raises ``XenError``: EEXIST for the same path and token, E2BIG and ENOMEM beyond the quotas."""
        if self.has(connection, path, token):
            raise XenError(EEXIST, path)
        domain, size = connection.domain, len(path) + len(token)
        domain.quota.check_watches(domain.watches)
        domain.check_memory(size)
        domain.watches += 1
        domain.memory += size
        deepest = inf if depth is None else paths.level(path) + depth
        watch = Watch(connection, path, token, depth, deepest, prefix, next(self._seq))
        self._by_connection.setdefault(connection, {})[path, token] = watch
        self._by_path.setdefault(path, {})[connection, token] = watch
        return watch

    def remove(self, connection: Connection, path: str, token: bytes) -> None:
        """Raises ``XenError`` ENOENT if there is none."""
        if not self.has(connection, path, token):
            raise XenError(ENOENT, path)
        connection.domain.watches -= 1
        connection.domain.memory -= len(path) + len(token)
        del self._by_connection[connection][path, token]
        del self._by_path[path][connection, token]
        if not self._by_path[path]:
            del self._by_path[path]

    def reset(self, connection: Connection) -> None:
        """Remove all of a connection's."""
        for path, token in tuple(self._by_connection.get(connection, ())):
            self.remove(connection, path, token)
        self._by_connection.pop(connection, None)

    def fire(self, changes: Iterable[Change]) -> Iterator[Delivery]:
        """What ``changes`` make heard, one after the other, in the order in which the watches were set.

        Made as it is taken, and nothing for who is deaf. A change and a watch have a fraction of a
        microsecond: a guest can have many of both.
        """
        if not self._by_path:
            return
        above: dict[str, list[Watch]] = {}
        for path, exact, readers in changes:
            heard = [*self._by_path.get(path, {}).values()] if exact else self._from_above(path, above)
            level = paths.level(path)
            may: dict[tuple[int, ...], bool] = {}
            for watch in heard:
                if watch.deepest < level:
                    continue
                who = watch.connection.domain.who
                if who not in may:
                    may[who] = any(rights(perms, who) & READ for perms in readers)
                if may[who] and not watch.connection.deaf:
                    yield from watch.event(path)

    def of_removal(self, gone: dict[str, Node], above: Perms) -> Iterator[Change]:
        """The changes that are heard of a removal: ``gone`` is in the order of ``View.remove``, ``above`` are
        the perms of the parent of the first."""
        top = next(iter(gone), None)
        for path, node in reversed(gone.items()):
            if path == top:
                yield Change(path, False, (node.perms, above))
            elif path in self._by_path:
                yield Change(path, True, (node.perms, gone[paths.parent(path)].perms))

    def _from_above(self, path: str, known: dict[str, list[Watch]]) -> list[Watch]:
        """The watches of ``path`` and of all above it (of those that say the same, perhaps only the first);
        ``known`` has those of some paths, and gets more."""
        new = []
        heard: list[Watch] = []
        for here in paths.upwards(path):
            if here in known:
                heard = known[here]
                break
            new.append(here)
        for here in reversed(new):
            if here in self._by_path:
                heard = _distinct(sorted([*heard, *self._by_path[here].values()], key=_seq))
            known[here] = heard
        return heard

    def fire_special(self, name: str, domid: int, perms: Perms) -> list[Delivery]:
        """``name`` (@introduceDomain, @releaseDomain) happened to ``domid``; watches with a depth, or of
        ``name/domid``, hear which domain it was."""
        detailed = f"{name}/{domid}"
        heard = [
            (watch, detailed if watch.depth else name)
            for watch in self._by_path.get(name, {}).values()
            if watch.depth != 0
        ]
        heard += [(watch, detailed) for watch in self._by_path.get(detailed, {}).values()]
        heard.sort(key=lambda entry: entry[0].seq)
        return [
            delivery
            for watch, path in heard
            if rights(perms, watch.connection.domain.who) & READ
            for delivery in watch.event(path)
        ]
