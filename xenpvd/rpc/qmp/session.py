"""One client of qmp.sock: greeting, negotiation, commands in their order, and events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine
from typing import Any

from xenpvd.events import Event, Subscription
from xenpvd.rpc.framing import MESSAGE_MAX, MessageTooLong, parse
from xenpvd.rpc.link import Link
from xenpvd.rpc.qmp import block, guest  # noqa: F401  they register their commands
from xenpvd.rpc.qmp.monitor import Monitor
from xenpvd.rpc.qmp.protocol import GREETING, Refused, Request, encode, error, event, reply, request_of
from xenpvd.rpc.qmp.registry import run
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)


class Session:
    """Fits ``rpc.server.Client``. One command at a time: the next one is read when this one is answered, so a
    client that sends more than it reads is held back by its own socket."""

    def __init__(self, monitor: Monitor, sock: socket.socket) -> None:
        self._monitor = monitor
        self._link = Link(sock)
        self._tasks = Tasks(self._broken)
        self._speaking: set[asyncio.Task[Any]] = set()
        self._events: Subscription | None = None  # None until it has negotiated
        self._telling = False

    async def serve(self) -> None:
        async with self._link.held():
            try:
                await self._send(GREETING)
                await self._serve_commands()
                self._end_events()
            except ConnectionError:
                pass
            finally:
                self._end_events()
                await self._tasks.cancel()

    def ending(self) -> set[asyncio.Task[Any]]:
        self._end_events()
        return set(self._speaking)

    async def _serve_commands(self) -> None:
        try:
            while (data := await self._link.receive()) is not None:
                # a task, because what has begun runs to its end though the client leaves or the daemon ends
                await asyncio.wait({self._speak(self._answer(data), "qmp command")})
        except MessageTooLong:
            why = f"cannot take the message: more than {MESSAGE_MAX} bytes. The connection ends here."
            await self._send(error(None, Refused(why)))

    async def _answer(self, data: bytes) -> None:
        message, name = None, "the command"
        try:
            try:
                message = parse(data)
            except (ValueError, RecursionError) as fault:
                raise Refused(f"cannot parse the message: {fault}.") from None
            request = request_of(message)
            name = request.command
            answer = reply(message, await self._run(request))
        except Exception as fault:
            answer = error(message, fault, name)
        with contextlib.suppress(ConnectionError):  # the command is done; nobody is there to hear of it
            await self._catch_up()
            await self._send(answer)
        if self._events is not None and not self._telling:
            self._telling = True
            self._speak(self._tell(self._events), "qmp events")

    async def _run(self, request: Request) -> Any:
        negotiates = request.command == "qmp_capabilities"
        if not negotiates and self._events is None:
            why = f"cannot run {request.command[:64]} yet: the first command must be qmp_capabilities."
            raise Refused(why, "CommandNotFound")
        if negotiates and self._events is not None:
            raise Refused("cannot negotiate again: it is done already. Go on.", "CommandNotFound")
        result = await run(self._monitor, request)
        if negotiates:
            self._events, _, _ = self._monitor.events.subscribe()
        return result

    async def _catch_up(self) -> None:
        """What a command has brought about is told before its reply, as QEMU does it."""
        self._monitor.catch_up()
        while self._events is not None and (happened := self._events.take()) is not None:
            await self._send_event(happened)

    async def _tell(self, events: Subscription) -> None:
        with contextlib.suppress(ConnectionError):
            async for happened in events:
                await self._send_event(happened)

    async def _send_event(self, happened: Event) -> None:
        if happened.name == "events.lost":  # QMP has no word for it, and who waits for one shall not wait
            log.warning("%s does not read its events: cut off", self._link.who)
            self._link.abort()
            raise ConnectionResetError
        await self._send(event(happened))

    def _end_events(self) -> None:
        if self._events is not None:
            self._events.close()

    def _speak(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._tasks.spawn(coro, name)
        self._speaking.add(task)
        task.add_done_callback(self._speaking.discard)
        return task

    async def _send(self, message: dict[str, Any]) -> None:
        await self._link.send(encode(message))

    def _broken(self, name: str, fault: BaseException) -> None:
        log.error("%s: %s failed", self._link.who, name, exc_info=fault)
        self._link.abort()
