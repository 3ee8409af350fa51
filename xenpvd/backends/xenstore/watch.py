"""Watches: who wants to hear of which paths, and what a change makes them hear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from errno import EEXIST, ENOENT
from itertools import count
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
    """``depth`` limits how many levels below ``path`` count; ``prefix`` is how many characters of a path its
    owner does not see, as it asked for a relative one; ``seq`` is the order of registration."""

    connection: Connection
    path: str
    token: bytes
    depth: int | None
    prefix: int
    seq: int

    def reaches(self, path: str) -> bool:
        """Is ``path``, its own or one below, near enough?"""
        return self.depth is None or paths.level(path) - paths.level(self.path) <= self.depth

    def event(self, path: str) -> list[Delivery]:
        """The event that says ``path``; none if it would be too long for the wire."""
        payload = join(path[self.prefix :], self.token)
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            return []
        return [Delivery(self.connection, Message(XS_WATCH_EVENT, 0, 0, payload))]


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
        watch = Watch(connection, path, token, depth, prefix, next(self._seq))
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

        Made as it is taken, and nothing for who is deaf.
        """
        if not self._by_path:
            return
        above: dict[str, list[Watch]] = {}
        for path, exact, readers in changes:
            heard = [*self._by_path.get(path, {}).values()] if exact else self._from_above(path, above)
            for watch in heard:
                who = watch.connection
                if (
                    not who.deaf
                    and watch.reaches(path)
                    and any(rights(perms, who.domain.who) & READ for perms in readers)
                ):
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
        """The watches of ``path`` and of all above it; ``known`` has those of some paths, and gets more."""
        new = []
        heard: list[Watch] = []
        for here in paths.upwards(path):
            if here in known:
                heard = known[here]
                break
            new.append(here)
        for here in reversed(new):
            if here in self._by_path:
                heard = sorted([*heard, *self._by_path[here].values()], key=lambda watch: watch.seq)
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
