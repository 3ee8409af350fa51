"""xenstored: the state, domain 0's client and the guests' connections. The room's public face."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from math import inf
from typing import NamedTuple

from xenpvd.abi.io_xs_wire import XS_DIRECTORY, XS_GET_PERMS, XS_READ, XS_WATCH_EVENT
from xenpvd.abi.page import SharedPage
from xenpvd.backends.ops import EvtchnPort
from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore import perms as permissions
from xenpvd.backends.xenstore.call import call
from xenpvd.backends.xenstore.client import Client, refusal
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.outbox import Outbox
from xenpvd.backends.xenstore.quota import NAMES, USED
from xenpvd.backends.xenstore.request import State
from xenpvd.backends.xenstore.serve import RingServer
from xenpvd.backends.xenstore.watch import Delivery
from xenpvd.backends.xenstore.wire import ConnectionFault, Message
from xenpvd.errors import NotFound, XenError
from xenpvd.events import Publish
from xenpvd.figures import XenstoreStats
from xenpvd.views import XenstoreNode, XenstoreOperation, XenstoreQuota

log = logging.getLogger(__name__)

_LOOKS = (XS_DIRECTORY, XS_READ, XS_GET_PERMS)


class Session(NamedTuple):
    """What :meth:`Xenstore.open` gives: what it is, make a request, and end it all."""

    connection: Connection
    call: Callable[[Message], None]
    close: Callable[[], None]


class Xenstore:
    """The store of one daemon. Loop thread only.

    ``publish`` hears ``xenstore.fault`` (domid, why) when a guest's connection is cut off, and
    ``xenstore.lost`` (domid) when watch events are dropped, as it does not read. If a fault is ours and not
    the guest's, ``on_fault(task's name, exception)`` is called as well.
    """

    def __init__(
        self, publish: Publish, on_fault: Callable[[str, BaseException], None] | None = None
    ) -> None:
        self._publish = publish
        self._on_fault = on_fault
        self._state = State(self, time.time, time.monotonic)
        self._servers: dict[int, tuple[Connection, RingServer]] = {}
        self._outlets: dict[Connection, Callable[[Message], None]] = {}
        self._watch_events = 0
        #: domains that have no ring, and how to end each of their sessions
        self._ringless: dict[int, dict[Connection, Callable[[], None]]] = {}
        #: the daemon's own connection, as domain 0; fits ``ops.XenstoreOps``
        self.client = self.client_of("xenpvd")

    def client_of(self, name: str) -> Client:
        """One more connection of domain 0's; the history has what it does under ``name``."""
        connection = Connection(self._state.domains.of(0), name)
        client = Client(partial(self._call, connection), lambda: bool(self._servers))
        self._outlets[connection] = client.deliver
        return client

    def connect(
        self,
        domid: int,
        page: SharedPage,
        port: EvtchnPort,
        on_request: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve the ring in ``page``, which is emptied, and introduce the domain (@introduceDomain).

        ``on_request`` is called before each request is answered. ``clock`` gives seconds, and may stand still
        while the guest cannot run: by it events wait too long. ``page`` and ``port`` must stay until
        :meth:`disconnect` has returned. Raises ``ValueError`` for a domain that is connected.
        """
        if domid in self._state.introduced:
            raise ValueError(f"domain {domid} is connected")
        domain = self._state.domains.of(domid)
        connection = Connection(domain)
        connection.merges = True
        outbox = Outbox(connection, clock, lambda: self._publish("xenstore.lost", domid=domid))

        def handle(message: Message) -> None:
            if on_request is not None:
                on_request()
            self._call(connection, message)
            if self.client.looks and message.type in _LOOKS:
                self._note_look(connection, message)

        server = RingServer(
            f"xenstore-{domid}",
            page,
            port,
            outbox,
            handle=handle,
            reset=lambda: self._state.reset(connection),
            on_cut=lambda name, fault: self._cut(connection, name, fault),
            resting=lambda: domain.resting(time.monotonic()),
        )
        self._servers[domid] = connection, server
        self._outlets[connection] = server.deliver
        self._state.introduced[domid] = connection
        self._route(self._state.special(paths.INTRODUCE_DOMAIN, domid))

    # -- as :class:`xenpvd.backends.xenstore.request.Rings`

    def reset(self, domid: int) -> bool:
        if domid in self._ringless:
            self._state.introduced[domid] = None
            return True
        if domid not in self._servers:
            return False
        connection, server = self._servers[domid]
        self._state.introduced[domid] = connection
        server.restart()
        return True

    def release(self, domid: int) -> None:
        if domid in self._servers:
            self._servers[domid][1].halt()
        for end in tuple(self._ringless.get(domid, {}).values()):
            end()

    def print(self, text: str) -> None:
        log.info("%s", text)

    # -- for those who have no ring

    def open(
        self,
        domid: int,
        name: str,
        deliver: Callable[[Message], None],
        end: Callable[[], None] = lambda: None,
    ) -> Session:
        """A connection of ``domid``'s that is no ring: ``deliver`` gets its replies and events, ``end`` is
        called when the domain is released. Raises ``ValueError`` if it is released already."""
        if domid not in self._state.introduced:
            raise ValueError(f"domain {domid} is released")
        domain = self._state.domains.of(domid)
        connection = Connection(domain, name)
        self._outlets[connection] = deliver
        if domid in self._ringless:
            self._ringless[domid][connection] = end
        return Session(connection, partial(self._call, connection), partial(self._close, connection))

    def _close(self, connection: Connection) -> None:
        self._state.reset(connection)
        connection.deaf_until = inf  # there may be events for it on their way
        self._outlets.pop(connection, None)
        self._ringless.get(connection.domain.domid, {}).pop(connection, None)

    def introduce(self, domid: int) -> None:
        """Let a domain exist that has no ring, with a home as a toolstack makes it: ``data`` is its own."""
        home = paths.home(domid)
        for path, perms in ((home, ["n0", f"r{domid}"]), (f"{home}/data", [f"n{domid}"])):
            self.client.mkdir(path)
            self.client.set_perms(path, perms)
        self._state.introduced[domid] = None
        self._ringless[domid] = {}
        self._route(self._state.special(paths.INTRODUCE_DOMAIN, domid))

    async def disconnect(self, domid: int) -> None:
        """Stop serving a domain, and drop its watches, transactions and nodes (@releaseDomain).

        Does nothing if it is not connected.
        """
        if domid not in self._servers:
            return
        connection, server = self._servers.pop(domid)
        for look in self.client.looks.values():  # it will not look any more
            look.set()
        await server.close()
        self._state.reset(connection)
        del self._outlets[connection]
        if self._state.introduced.pop(domid, None) is not None:  # else it was released before
            changes, special = self._state.release(domid)
            self._route(chain(self._state.watches.fire(changes), special))

    def quotas(self, domid: int) -> list[XenstoreQuota]:
        """A domain's, and what it has taken of them; 0 is no limit."""
        domains = self._state.domains
        domain = domains.of(domid)
        return [
            XenstoreQuota(
                name, domains.get_quota(name, domid), getattr(domain, name) if name in USED else None
            )
            for name in NAMES
        ]

    def set_quota(self, domid: int, name: str, value: int) -> None:
        """For this domain alone, from now on. Raises ``NotFound``."""
        if name not in NAMES:
            why = f"cannot set the quota {name!r}: there is no such. Choose from {', '.join(NAMES)}."
            raise NotFound(why, "quota", name)
        self._state.domains.set_quota(name, value, domid)

    def stats(self, domid: int) -> XenstoreStats:
        """``domid``: whose quotas."""
        return XenstoreStats(
            self._state.history.counts(),
            self._watch_events,
            len(self._outlets),
            len(self._state.store),
            tuple(self.quotas(domid)),
        )

    def history(self) -> Iterator[XenstoreOperation]:
        """What was asked of the store lately, the newest first. To be used up at once."""
        return self._state.history.newest_first()

    def trace(self) -> None:
        """Print every request, as XS_CONTROL's "log on" does."""
        self._state.tracing = True

    def exists(self, path: str) -> bool:
        return self._state.store.find(path) is not None

    def tree(self, path: str = "/", depth: int | None = None) -> Iterable[XenstoreNode]:
        """The node and what is below it, parents first, ``depth`` levels further down at most (None: all).

        Raises ``XenstoreFault``.
        """
        if not self.exists(path):
            raise refusal(XS_DIRECTORY, path, "ENOENT")
        found = []
        stack = [(path, 0)]
        while stack:
            here, level = stack.pop()
            node = self._state.store.find(here)
            assert node is not None
            found.append(XenstoreNode.of(here, node.value, permissions.words(node.perms)))
            if depth is None or level < depth:
                stack.extend((paths.child(here, leaf), level + 1) for leaf in reversed(node.children))
        return found

    def _note_look(self, connection: Connection, message: Message) -> None:
        raw = message.payload.partition(b"\0")[0]
        with contextlib.suppress(XenError):
            path = paths.canonical(raw, connection.home, connection.domain.quota.path_max)
            if (look := self.client.looks.get(path)) is not None:
                look.set()

    def _call(self, connection: Connection, message: Message) -> None:
        self._route(call(self._state, connection, message))

    def _route(self, deliveries: Iterable[Delivery]) -> None:
        for connection, message in deliveries:
            if (deliver := self._outlets.get(connection)) is not None:  # else it has been cut off meanwhile
                self._watch_events += message.type == XS_WATCH_EVENT
                deliver(message)

    def _cut(self, connection: Connection, name: str, fault: BaseException) -> None:
        self._state.reset(connection)
        if isinstance(fault, ConnectionFault):
            why = str(fault)
        else:
            log.error("task %s failed", name, exc_info=fault)
            why = f"internal error: {fault!r}"
        self._publish("xenstore.fault", domid=connection.domain.domid, why=why)
        if self._on_fault is not None and not isinstance(fault, ConnectionFault):
            self._on_fault(name, fault)
