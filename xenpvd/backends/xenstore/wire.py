"""xenstore messages as bytes: an incremental parser and the builders."""

from __future__ import annotations

from typing import NamedTuple

from xenpvd.abi.io_xs_wire import XENSTORE_ERROR_PROTO, XENSTORE_PAYLOAD_MAX, XSD_SOCKMSG
from xenpvd.errors import GuestFault


class ConnectionFault(GuestFault):
    """The peer broke the protocol; ``error`` is the XENSTORE_ERROR_* of its ring page."""

    def __init__(self, error: int, why: str) -> None:
        super().__init__(why)
        self.error = error


class Message(NamedTuple):
    """One request, reply or event. ``type`` is XS_*; ids are unsigned 32-bit."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes


class Parser:
    """Cuts a stream of bytes that comes in pieces of any size into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Message | None:
        """The next whole message, None while there is none.

        Raises :class:`ConnectionFault` for a length above XENSTORE_PAYLOAD_MAX, once its header is here.
        """
        if len(self._buffer) < XSD_SOCKMSG.size:
            return None
        type_, req_id, tx_id, length = XSD_SOCKMSG.unpack_from(self._buffer)
        if length > XENSTORE_PAYLOAD_MAX:
            raise ConnectionFault(
                XENSTORE_ERROR_PROTO, f"a message of {length} bytes, {XENSTORE_PAYLOAD_MAX} at most"
            )
        end = XSD_SOCKMSG.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[XSD_SOCKMSG.size : end])
        del self._buffer[:end]
        return Message(type_, req_id, tx_id, payload)


def encode(message: Message) -> bytes:
    """The message's bytes; its payload must be within XENSTORE_PAYLOAD_MAX."""
    assert len(message.payload) <= XENSTORE_PAYLOAD_MAX
    return XSD_SOCKMSG.pack(*message[:3], len(message.payload)) + message.payload


def strings(payload: bytes) -> list[bytes]:
    """The NUL-terminated strings of a payload; bytes after the last NUL are no string."""
    return payload.split(b"\0")[:-1]


def join(*parts: bytes | str) -> bytes:
    """A payload of NUL-terminated strings."""
    return b"".join((part.encode() if isinstance(part, str) else part) + b"\0" for part in parts)
