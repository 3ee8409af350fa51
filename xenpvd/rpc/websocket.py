"""A console over a WebSocket: binary messages are its bytes, texts are JSON about it.

To the client: ``hello`` {console, viewer, role, offset, live, input, epoch, guest, state} first, then
``role`` {role}, ``state`` {state}, ``opened`` {offset, boot}, ``denied`` {why}, ``end`` {why}. From it:
``steal``.
``offset`` is that of the first byte that follows: who counts can come back with ``since`` and has no gap and
no repeat, unless it is another daemon (``epoch``). What comes before ``live`` was printed earlier.

Who is not wanted (no such console, ended by somebody) sees the close code POLICY_VIOLATION, and should not
come back by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from aiohttp import WSCloseCode, WSMsgType, web
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from xenpvd.access import Role, covers
from xenpvd.errors import XenpvdError
from xenpvd.rpc.console import TYPIST, attach_as_can
from xenpvd.rpc.link import GRACE, Hangup
from xenpvd.rpc.models import Offset
from xenpvd.rpc.registry import check_role
from xenpvd.rpc.service import ConsoleViewer, Service
from xenpvd.sockets import credentials
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)

#: Bytes of one message from a client
MESSAGE_MAX = 1 << 16
#: Messages with typed bytes that wait for the guest; those behind them wait in the socket
TYPED_MAX = 16


def _digits(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError("not a number")
    return int(text)


class Query(BaseModel):
    model_config = ConfigDict(extra="forbid")

    since: Annotated[Offset, BeforeValidator(_digits)] | None = None
    mode: Literal["rw", "ro", "steal", "auto"] = "auto"


def asked(query: Mapping[str, str]) -> Query:
    """What a console is asked for. Raises 400."""
    words = dict(query)
    try:
        found = Query.model_validate(words)
        wrong = "" if len(words) == len(query) else "twice the same"
    except ValidationError as fault:
        wrong = ", ".join(str(error["loc"][0]) for error in fault.errors())
    if wrong:
        raise web.HTTPBadRequest(text=f"cannot attach: {wrong} cannot be used.\n")
    return found


async def serve(service: Service, request: web.Request, role: Role) -> web.WebSocketResponse:
    """Attach until either side ends. Raises 400 as HTTP; what the console or ``role`` refuses is
    ``denied``."""
    query = asked(request.query)
    ws = web.WebSocketResponse(max_msg_size=MESSAGE_MAX + 1)  # aiohttp's is the first that is too long
    await ws.prepare(request)
    await _Client(service, ws, request, role).serve(request.match_info["console"], query)
    return ws


class _Client:
    def __init__(self, service: Service, ws: web.WebSocketResponse, request: web.Request, role: Role) -> None:
        assert request.transport is not None
        self._service = service
        self._as = role
        self._ws = ws
        self._request = request
        self._who = f"{credentials(request.transport)}, websocket"
        self._tasks = Tasks(self._broken)
        self._typed = asyncio.Queue[tuple[int, bytes]](TYPED_MAX)
        self._turn = 0  # at the keyboard; what was typed in another one is not typed any more
        self._notes: dict[str, dict[str, Any]] = {}  # the newest of each type, for one who reads slowly
        self._noted = asyncio.Event()

    async def serve(self, name: str, query: Query) -> None:
        try:
            viewer = self._attach(name, query)
        except XenpvdError as fault:
            await self._ws.send_json({"type": "denied", "why": str(fault)})
            await self._ws.close(code=WSCloseCode.POLICY_VIOLATION)
            return
        events, _, _ = self._service.events.subscribe(["guest.state"])
        hangup = None
        try:
            assert self._request.transport is not None
            # it may leave while too much is typed to read on
            hangup = Hangup(self._request.transport, viewer.close)
            await self._greet(name, viewer)
            self._tasks.spawn(self._serve_output(viewer), "websocket output")
            self._tasks.spawn(self._serve_end(viewer), "websocket end")
            self._tasks.spawn(self._serve_notes(), "websocket notes")
            self._tasks.spawn(self._serve_events(events), "websocket events")
            self._tasks.spawn(self._serve_typing(viewer), "websocket typing")
            await self._serve_input(viewer)
        except ConnectionError:
            pass
        finally:
            if hangup is not None:
                hangup.close()
            events.close()
            log.info("%s left console %s: %s", self._who, name, viewer.close())
            await self._tasks.cancel()

    def _attach(self, name: str, query: Query) -> ConsoleViewer:
        consoles, since = self._service.consoles, query.since
        if query.mode == "auto":
            return attach_as_can(consoles, name, since, self._who, self._as, self._role)
        if query.mode != "ro":
            check_role(self._as, TYPIST, f"attach with mode {query.mode}")
        return consoles.attach(name, query.mode, since, None, self._who, self._role, covers(self._as, TYPIST))

    async def _greet(self, name: str, viewer: ConsoleViewer) -> None:
        status = self._service.guest_status()
        self._notes.clear()  # the role is told here
        await self._ws.send_json(
            {
                "type": "hello",
                "console": name,
                "viewer": viewer.number,
                "role": viewer.mode,
                "offset": viewer.offset,
                "live": viewer.live,
                "input": viewer.input,
                "epoch": self._service.daemon_info().epoch,
                "guest": status.name,
                "state": status.state,
            }
        )

    def _note(self, type_: str, **members: Any) -> None:
        self._notes[type_] = {"type": type_, **members}
        self._noted.set()

    def _role(self, mode: str) -> None:
        self._turn += 1
        self._note("role", role=mode)

    async def _serve_output(self, viewer: ConsoleViewer) -> None:
        while True:
            offset = viewer.offset
            if not (data := await viewer.read()):
                break
            if (boot := viewer.boot_at(offset)) is not None:
                await self._ws.send_json({"type": "opened", "offset": offset, "boot": boot})
            await self._ws.send_bytes(data)
        await self._ws.send_json({"type": "end", "why": viewer.close()})
        await self._ws.close(code=WSCloseCode.POLICY_VIOLATION if viewer.kicked else WSCloseCode.GOING_AWAY)

    async def _serve_end(self, viewer: ConsoleViewer) -> None:
        """Of one that does not read: it would not hear of its end either."""
        await viewer.wait_ended()
        await asyncio.sleep(GRACE)
        if (transport := self._request.transport) is not None:
            transport.abort()

    async def _serve_notes(self) -> None:
        while True:
            await self._noted.wait()
            self._noted.clear()
            notes, self._notes = self._notes, {}
            for note in notes.values():
                await self._ws.send_json(note)

    async def _serve_events(self, events: Any) -> None:
        async for event in events:
            self._note("state", state=event.data["to"])

    async def _serve_input(self, viewer: ConsoleViewer) -> None:
        async for message in self._ws:
            if message.type is WSMsgType.BINARY:
                await self._typed.put((self._turn if viewer.mode == "rw" else -1, message.data))
            elif message.type is WSMsgType.TEXT and wish(message.data) == "steal":
                with self._told():
                    check_role(self._as, TYPIST, "take the keyboard")
                    viewer.steal()
            else:
                viewer.close()
                await self._ws.close(code=WSCloseCode.UNSUPPORTED_DATA)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._typed.join()  # what it typed before it left

    async def _serve_typing(self, viewer: ConsoleViewer) -> None:
        """Beside the reader, which has to hear of other things while the guest takes nothing."""
        while True:
            turn, data = await self._typed.get()
            if turn == self._turn:
                with self._told():
                    await viewer.write(data)
            else:
                self._note("denied", why="cannot type: this viewer was read-only. Take the keyboard first.")
            self._typed.task_done()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except XenpvdError as fault:
            self._note("denied", why=str(fault))

    def _broken(self, name: str, fault: BaseException) -> None:
        if not isinstance(fault, ConnectionError):
            log.error("%s: %s failed", self._who, name, exc_info=fault)
        self._tasks.spawn(self._ws.close(), "websocket end")


def wish(text: str) -> str | None:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    wish = message.get("type") if isinstance(message, dict) else None
    return wish if isinstance(wish, str) else None
