"""A guest by its daemon's socket: calls, events, consoles."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakSet

from xenpvd import paths
from xenpvd.client.connection import Connection
from xenpvd.client.console import Console, Mode
from xenpvd.client.errors import Closed
from xenpvd.client.events import Events
from xenpvd.client.methods import STREAMING, WAITING, Methods
from xenpvd.client.shapes import DescriptorAdded, Hello
from xenpvd.client.stream import PASSING, Retry, Stream
from xenpvd.client.watch import Watch
from xenpvd.client.wire import Wire
from xenpvd.errors import NotFound, Unsupported

_S = TypeVar("_S", bound=Stream[Any])


def connect(
    guest: str | Path,
    *,
    run_dir: Path | None = None,
    timeout: float = 5.0,
    wait: float = 0.0,
    retry: Retry = Retry(),  # noqa: B008 - it is frozen
) -> Guest:
    """``async with connect("web1") as guest``: by name, or by the ``Path`` of its rpc.sock.

    Names are looked up in ``run_dir``, else $XENPVD_RUN_DIR, else where daemons of this user are.
    ``timeout`` is how long, in seconds, a daemon has to greet, ``wait`` how long it may take to appear.
    ``retry`` is for events and consoles. Raises ``NotFound`` for what no guest can be called.
    """
    if isinstance(guest, str):
        if not paths.NAME.fullmatch(guest):
            raise NotFound(f"no guest can be called {guest!r}. Give its rpc.sock as a Path.", "guest", guest)
        where = run_dir or Path(os.environ.get("XENPVD_RUN_DIR") or paths.run_dir())
        guest = where / guest / "rpc.sock"
    return Guest(guest, timeout, wait, retry)


class Guest(Methods):
    """Entering it connects; calls connect anew if that connection has ended meanwhile.

    Calls may be cancelled, as by ``asyncio.timeout``: one that merely waits is given up at the daemon as
    well, any other is left to it. They raise :class:`RpcError` if the daemon refuses,
    :class:`ConnectionLost` if it left, :class:`Unreachable` if it is away.
    """

    hello: Hello  #: the daemon's greeting on the newest connection

    def __init__(self, path: Path, timeout: float, wait: float, retry: Retry) -> None:
        self.path = path
        self._timeout = timeout
        self._wait = wait
        self._retry = retry
        self._opening = asyncio.Lock()
        self._shared: Connection | None = None
        self._connections: set[Connection] = set()
        self._streams: WeakSet[Stream[Any]] = WeakSet()
        self._closed = False

    async def __aenter__(self) -> Self:
        """Raises ``Unreachable``, ``LimitReached``, ``PermissionRefused``, ``Unsupported``."""
        pauses = replace(self._retry, patience=self._wait, longest=0.5).pauses()
        while True:
            try:
                self._shared = await self._connect()
                return self
            except PASSING:
                if (pause := next(pauses, None)) is None:
                    raise
            await self._retry.sleep(pause)

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(self, method: str, /, **params: Any) -> Any:
        """Any method by the API's name, as ``call("drive.add", vdev="xvdb", target="/srv/b.img")``; the
        result is as JSON has it. :class:`Methods` has the same with types."""
        given = {name.removesuffix("_"): value for name, value in params.items()}
        if method in STREAMING:
            raise Unsupported(
                f"cannot call {method}: it changes its connection, or takes more than JSON. Use events(), "
                "watch(), console() or send_fd()."
            )
        if method in WAITING:
            own = await self._connect()
            try:
                return await own.call(method, given)
            finally:
                await self._end(own)
        async with self._opening:
            if self._shared is None or self._shared.lost is not None:
                self._shared = await self._connect()
            connection = self._shared
        return await connection.call(method, given)

    async def send_fd(self, name: str, fd: int) -> DescriptorAdded:
        """Give the daemon an open image file or block device (``fd.add``): ``drive_add(target="fd:NAME")``
        uses it. ``fd`` stays yours to close; the daemon has its own. Raises as a call, and ``BadConfig`` for
        a descriptor that is not open."""
        if self._closed:
            raise Closed(f"cannot call {self.path}: this client is closed.")
        wire = await Wire.open(self.path, self._timeout)  # nothing else is on its way there
        try:
            wire.send_with(wire.encode("fd.add", {"name": name}, 0), fd)
            added: DescriptorAdded = await wire.answer_to(0)
            return added
        finally:
            await wire.close()

    def events(self, *names: str, since: int | None = None, epoch: str | None = None) -> Events:
        """``async for event in guest.events("drive.*", "guest.state")``: events of these names (none:
        all), as they happen, or from what came after ``since`` of ``epoch`` on; 0: all that is kept.

        It survives lost connections and new daemons: what was missed follows, and an :class:`EventsLost`
        stands where something is missing.
        """
        return self._stream(Events(self._opener(), self._retry, names, since, epoch))

    def console(self, name: str = "0", *, since: int | None = None, mode: Mode = "ro") -> Console:
        """``async with guest.console("0", mode="rw") as console``: what it prints from byte ``since`` on
        (None: all that is kept), in chunks, and a keyboard. It survives lost connections."""
        return self._stream(Console(self._opener(), self._retry, name, since, mode))

    def watch(self, path: str) -> Watch:
        """``async for changed in guest.watch("/local/domain/1/data")``: xenstore paths, as they change."""
        return self._stream(Watch(self._opener(), self._retry, path))

    async def close(self) -> None:
        """End all connections. Idempotent."""
        self._closed = True
        for stream in tuple(self._streams):
            await stream.aclose()
        for connection in tuple(self._connections):
            await self._end(connection)

    def _opener(self) -> Callable[[], Awaitable[Wire]]:
        return partial(Wire.open, self.path, self._timeout)

    def _stream(self, stream: _S) -> _S:
        if self._closed:
            raise Closed(f"cannot follow {self.path}: this client is closed.")
        self._streams.add(stream)
        return stream

    async def _connect(self) -> Connection:
        connection = None if self._closed else Connection(await Wire.open(self.path, self._timeout))
        if connection is None or self._closed:
            if connection is not None:
                await connection.close()
            raise Closed(f"cannot call {self.path}: this client is closed.")
        self._connections = {one for one in self._connections if one.lost is None} | {connection}
        self.hello = connection.hello
        return connection

    async def _end(self, connection: Connection) -> None:
        self._connections.discard(connection)
        await connection.close()
