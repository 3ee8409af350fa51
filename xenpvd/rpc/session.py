"""One client's calls and what goes on after them, whatever its messages travel by."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from typing import Any, Protocol, TypeVar

from pydantic_core import to_json

from xenpvd.access import Role
from xenpvd.events import QUEUE
from xenpvd.rpc import results
from xenpvd.rpc.dispatch import BATCH_MAX, dispatch
from xenpvd.rpc.errors import parse_fault
from xenpvd.rpc.framing import MESSAGE_MAX, parse
from xenpvd.rpc.registry import Call, Note
from xenpvd.rpc.rights import Rights
from xenpvd.rpc.service import ConsoleViewer, Service
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)

IN_FLIGHT_MAX = 32
CONNECTIONS_MAX = 64
#: of which so many are for admins: others cannot lock them out
RESERVED = 8

_T = TypeVar("_T")


def places(role: Role) -> int:
    """Clients of a socket beyond which one of that role is sent away."""
    return CONNECTIONS_MAX if role == "admin" else CONNECTIONS_MAX - RESERVED


class Carrier(Protocol):
    """What takes messages to the client."""

    #: It can carry raw bytes instead of messages, from one moment on.
    raw: bool

    async def send(self, message: bytes) -> None:
        """One message, in its turn; waits while the peer does not read. Raises ConnectionError once it is
        gone."""

    def abort(self) -> None:
        """End it at once."""


class Session:
    """Fits ``registry.Client`` and ``Stream``. Its owner gives it the messages (:meth:`take`), tells it when
    the peer has :meth:`left`, and ends it (:meth:`finish`, :meth:`close`)."""

    def __init__(self, service: Service, who: str, role: Role, carrier: Carrier) -> None:
        self.who = who
        self.role = role
        #: attached by a call: from now on the bytes are its
        self.viewer: ConsoleViewer | None = None
        self.gone = asyncio.Event()  # the peer has closed both directions
        self._service = service
        self._carrier = carrier
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._tasks = Tasks(self._broken)
        self._calls: set[asyncio.Task[Any]] = set()
        self._waits: set[asyncio.Task[Any]] = set()  # calls to cancel when the client has gone
        self._streams: set[asyncio.Task[Any]] = set()  # feeds, or the console
        self._feeds: dict[str, Callable[[], None]] = {}  # how to end each
        self._rights: set[Rights] = set()  # of the messages that are not done
        self._counted = False

    # ---- for its owner

    async def take(self, data: bytes, rights: Rights | None = None) -> None:
        """One message, and what came along with it; it is answered beside the next ones. Waits while too many
        are under way."""
        if rights:
            self._rights.add(rights)
        await self._slots.acquire()
        try:
            message, why = parse(data), ""
        except (ValueError, RecursionError) as fault:
            message, why = None, str(fault)
        if isinstance(message, dict) and message.get("method") == "console.attach":
            # Not beside the reader: what comes behind this message may be no JSON.
            await self._answer(message, why, rights)
        else:
            task = self._tasks.spawn(self._answer(message, why, rights), "rpc call")
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def send(self, message: Any) -> None:
        """Write ``message`` in its turn; waits while the peer does not read, which bounds what is queued."""
        if self.gone.is_set():
            raise ConnectionResetError
        await self._carrier.send(to_json(message, inf_nan_mode="null"))

    async def finish(self) -> None:
        """All that was begun is done and answered."""
        while self._calls:
            await asyncio.wait(self._calls)

    def left(self) -> None:
        """The peer has gone: what merely waits is given up, all else runs to its end."""
        self.gone.set()
        for task in self._waits:
            task.cancel()

    def ending(self) -> set[asyncio.Task[Any]]:
        """The daemon ends: no new notes; returns the tasks which still have something to say."""
        self.end_feeds()
        return (self._calls - self._waits) | self._streams

    def end_feeds(self) -> None:
        for name in tuple(self._feeds):
            self.end_feed(name)

    async def close(self) -> None:
        """End what is left of it. Idempotent."""
        if self._counted:
            self._counted = False
            self._service.calls.leave()
        self.end_feeds()
        if self.viewer is not None:
            self.viewer.close()
        await self._tasks.cancel()
        for rights in self._rights:  # also of calls that were ended before they began
            rights.close()

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that has something to say, also when the daemon ends."""
        task = self._tasks.spawn(coro, name)
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        return task

    async def greet(self) -> None:
        self._counted = True
        self._service.calls.connect()
        info, guest = self._service.daemon_info(), self._service.guest_status()
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

    async def _answer(self, message: Any, why: str, rights: Rights | None) -> None:
        try:
            if why:
                await self.send(parse_fault(why).reply(None))
                return
            single = isinstance(message, dict) and "id" in message
            alone = single and not self._calls and not self._feeds
            call = Call(self._service, self, asyncio.current_task(), alone, rights)
            reply = await dispatch(message, call)
            if reply is not None:
                await self.send(reply)
            for follow_up in call.after_reply:
                follow_up()
        except ConnectionError:
            pass  # the call is done; nobody is there to hear of it
        finally:
            self._slots.release()
            if rights is not None:
                rights.close()
                self._rights.discard(rights)

    async def _notify(self, method: str, params: Any) -> None:
        await self.send({"jsonrpc": "2.0", "method": method, "params": params})

    def _broken(self, name: str, fault: BaseException) -> None:
        log.error("%s: %s failed", self.who, name, exc_info=fault)
        self._carrier.abort()

    # ---- for the methods (registry.Client and Stream)

    @property
    def stream(self) -> Session:
        return self

    @property
    def raw(self) -> bool:
        return self._carrier.raw

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

    def _serve_feed(self, name: str, notes: AsyncIterator[Note]) -> None:
        async def serve() -> None:
            with contextlib.suppress(ConnectionError):
                async for method, params in notes:
                    await self._notify(method, params)

        self.spawn(serve(), f"rpc {name}")

    def become(self, viewer: ConsoleViewer) -> None:
        self.viewer = viewer

    async def waiting(self, call: Call, run: Awaitable[_T]) -> _T:
        assert call.task is not None
        self._waits.add(call.task)
        try:
            if self.gone.is_set():
                call.task.cancel()
            return await run
        finally:
            self._waits.discard(call.task)
