"""A synchronous JSON-RPC client of rpc.sock, by stdlib socket and json."""

from __future__ import annotations

import json
import select
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

#: The major version of the API that this client speaks.
API_MAJOR = "1"


INVALID_PARAMS = -32602
GUEST_STATE = 1001


class RpcFault(Exception):
    """The daemon refuses, or would: ``code`` and ``data`` as in the API's document, with a ``reason``."""

    def __init__(self, code: int, message: str, data: dict[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class NoAnswer(Exception):
    """The daemon left in the middle of a call, or says nothing."""


class Client:
    """One connection. ``hello`` is the daemon's greeting. A context manager; not for several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._next_id = 1
        self._notes: deque[tuple[str, dict[str, Any]]] = deque()  # that came while a call was under way
        self.hello: dict[str, Any] = {}

    @classmethod
    def connect(cls, path: Path, timeout: float = 5.0) -> Client:
        """Raises OSError (as FileNotFoundError, ConnectionRefusedError), :class:`NoAnswer`,
        :class:`RpcFault` (too many clients)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(str(path))
            client = cls(sock)
            client._greeted()
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return client

    def _greeted(self) -> None:
        message = self._receive()
        if "error" in message:
            raise _fault(message)
        self.hello = message.get("params", {})
        api = str(self.hello.get("api"))
        if message.get("method") != "daemon.hello" or api.partition(".")[0] != API_MAJOR:
            raise NoAnswer(
                f"it speaks another API ({api}, not {API_MAJOR}.x): use the xenpvctl that came with it"
            )

    def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        timeout: float | None = None,
        fd: int | None = None,
    ) -> Any:
        """The result of ``method``, which ``fd`` goes along with. Notifications that come first wait for
        :meth:`notifications`.

        Raises :class:`RpcFault`, :class:`NoAnswer`.
        """
        id_ = self._next_id
        self._next_id += 1
        self._sock.settimeout(timeout)
        request = {"jsonrpc": "2.0", "method": method, "params": params or {}, "id": id_}
        try:
            line = json.dumps(request, allow_nan=False).encode() + b"\n"
        except ValueError:
            words = f"cannot call {method}: a number is not finite, or too large."
            raise RpcFault(INVALID_PARAMS, words, {"reason": "VALIDATION"}) from None
        try:
            sent = 0 if fd is None else socket.send_fds(self._sock, [line], [fd])
            self._sock.sendall(line[sent:])
        except (ConnectionError, TimeoutError):
            pass  # it may have said why before it left
        except OSError as fault:  # it does not know that it is asked
            raise NoAnswer(f"cannot call {method}: {fault.strerror}") from None
        while True:
            message = self._receive()
            if message.get("id") == id_ or ("error" in message and message.get("id") is None):
                break
            if "method" in message:
                self._notes.append((message["method"], message.get("params", {})))
        if "error" in message:
            raise _fault(message)
        return message["result"]

    def notifications(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(method, params) of each, as they come; ends with the connection."""
        self._sock.settimeout(None)
        while True:
            while self._notes:
                yield self._notes.popleft()
            try:
                message = self._receive()
            except NoAnswer:
                return
            if "method" in message:
                yield message["method"], message.get("params", {})

    def arrived(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The notifications that are there already; never waits. Raises :class:`NoAnswer` at the end."""
        while self._notes:
            yield self._notes.popleft()
        while self._buffer.find(b"\n") >= 0 or select.select([self._sock], [], [], 0)[0]:
            message = self._receive()
            if "method" in message:
                yield message["method"], message.get("params", {})

    def attach(self, mode: str, **params: Any) -> tuple[dict[str, Any], socket.socket, bytes]:
        """Make this connection a console: the reply, the raw socket, and its first bytes."""
        result = self.call("console.attach", {"mode": mode, **params})
        return result, self._sock, bytes(self._buffer)

    def fileno(self) -> int:
        return self._sock.fileno()

    def gone(self, within: float) -> bool:
        """Wait for as many seconds, or until the daemon has left; whether it has."""
        poller = select.poll()
        poller.register(self._sock, select.POLLRDHUP)
        return bool(poller.poll(within * 1000))

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                raise NoAnswer("it does not answer in time") from None
            except OSError as fault:
                raise NoAnswer(f"the connection broke: {fault.strerror}") from None
            if not data:
                raise NoAnswer("it ended the connection")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise NoAnswer("what it says is no JSON-RPC")
        return message


def _fault(message: dict[str, Any]) -> RpcFault:
    error = message["error"]
    return RpcFault(error.get("code", 0), error.get("message", ""), error.get("data") or {})
