"""xenstored's one door: a request comes in, a reply and events come out.

Each family of operations is a file with an ``OPERATIONS`` table of handlers ``do_*``. A handler gives the
payload of its reply or raises ``XenError``, whose one translation to a name on the wire is here.
"""

from __future__ import annotations

from errno import E2BIG, ENOSYS

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore import control, domain_ops, node_ops
from xenpvd.backends.xenstore.connection import Connection
from xenpvd.backends.xenstore.request import Request, State
from xenpvd.backends.xenstore.watch import Delivery
from xenpvd.backends.xenstore.wire import Message, join
from xenpvd.errors import XenError

_OPERATIONS = node_ops.OPERATIONS | domain_ops.OPERATIONS | control.OPERATIONS

_NAMES = {value: name[3:] for name, value in vars(abi).items() if name.startswith("XS_")}


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
    if state.tracing and state.rings is not None:
        state.rings.print(describe(connection.domid, message, type_, payload))
    reply = Message(type_, message.req_id, message.tx_id, payload)
    return [*request.events, Delivery(connection, reply), *request.after]


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


def describe(domid: int, message: Message, type_: int, payload: bytes) -> str:
    """A request and its answer on a line, for people."""
    name = _NAMES.get(message.type, str(message.type))
    asked = message.payload.rstrip(b"\0").replace(b"\0", b" ")[:512]
    told = payload.rstrip(b"\0").decode("ascii", "replace") if type_ == abi.XS_ERROR else "OK"
    return f"d{domid} tx {message.tx_id}: {name} {ascii(asked)[2:-1]} -> {told}"
