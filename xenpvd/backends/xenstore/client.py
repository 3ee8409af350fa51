"""Domain 0's connection to the store, in process: synchronous calls, watches as async iterators."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.wire import Message, join, strings
from xenpvd.errors import XenstoreFault

#: Paths that one watch keeps for a slow reader; more of them become the watch's own path.
WAITING = 1024

_WHAT = {
    abi.XS_READ: "read {}",
    abi.XS_WRITE: "write {}",
    abi.XS_MKDIR: "create {}",
    abi.XS_RM: "remove {}",
    abi.XS_DIRECTORY: "list {}",
    abi.XS_DIRECTORY_PART: "list {}",
    abi.XS_GET_PERMS: "read the permissions of {}",
    abi.XS_SET_PERMS: "set the permissions of {}",
    abi.XS_WATCH: "watch {}",
    abi.XS_UNWATCH: "stop watching {}",
    abi.XS_TRANSACTION_START: "begin a transaction",
    abi.XS_TRANSACTION_END: "end the transaction",
}
_CURES = {
    "EAGAIN": "A node of it was changed meanwhile: do it all again.",
    "EINVAL": "Paths hold A-Z a-z 0-9 - / _ @ and no doubled or trailing slash; permissions are as n0, r1.",
    "ENOENT": "Check the path.",
    "E2BIG": f"Path and value together may have {abi.XENSTORE_PAYLOAD_MAX} bytes.",
}
_ERRNO = {name: number for number, name in abi.XSD_ERRORS.items()}


def refusal(type_: int, path: str, error: str) -> XenstoreFault:
    """What a request of ``type_`` for ``path`` fails with."""
    message = f"cannot {_WHAT[type_].format(path)} in xenstore: {os.strerror(_ERRNO[error])} ({error})."
    return XenstoreFault(f"{message} {_CURES.get(error, '')}".rstrip(), error, path)


class Transaction:
    """Reads and writes of domain 0 under one tx_id. Fits ``ops.XenstoreTx``; all raise ``XenstoreFault``."""

    def __init__(self, call: Callable[[Message], Message], tx_id: int) -> None:
        self._call = call
        self._tx_id = tx_id

    def read(self, path: str) -> bytes:
        return self._ask(abi.XS_READ, path)

    def write(self, path: str, value: str | bytes) -> None:
        """Write, creating missing parents. A str goes as UTF-8."""
        try:
            raw = value.encode() if isinstance(value, str) else value
        except UnicodeEncodeError:
            raise refusal(abi.XS_WRITE, path, "EINVAL") from None
        self._ask(abi.XS_WRITE, path, raw)

    def mkdir(self, path: str) -> None:
        self._ask(abi.XS_MKDIR, path)

    def remove(self, path: str) -> None:
        self._ask(abi.XS_RM, path)

    def directory(self, path: str) -> list[str]:
        """The children's names, in the order of their creation."""
        try:
            names = self._ask(abi.XS_DIRECTORY, path)
        except XenstoreFault as fault:
            if fault.data["error"] != "E2BIG":
                raise
            names = self._long_directory(path)
        return [name.decode() for name in strings(names)]

    def _long_directory(self, path: str) -> bytes:
        names = b""
        while True:  # nobody else runs in between, so the parts fit together
            part = self._ask(abi.XS_DIRECTORY_PART, path, join(str(len(names)))).partition(b"\0")[2]
            if part == b"\0" or part.endswith(b"\0\0"):
                return names + part[:-1]
            names += part

    def get_perms(self, path: str) -> list[str]:
        return [word.decode() for word in strings(self._ask(abi.XS_GET_PERMS, path))]

    def set_perms(self, path: str, perms: Sequence[str]) -> None:
        """``perms`` in wire form, the owner's first: ``["n1", "r0"]``."""
        self._ask(abi.XS_SET_PERMS, path, join(*perms))

    def _ask(self, type_: int, first: str, rest: bytes = b"") -> bytes:
        """Send the string ``first`` (a path, mostly) and ``rest``; returns the reply's payload."""
        raw = first.encode("ascii", "replace")
        if b"\0" in raw:
            raise refusal(type_, first.replace("\0", "?"), "EINVAL")
        payload = join(raw) + rest
        if len(payload) > abi.XENSTORE_PAYLOAD_MAX:
            raise refusal(type_, first, "E2BIG")
        reply = self._call(Message(type_, 0, self._tx_id, payload))
        if reply.type == abi.XS_ERROR:
            raise refusal(type_, first, strings(reply.payload)[0].decode())
        return reply.payload


class Watch:
    """Fits ``ops.XenstoreWatch``: yields changed paths, the watched one first. For one reader."""

    def __init__(self, path: str, on_close: Callable[[], None]) -> None:
        self._path = path
        self._on_close = on_close
        self._paths: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, path: str) -> None:
        if len(self._paths) >= WAITING:
            self._paths = {self._path: None}
        self._paths[path] = None
        self._wake.set()

    def close(self) -> None:
        """End the iteration; what waits is dropped. Idempotent."""
        if not self._closed:
            self._closed = True
            self._wake.set()
            self._on_close()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> str:
        while not self._closed:
            if self._paths:
                path = next(iter(self._paths))
                del self._paths[path]
                return path
            self._wake.clear()
            await self._wake.wait()
        raise StopAsyncIteration


class Look(asyncio.Event):
    """That a guest has asked for a path; ``waiting`` for it are so many."""

    waiting = 0


class Client(Transaction):
    """Domain 0, outside of transactions. Fits ``ops.XenstoreOps``.

    ``send`` takes a request and calls :meth:`deliver` with all that follows from it before it returns.
    """

    def __init__(
        self, send: Callable[[Message], None], has_guests: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(self._round_trip, tx_id=0)
        self._send = send
        self._has_guests = has_guests
        #: paths that :meth:`looked_at` waits for; the server sets them
        self.looks: dict[str, Look] = {}
        self._reply: Message | None = None
        self._watches: dict[str, Watch] = {}
        self._tokens = count()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """``with client.transaction() as t:`` commits at the end, drops everything on an exception.

        It cannot conflict as long as the block does not await; if it does, EAGAIN is raised at the end.
        """
        tx_id = int(strings(self._ask(abi.XS_TRANSACTION_START, ""))[0])
        transaction = Transaction(self._round_trip, tx_id)
        try:
            yield transaction
        except BaseException:
            transaction._ask(abi.XS_TRANSACTION_END, "F")
            raise
        transaction._ask(abi.XS_TRANSACTION_END, "T")

    async def looked_at(self, path: str, timeout: float) -> bool:
        """Wait until a guest asks for ``path`` itself, counted from the call on: then it knows what is there
        now. False after ``timeout`` seconds, and at once if no guest is connected."""
        if not self._has_guests():
            return False
        look = self.looks.setdefault(path, Look())
        look.waiting += 1
        try:
            async with asyncio.timeout(timeout):
                await look.wait()
        except TimeoutError:
            return False
        finally:
            look.waiting -= 1
            if not look.waiting:
                del self.looks[path]
        return True

    def watch(self, path: str) -> Watch:
        token = str(next(self._tokens))
        watch = Watch(path, lambda: self._unwatch(path, token))
        self._watches[token] = watch
        try:
            self._ask(abi.XS_WATCH, path, join(token))
        except XenstoreFault:
            del self._watches[token]
            raise
        return watch

    def deliver(self, message: Message) -> None:
        if message.type != abi.XS_WATCH_EVENT:
            self._reply = message
            return
        path, token = strings(message.payload)
        self._watches[token.decode()].offer(path.decode())

    def _unwatch(self, path: str, token: str) -> None:
        self._ask(abi.XS_UNWATCH, path, join(token))
        del self._watches[token]

    def _round_trip(self, message: Message) -> Message:
        self._send(message)
        reply, self._reply = self._reply, None
        assert reply is not None
        return reply
