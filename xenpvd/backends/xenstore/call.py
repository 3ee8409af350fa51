"""xenstored's one door: a request comes in, a reply and events come out.

Each family of operations is a file with an ``OPERATIONS`` table of handlers ``do_*``. A handler gives the
payload of its reply or raises ``XenError``, whose one translation to a name on the wire is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import E2BIG, ENOSYS
from itertools import chain

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore import control, domain_ops, node_ops
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.request import Request, State
from xenpvd.backends.xenstore.watch import Delivery
from xenpvd.backends.xenstore.wire import Message, join
from xenpvd.errors import XenError

_OPERATIONS = node_ops.OPERATIONS | domain_ops.OPERATIONS | control.OPERATIONS


def call(state: State, connection: Connection, message: Message) -> Iterator[Delivery]:
    """Do what a message asks for, at once. Gives the messages that follow from it in order; among them, to
    ``connection``, exactly one reply.

    They are made as they are taken: a commit can make many more events than anybody lets wait for him.
    """
    request = Request(state, connection, message)
    try:
        type_, payload = message.type, _perform(request)
        if len(payload) > abi.XENSTORE_PAYLOAD_MAX:
            raise XenError(E2BIG, "the reply is too long")
    except XenError as fault:
        type_, payload = abi.XS_ERROR, join(abi.XSD_ERRORS.get(fault.errno, "EINVAL"))
    state.history.record(connection, message, type_, payload)
    if state.tracing and state.rings is not None:
        state.rings.print(state.history.last())
    reply = Message(type_, message.req_id, message.tx_id, payload)
    return chain(
        state.watches.fire(request.changes), request.events, (Delivery(connection, reply),), request.after
    )


def _perform(request: Request) -> bytes:
    message = request.message
    op = _OPERATIONS.get(message.type)
    if op is None:
        raise XenError(ENOSYS, f"no operation {message.type}")
    if op.privileged:
        request.check_privileged()
    if op.in_transaction and message.tx_id:
        request.transaction = request.connection.transaction(message.tx_id)
    return op.do(request)
