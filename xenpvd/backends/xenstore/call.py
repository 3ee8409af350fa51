"""xenstored's operations: a request comes in, a reply and events come out.

``do_*`` are handlers by the name of their message. Each gives the payload of its reply or raises
``XenError``, whose one translation to a name on the wire is in :func:`call`. Payloads and errors:
docs/misc/xenstore.txt of Xen; in doubt as Xen's own xenstored answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from errno import E2BIG, EACCES, EBUSY, EINVAL, ENOENT, ENOSYS, EPERM
from typing import NamedTuple

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore import perms as permissions
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.perms import OWNER, READ, WRITE, Perms
from xenpvd.backends.xenstore.store import Node, Store, View
from xenpvd.backends.xenstore.transaction import Transaction
from xenpvd.backends.xenstore.watch import Delivery, Watches
from xenpvd.backends.xenstore.wire import Message, join, strings
from xenpvd.errors import XenError

OK = join("OK")
DOMID_SELF = 0x7FF0


class State:
    """All that a request can see or change. ``introduced`` holds the domids that are connected."""

    def __init__(self) -> None:
        self.store = Store()
        self.watches = Watches()
        self.introduced: set[int] = {0}

    def reset(self, connection: Connection) -> None:
        """Drop a connection's watches and transactions."""
        self.watches.reset(connection)
        connection.reset_transactions()

    def special(self, name: str, domid: int) -> list[Delivery]:
        """The events of @introduceDomain or @releaseDomain."""
        node = self.store.find(name)
        assert node is not None
        return self.watches.fire_special(name, domid, node.perms)


@dataclass(slots=True)
class Request:
    """One request on its way: ``events`` go out before its reply, ``after`` behind it."""

    state: State
    connection: Connection
    message: Message
    transaction: Transaction | None = None
    events: list[Delivery] = field(default_factory=list)
    after: list[Delivery] = field(default_factory=list)

    @property
    def view(self) -> View:
        return self.transaction or self.state.store

    @property
    def domid(self) -> int:
        return self.connection.domid

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
        return paths.canonical(raw, self.connection.home, self.connection.quota.path_max, special=special)

    def node(self, path: str, need: int) -> Node:
        return self.view.lookup(path, self.domid, need)

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
        self.events += self.state.watches.fire(path, (*old, *self.view.readable(path, node)))

    def removed(self, path: str, readers: tuple[Perms, ...], *, exact: bool) -> None:
        """Tell the watches of a node that is gone, now or at the commit."""
        if self.transaction is not None:
            self.transaction.note(path, exact)
        else:
            self.events += self.state.watches.fire(path, readers, exact=exact)


def _number(raw: bytes, what: str, maximum: int) -> int:
    if not raw.isdigit() or len(raw) > 10 or int(raw) > maximum:
        raise XenError(EINVAL, f"no {what}")
    return int(raw)


def _domid(request: Request) -> int:
    return _number(request.argument(), "domid", 65535)


def do_read(request: Request) -> bytes:
    return request.node(request.path(request.argument()), READ).value


def do_write(request: Request) -> bytes:
    raw, nul, value = request.message.payload.partition(b"\0")
    if not nul:
        raise XenError(EINVAL, "no NUL after the path")
    path = request.path(raw)
    if request.exists(path):
        request.view.write(path, value, request.connection.quota)
    else:
        request.view.create(path, value, request.domid, request.connection.quota)
    request.changed(path)
    return OK


def do_mkdir(request: Request) -> bytes:
    path = request.path(request.argument())
    if not request.exists(path):
        request.view.create(path, b"", request.domid, request.connection.quota)
        request.changed(path)
    return OK


def do_rm(request: Request) -> bytes:
    path = request.path(request.argument())
    if not request.exists(path):
        if request.view.find(paths.parent(path)) is None:
            raise XenError(ENOENT, paths.parent(path))
        return OK
    if path == "/":
        raise XenError(EINVAL, "the root stays")
    for removed, readers in request.view.remove(path):
        request.removed(removed, readers, exact=removed != path)
    return OK


def do_directory(request: Request) -> bytes:
    return join(*request.node(request.path(request.argument()), READ).children)


def do_directory_part(request: Request) -> bytes:
    raw, offset = request.arguments(2)
    node = request.node(request.path(raw), READ)
    generation = join(str(node.generation))
    names = join(*node.children)[_number(offset, "offset", 0xFFFF_FFFF) :]
    room = abi.XENSTORE_PAYLOAD_MAX - len(generation)
    if len(names) < room:
        return generation + names + b"\0"
    return generation + names[: names.rfind(b"\0", 0, room) + 1]


def do_get_perms(request: Request) -> bytes:
    return join(*permissions.words(request.node(request.path(request.argument(), special=True), READ).perms))


def do_set_perms(request: Request) -> bytes:
    raw, *words = strings(request.message.payload) or [b""]
    if not words:
        raise XenError(EINVAL, "no permissions")
    request.connection.quota.check_permissions(len(words))
    perms = permissions.parse(words)
    path = request.path(raw, special=True)
    old = request.node(path, WRITE | OWNER).perms
    if not request.connection.privileged and perms[0].domid != old[0].domid:
        raise XenError(EPERM, "a guest cannot give a node away")
    request.view.set_perms(path, perms)
    request.changed(path, old)
    return OK


def do_watch(request: Request) -> bytes:
    raw, token, *depth = request.arguments(2, 3)
    limit = _number(depth[0], "depth", 0x7FFF_FFFF) if depth else None
    path = request.path(raw, special=True)
    prefix = 0 if raw[:1] in (b"/", b"@") else len(request.connection.home) + 1
    watch = request.state.watches.add(request.connection, path, token, limit, prefix)
    request.after += watch.event(path)
    return OK


def do_unwatch(request: Request) -> bytes:
    raw, token = request.arguments(2)
    request.state.watches.remove(request.connection, request.path(raw, special=True), token)
    return OK


def do_reset_watches(request: Request) -> bytes:
    request.state.reset(request.connection)
    return OK


def do_transaction_start(request: Request) -> bytes:
    if request.transaction is not None:
        raise XenError(EBUSY, "transactions do not nest")
    connection = request.connection
    transaction = Transaction(request.state.store, connection.domid, connection.quota)
    return join(str(connection.begin(transaction)))


def do_transaction_end(request: Request) -> bytes:
    verdict = request.argument()
    if verdict not in (b"T", b"F"):
        raise XenError(EINVAL, "T or F is wanted")
    if request.transaction is None:
        raise XenError(ENOENT, "no transaction")
    request.connection.end(request.message.tx_id)
    if verdict == b"T":
        for change in request.transaction.commit():
            request.events += request.state.watches.fire(change.path, change.readers, exact=change.exact)
    return OK


def do_get_domain_path(request: Request) -> bytes:
    return join(paths.home(_domid(request)))


def do_is_domain_introduced(request: Request) -> bytes:
    return join("T" if _domid(request) in (*request.state.introduced, DOMID_SELF) else "F")


def do_nothing_yet(request: Request) -> bytes:
    raise XenError(ENOSYS, "domain 0 has its own ways to do this")


class _Op(NamedTuple):
    do: Callable[[Request], bytes]
    #: for domain 0 only
    privileged: bool = False
    #: takes part in the transaction that tx_id names; the others ignore tx_id
    in_transaction: bool = True


_OPS = {
    abi.XS_CONTROL: _Op(do_nothing_yet, privileged=True),
    abi.XS_DIRECTORY: _Op(do_directory),
    abi.XS_READ: _Op(do_read),
    abi.XS_GET_PERMS: _Op(do_get_perms),
    abi.XS_WATCH: _Op(do_watch, in_transaction=False),
    abi.XS_UNWATCH: _Op(do_unwatch, in_transaction=False),
    abi.XS_TRANSACTION_START: _Op(do_transaction_start),
    abi.XS_TRANSACTION_END: _Op(do_transaction_end),
    abi.XS_INTRODUCE: _Op(do_nothing_yet, privileged=True),
    abi.XS_RELEASE: _Op(do_nothing_yet, privileged=True),
    abi.XS_GET_DOMAIN_PATH: _Op(do_get_domain_path),
    abi.XS_WRITE: _Op(do_write),
    abi.XS_MKDIR: _Op(do_mkdir),
    abi.XS_RM: _Op(do_rm),
    abi.XS_SET_PERMS: _Op(do_set_perms),
    abi.XS_IS_DOMAIN_INTRODUCED: _Op(do_is_domain_introduced, privileged=True),
    abi.XS_RESUME: _Op(do_nothing_yet, privileged=True),
    abi.XS_SET_TARGET: _Op(do_nothing_yet, privileged=True),
    abi.XS_RESET_WATCHES: _Op(do_reset_watches),
    abi.XS_DIRECTORY_PART: _Op(do_directory_part),
}


def call(state: State, connection: Connection, message: Message) -> list[Delivery]:
    """Do what a message asks for. Returns the messages that follow from it in order; among them, to
    ``connection``, exactly one reply."""
    request = Request(state, connection, message)
    try:
        type_, payload = message.type, _perform(request)
        if len(payload) > abi.XENSTORE_PAYLOAD_MAX:
            raise XenError(E2BIG, "the reply is too long")
    except XenError as fault:
        type_, payload = abi.XS_ERROR, join(abi.XSD_ERRORS.get(fault.errno, "EINVAL"))
    reply = Message(type_, message.req_id, message.tx_id, payload)
    return [*request.events, Delivery(connection, reply), *request.after]


def _perform(request: Request) -> bytes:
    message = request.message
    op = _OPS.get(message.type)
    if op is None:
        raise XenError(ENOSYS, f"no operation {message.type}")
    if op.privileged and not request.connection.privileged:
        raise XenError(EACCES, "for domain 0 only")
    if op.in_transaction and message.tx_id:
        request.transaction = request.connection.transaction(message.tx_id)
    return op.do(request)
