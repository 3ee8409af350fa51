"""The operations on nodes, watches and transactions. Payloads and errors: docs/misc/xenstore.txt of Xen; in
doubt as Xen's own xenstored answers."""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENOENT, EPERM

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore import path as paths
from xenpvd.backends.xenstore import perms as permissions
from xenpvd.backends.xenstore.perms import OWNER, READ, WRITE
from xenpvd.backends.xenstore.request import OK, Op, Request, number
from xenpvd.backends.xenstore.transaction import Transaction
from xenpvd.backends.xenstore.wire import join, strings
from xenpvd.errors import XenError


def do_read(request: Request) -> bytes:
    return request.node(request.path(request.argument()), READ).value


def do_write(request: Request) -> bytes:
    raw, nul, value = request.message.payload.partition(b"\0")
    if not nul:
        raise XenError(EINVAL, "no NUL after the path")
    path = request.path(raw)
    if request.exists(path):
        request.view.write(path, value, request.domain)
    else:
        request.view.create(path, value, request.domain)
    request.changed(path)
    return OK


def do_mkdir(request: Request) -> bytes:
    path = request.path(request.argument())
    if not request.exists(path):
        request.view.create(path, b"", request.domain)
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
    request.removed(path, request.view.remove(path, request.domain))
    return OK


def do_directory(request: Request) -> bytes:
    return join(*request.node(request.path(request.argument()), READ).children)


def do_directory_part(request: Request) -> bytes:
    raw, offset = request.arguments(2)
    node = request.node(request.path(raw), READ)
    generation = join(str(node.generation))
    names = join(*node.children)[number(offset, "offset", 0xFFFF_FFFF) :]
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
    request.domain.quota.check_permissions(len(words))
    perms = permissions.parse(words)
    path = request.path(raw, special=True)
    old = request.node(path, WRITE | OWNER).perms
    if not request.domain.privileged and perms[0].domid != old[0].domid:
        raise XenError(EPERM, "a guest cannot give a node away")
    request.view.set_perms(path, perms, request.domain)
    request.changed(path, old)
    return OK


def do_watch(request: Request) -> bytes:
    raw, token, *depth = request.arguments(2, 3)
    limit = number(depth[0], "depth", 0x7FFF_FFFF) if depth else None
    path = request.path(raw, special=True)
    home = request.connection.home
    prefix = 0 if raw[:1] in (b"/", b"@") else len(home) + 1
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
    state = request.state
    return join(str(request.connection.begin(Transaction(state.store, request.domain, state.clock()))))


def do_transaction_end(request: Request) -> bytes:
    verdict = request.argument()
    if verdict not in (b"T", b"F"):
        raise XenError(EINVAL, "T or F is wanted")
    transaction, state = request.transaction, request.state
    if transaction is None:
        raise XenError(ENOENT, "no transaction")
    try:
        if verdict == b"T":
            request.changes += transaction.commit()
    finally:
        request.connection.end(request.message.tx_id)
        if transaction.rival is not None:
            now = state.clock()
            state.domains.of(transaction.rival).rest(now, now - transaction.began)
    return OK


OPERATIONS = {
    abi.XS_DIRECTORY: Op(do_directory),
    abi.XS_READ: Op(do_read),
    abi.XS_GET_PERMS: Op(do_get_perms),
    abi.XS_WATCH: Op(do_watch, in_transaction=False),
    abi.XS_UNWATCH: Op(do_unwatch, in_transaction=False),
    abi.XS_TRANSACTION_START: Op(do_transaction_start),
    abi.XS_TRANSACTION_END: Op(do_transaction_end),
    abi.XS_WRITE: Op(do_write),
    abi.XS_MKDIR: Op(do_mkdir),
    abi.XS_RM: Op(do_rm),
    abi.XS_SET_PERMS: Op(do_set_perms),
    abi.XS_RESET_WATCHES: Op(do_reset_watches),
    abi.XS_DIRECTORY_PART: Op(do_directory_part),
}
