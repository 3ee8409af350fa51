"""One client of rpc.sock: its messages in, replies and events out, and an orderly end however it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from typing import Any, TypeVar

from pydantic_core import to_json

from xenpvd.access import Role
from xenpvd.errors import LimitReached
from xenpvd.events import QUEUE
from xenpvd.rpc import results
from xenpvd.rpc.console import converse
from xenpvd.rpc.dispatch import BATCH_MAX, dispatch
from xenpvd.rpc.errors import CODES, parse_fault, protocol_fault
from xenpvd.rpc.framing import MESSAGE_MAX, Framer, MessageTooLong, parse
from xenpvd.rpc.registry import Call, Note
from xenpvd.rpc.service import ConsoleViewer, Service
from xenpvd.sockets import credentials
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)

IN_FLIGHT_MAX = 32
CONNECTIONS_MAX = 64

#: How long, in seconds, a client gets to read its last replies when the daemon ends.
GRACE = 1.0

_T = TypeVar("_T")


class Connection:
    """Fits ``registry.Client`` and ``Stream``. :meth:`serve` ends when the client has left and all that it
    began is done."""

    def __init__(
        self, service: Service, role: Role, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.service = service
        self.role = role
        self._reader = reader
        self._writer = writer
        self._sending = asyncio.Lock()
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._tasks = Tasks(self._broken)
        self._calls: set[asyncio.Task[Any]] = set()
        self._waits: set[asyncio.Task[Any]] = set()  # calls to cancel when the client has gone
        self._streams: set[asyncio.Task[Any]] = set()  # feeds, or the console
        self._gone = asyncio.Event()  # the peer has closed both directions
        self._feeds: dict[str, Callable[[], None]] = {}  # how to end each
        self._viewer: ConsoleViewer | None = None
        self.who = str(credentials(writer.transport))

    # ---- the life of it

    async def serve(self) -> None:
        try:
            hangup = Hangup(self._writer.transport, self._left)
        except OSError:  # EMFILE
            self._writer.transport.abort()
            raise
        try:
            await self._greet()
            typed = await self._serve_messages()
            if self._viewer is not None:
                await self._serve_console(self._viewer, typed)
            await self._finish_calls()
            if self._feeds:
                await self._gone.wait()  # it ended its sending side only
            self._writer.close()
            await self._writer.wait_closed()  # it may take its time to read the last replies
        except ConnectionError:
            await self._finish_calls()
        finally:
            hangup.close()
            self._end_feeds()
            if self._viewer is not None:
                self._viewer.close()
            await self._tasks.cancel()
            self._writer.close()
            try:
                async with asyncio.timeout(GRACE):
                    await self._writer.wait_closed()
            except (TimeoutError, ConnectionError):
                self._writer.transport.abort()

    def ending(self) -> set[asyncio.Task[Any]]:
        """The daemon ends: no new notes; returns the tasks which still have something to say."""
        self._end_feeds()
        return (self._calls - self._waits) | self._streams

    async def _serve_messages(self) -> bytes:
        """Take messages until the end of input, or until one made this a console; returns what follows."""
        framer = Framer()
        try:
            while data := await self._reader.read(65536):
                framer.feed(data)
                while (message := framer.next()) is not None:
                    await self._take(message)
                    if self._viewer is not None:
                        return _without_newline(framer.rest())
            if (message := framer.finish()) is not None:
                await self._take(message)
        except MessageTooLong:
            why = f"cannot take the message: more than {MESSAGE_MAX} bytes. The connection ends here."
            await self._send(protocol_fault(CODES[LimitReached], why, LimitReached.reason).reply(None))
            self._end_feeds()
        return b""

    async def _take(self, data: bytes) -> None:
        await self._slots.acquire()
        try:
            message, why = parse(data), ""
        except (ValueError, RecursionError) as fault:
            message, why = None, str(fault)
        if isinstance(message, dict) and message.get("method") == "console.attach":
            # Not beside the reader: what comes behind this message may be no JSON.
            await self._answer(message, why)
        else:
            task = self._tasks.spawn(self._answer(message, why), "rpc call")
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _answer(self, message: Any, why: str) -> None:
        try:
            if why:
                await self._send(parse_fault(why).reply(None))
                return
            single = isinstance(message, dict) and "id" in message
            alone = single and not self._calls and not self._feeds
            call = Call(self.service, self, asyncio.current_task(), alone)
            reply = await dispatch(message, call)
            if reply is not None:
                await self._send(reply)
            for follow_up in call.after_reply:
                follow_up()
        except ConnectionError:
            pass  # the call is done; nobody is there to hear of it
        finally:
            self._slots.release()

    async def _finish_calls(self) -> None:
        while self._calls:
            await asyncio.wait(self._calls)

    def _left(self) -> None:
        self._gone.set()
        for task in self._waits:
            task.cancel()

    def _broken(self, name: str, fault: BaseException) -> None:
        log.error("%s: %s failed", self.who, name, exc_info=fault)
        self._writer.transport.abort()

    # ---- out

    async def _send(self, message: Any) -> None:
        """Write ``message`` in its turn; waits while the peer does not read, which bounds what is queued."""
        line = to_json(message, inf_nan_mode="null") + b"\n"
        async with self._sending:
            if self._gone.is_set() or self._writer.transport.is_closing():
                raise ConnectionResetError
            self._writer.write(line)
            await self._writer.drain()

    async def _notify(self, method: str, params: Any) -> None:
        await self._send({"jsonrpc": "2.0", "method": method, "params": params})

    async def _greet(self) -> None:
        info, guest = self.service.daemon_info(), self.service.guest_status()
        await self._notify(
            "daemon.hello",
            results.Hello(
                name=info.name,
                version=info.version,
                api=info.api,
                features=list(info.features),
                epoch=info.epoch,
                guest=guest.name,
                state=guest.state,
                role=self.role,
                limits=results.Limits(
                    message=MESSAGE_MAX,
                    batch=BATCH_MAX,
                    in_flight=IN_FLIGHT_MAX,
                    connections=CONNECTIONS_MAX,
                    queue=QUEUE,
                ),
            ),
        )

    # ---- for the methods (registry.Client and Stream)

    @property
    def stream(self) -> Connection:
        return self

    @property
    def feeds(self) -> Collection[str]:
        return self._feeds.keys()

    def feed(self, call: Call, name: str, notes: AsyncIterator[Note], close: Callable[[], None]) -> None:
        self.end_feed(name)
        self._feeds[name] = close
        call.after_reply.append(lambda: self._serve_feed(name, notes))

    def end_feed(self, name: str) -> bool:
        close = self._feeds.pop(name, None)
        if close is not None:
            close()
        return close is not None

    def _end_feeds(self) -> None:
        for name in tuple(self._feeds):
            self.end_feed(name)

    def _stream(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._tasks.spawn(coro, name)
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        return task

    def _serve_feed(self, name: str, notes: AsyncIterator[Note]) -> None:
        async def serve() -> None:
            with contextlib.suppress(ConnectionError):
                async for method, params in notes:
                    await self._notify(method, params)

        self._stream(serve(), f"rpc {name}")

    def become(self, viewer: ConsoleViewer) -> None:
        self._viewer = viewer

    async def _serve_console(self, viewer: ConsoleViewer, typed: bytes) -> None:
        await self._stream(converse(viewer, self._reader, self._writer, self._gone, typed), "console")
        log.info("%s left the console: %s", self.who, viewer.close())

    async def waiting(self, call: Call, run: Awaitable[_T]) -> _T:
        assert call.task is not None
        self._waits.add(call.task)
        try:
            if self._gone.is_set():
                call.task.cancel()
            return await run
        finally:
            self._waits.discard(call.task)


class Hangup:
    """Calls back when the peer has closed both directions, also while nobody reads.

    An epoll set with no events asked for reports EPOLLHUP only, which a half-close does not raise (unix(7)).
    """

    def __init__(self, transport: asyncio.BaseTransport, left: Callable[[], object]) -> None:
        """Raises OSError (EMFILE)."""
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._epoll.register(transport.get_extra_info("socket").fileno(), 0)
        self._left = left
        self._loop.add_reader(self._epoll.fileno(), self._fired)

    def _fired(self) -> None:
        self.close()
        self._left()

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


def _without_newline(data: bytes) -> bytes:
    """The newline that ended the request is not typed."""
    return data.removeprefix(b"\r").removeprefix(b"\n") if data[:2] == b"\r\n" else data.removeprefix(b"\n")
