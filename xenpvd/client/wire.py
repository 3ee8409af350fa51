"""One connection to rpc.sock: lines of JSON, the daemon's greeting first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from pathlib import Path
from typing import Any, cast

from xenpvd.client.errors import ConnectionLost, Unreachable, refusal
from xenpvd.client.shapes import Hello
from xenpvd.errors import BadConfig, PermissionRefused, Unsupported

#: The major version of the API that this client speaks.
API_MAJOR = "1"

#: Longer answers than any that a daemon gives: who sends more is none.
LINE_MAX = 64 << 20

READ = 1 << 16

#: Seconds that a daemon has to take the last bytes
GRACE = 1.0


class Wire:
    """``hello`` is the daemon's greeting. Nothing is read but for who asks, so that a daemon notices a client
    that does not read."""

    hello: Hello

    def __init__(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.path = path
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()
        self._closed = False

    @classmethod
    async def open(cls, path: Path, timeout: float, by: Path | None = None) -> Wire:
        """Connect, and take the greeting within ``timeout`` seconds. ``by`` is another name of that very
        socket, which is used instead of the one that messages have.

        Raises :class:`Unreachable` and ``LimitReached``, which may pass, and what will not:
        ``PermissionRefused``, and ``Unsupported`` for a daemon of another API.
        """
        wire = None
        try:
            async with asyncio.timeout(timeout):
                wire = cls(path, *await asyncio.open_unix_connection(str(by or path)))
                await wire._greeted()
            return wire
        except BaseException as fault:
            if wire is not None:
                await wire.close()
            why = _why_not(fault, path, timeout)
            if why is None:
                raise
            raise why from None

    async def _greeted(self) -> None:
        message = await self.receive()
        match message:
            case {"error": error}:
                raise refusal(error)
            case {
                "method": "daemon.hello",
                "params": {
                    "api": str(api),
                    "epoch": str(),
                    "limits": {"message": int(), "in_flight": int()},
                } as hello,
            }:
                if api.partition(".")[0] != API_MAJOR:
                    raise Unsupported(
                        f"cannot use the daemon at {self.path}: it speaks the API {api}, this client "
                        f"{API_MAJOR}.x. Use a client of its version."
                    )
                self.hello = cast(Hello, hello)
            case _:
                raise ValueError("it does not greet as xenpvd does")

    async def receive(self) -> dict[str, Any]:
        """The next message; can be cancelled. Raises :class:`ConnectionLost`."""
        try:
            message = json.loads(await self.receive_line())
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise self._lost("what it says is no JSON-RPC")
        return message

    async def receive_line(self) -> bytes:
        """The next message, whatever it is, without its newline. Raises :class:`ConnectionLost`."""
        scanned = 0
        while (end := self._buffer.find(b"\n", scanned)) < 0:
            scanned = len(self._buffer)
            if scanned > LINE_MAX:
                raise self._lost("what it says has no end")
            self._buffer += await self._read()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def receive_raw(self) -> bytes:
        """The next bytes, after which nothing is a message any more. Raises :class:`ConnectionLost`."""
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            return data
        return await self._read()

    async def _read(self) -> bytes:
        try:
            data = await self._reader.read(READ)
        except OSError as fault:
            raise self._lost(str(fault.strerror or fault)) from None
        if not data:
            raise self._lost("the daemon ended it")
        return data

    def send(self, data: bytes) -> None:
        """A client that was left reads what the daemon had to say; so nothing is raised here."""
        if not self._writer.is_closing():
            self._writer.write(data)

    def send_with(self, data: bytes, fd: int) -> None:
        """As :meth:`send`, with ``fd`` alongside, which stays the caller's; nothing may be on its way yet.
        Raises :class:`ConnectionLost`, and ``BadConfig`` for a descriptor that is not open."""
        number = self._writer.get_extra_info("socket").fileno()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, number)
        try:
            sent = socket.send_fds(sock, [data], [fd])
        except OSError as fault:
            if fault.errno == errno.EBADF:
                raise BadConfig(f"cannot send descriptor {fd}: it is not open. Open the image.") from None
            why = f"descriptor {fd} was not sent to {self.path}: {fault.strerror}. Send it again."
            raise ConnectionLost(why, maybe_done=False) from None
        finally:
            sock.detach()  # it is the writer's
        self.send(data[sent:])

    def end_input(self) -> None:
        """Nothing more will be sent; the daemon answers what it was asked, and ends the connection."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def drain(self) -> None:
        """Wait while the daemon does not read."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    @property
    def ended(self) -> bool:
        """The daemon has left, or we have."""
        return self._writer.is_closing() or self._reader.at_eof()

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        """Send a request and wait for its answer, where nothing but notifications can come before it."""
        self.send(self.encode(method, params, 0))
        return await self.answer_to(0)

    async def answer_to(self, id_: int) -> Any:
        """Wait for it. Raises as :meth:`answer`."""
        while (message := await self.receive()).get("id", message) not in (id_, None):
            pass
        return self.answer(message)

    def encode(self, method: str, params: dict[str, Any], id_: int) -> bytes:
        """A request as the daemon takes it. Raises ``BadConfig`` for one whose refusal the daemon could not
        even match to it: no JSON, or too long."""
        try:
            request = {"jsonrpc": "2.0", "method": method, "params": params, "id": id_}
            line = json.dumps(request, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        except ValueError as fault:
            raise BadConfig(f"cannot call {method}: {fault}.") from None
        limit = self.hello["limits"]["message"]
        if len(line) > limit:
            raise BadConfig(f"cannot call {method}: {len(line)} bytes, and {limit} are allowed. Send less.")
        return line

    def answer(self, message: dict[str, Any]) -> Any:
        """The result in a reply. Raises :class:`RpcError`; :class:`ConnectionLost` if it is no reply."""
        if "result" in message:
            return message["result"]
        try:
            fault = refusal(message.get("error"))
        except ValueError as broken:
            raise self._lost(f"what it says is no JSON-RPC: {broken}") from None
        raise fault

    def _lost(self, why: str) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self.path} was lost: {why}", maybe_done=True)

    async def close(self) -> None:
        """What was sent and not yet taken has a moment to be. Idempotent."""
        if self._closed:
            return
        self._closed = True  # wait_closed() is for one waiter: who is cancelled there cancels it for all
        self._writer.close()
        try:
            async with asyncio.timeout(GRACE):
                await self._writer.wait_closed()
        except OSError:  # TimeoutError is one
            self.abort()

    def abort(self) -> None:
        """As :meth:`close`, at once."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the connection with it
            self._writer.transport.abort()


def _why_not(fault: BaseException, path: Path, timeout: float) -> Exception | None:
    """``fault`` in an operator's words; None if it has them."""
    match fault:
        case FileNotFoundError():
            return Unreachable(f"cannot reach {path}: it is missing. Start its guest.")
        case ConnectionRefusedError():
            return Unreachable(f"cannot reach {path}: its daemon is dead. Start it again.")
        case PermissionError():
            return PermissionRefused(
                f"cannot reach {path}: no permission. Run this as root, or join the group that owns it."
            )
        case TimeoutError():
            return Unreachable(f"cannot reach {path}: it does not answer within {timeout:g} s. Try again.")
        case OSError():
            return Unreachable(f"cannot reach {path}: {fault.strerror or fault}. Try again.")
        case ConnectionLost():
            return Unreachable(f"cannot use {path}: {str(fault).partition(' was lost: ')[2]}. Try again.")
        case ValueError():
            return Unreachable(f"cannot use {path}: {fault}. Is it xenpvd's?")
    return None
