"""http.sock, for daemons that are told to: the same JSON-RPC by POST, what orchestrators probe, and consoles.

Importing aiohttp takes its time: nobody imports this file who was not asked to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import hdrs, web

from xenpvd.access import Role, RoleOf, everything
from xenpvd.errors import Unsupported
from xenpvd.rpc import metrics, page, websocket
from xenpvd.rpc.calls import Calls
from xenpvd.rpc.dispatch import Reply, dispatch
from xenpvd.rpc.errors import parse_fault
from xenpvd.rpc.framing import MESSAGE_MAX, parse
from xenpvd.rpc.link import GRACE, Hangup
from xenpvd.rpc.methods.daemon import document
from xenpvd.rpc.registry import Call, Stream
from xenpvd.rpc.server import NOBODY
from xenpvd.rpc.service import Service
from xenpvd.rpc.session import CONNECTIONS_MAX, places
from xenpvd.rpc.web import FULL, LOCAL, Door, Handler, body, discreet, json_reply, log, no_foreign_page, told
from xenpvd.sockets import credentials, listen
from xenpvd.tasks import Tasks

#: Seconds that a connection may stay without a whole request's head.
IDLE_MAX = 30.0

#: Seconds in which the rest of a refused body is thrown away, so that its sender comes to read why.
LINGER = 1.0

#: A request's: what its sender may
_ROLE = web.RequestKey[Role]("role")

_T = TypeVar("_T")


class HttpServer:
    """Serves ``service`` at ``path``, as :class:`xenpvd.rpc.server.RpcServer` does in its way."""

    def __init__(self, service: Service, path: Path, role_of: RoleOf = everything, mode: int = 0o660) -> None:
        self._service = service
        self._path = path
        self._role_of = role_of
        self._mode = mode
        self._tasks = Tasks()
        self._callers: set[_Caller] = set()
        self._sockets: set[Calls] = set()
        self._server: asyncio.AbstractServer | None = None
        self._ending = False

    async def start(self) -> None:
        """Listen. A client never finds a socket at ``path`` that refuses it. Raises :class:`HostError`."""
        sock = listen(self._path, self._mode)
        app = web.Application(
            client_max_size=MESSAGE_MAX, middlewares=[discreet, no_foreign_page(LOCAL), self._known]
        )
        app.router.add_post("/rpc", self._rpc)
        app.router.add_get("/rpc", self._calls)
        app.router.add_get("/", page.index)
        app.router.add_get("/page/{name}", page.file)
        app.router.add_get("/console/{console}", self._console)
        app.router.add_get("/openrpc.json", self._openrpc)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # as soon as the client has left
            shutdown_timeout=GRACE,
            keepalive_timeout=IDLE_MAX,
            lingering_time=LINGER,
            tcp_keepalive=False,
            auto_decompress=False,  # no work for a body that is refused
            access_log=None,
            logger=log,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._accept, sock=sock)

    async def stop(self) -> None:
        """Take no more clients, give the others a moment to get what is under way, and end them."""
        if self._server is None:
            return
        self._ending = True
        self._server.close()
        self._server = None
        self._path.unlink(missing_ok=True)
        for caller in self._callers:
            caller.leave()
        ending = {task for calls in self._sockets for task in calls.ending()}
        if ending:
            await asyncio.wait(ending, timeout=GRACE)
        for calls in tuple(self._sockets):
            await calls.close()
        await self._runner.cleanup()
        await self._tasks.cancel()

    def _accept(self) -> asyncio.Protocol:
        return Door(self._admit)

    def _admit(self, transport: asyncio.BaseTransport) -> asyncio.Protocol | str:
        """What serves it from now on, or what it is told."""
        role, http = self._role_of(credentials(transport)), self._runner.server
        if role is None:
            return told("403 Forbidden", NOBODY + "\n")
        if self._ending or http is None or len(http.connections) >= places(role):
            return told("429 Too Many Requests", FULL)
        return http()

    @web.middleware
    async def _known(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who has no role has no answer."""
        if request.transport is None:  # it has left
            raise web.HTTPForbidden()
        if (role := self._role_of(credentials(request.transport))) is None:
            raise web.HTTPForbidden(text=NOBODY + "\n")
        request[_ROLE] = role
        return await handler(request)

    # ---- the routes

    async def _rpc(self, request: web.Request) -> web.Response:
        sent = await body(request)
        if len(self._callers) >= CONNECTIONS_MAX:  # many of them may have left what they began
            raise web.HTTPTooManyRequests(text=FULL)
        assert request.transport is not None  # else this handler were cancelled
        caller = _Caller(str(credentials(request.transport)), request[_ROLE])
        self._callers.add(caller)
        task = self._tasks.spawn(self._answer(sent, caller), "http call")
        task.add_done_callback(lambda _: self._callers.discard(caller))
        try:
            hangup = Hangup(request.transport, caller.leave)  # while aiohttp does not read, it sees no end
            try:
                reply = await asyncio.shield(task)
            finally:
                hangup.close()
        finally:
            caller.leave()
        return web.Response(status=204) if reply is None else json_reply(reply)

    async def _answer(self, body: bytes, caller: _Caller) -> Reply | None:
        try:
            message = parse(body)
        except (ValueError, RecursionError) as fault:
            return parse_fault(str(fault)).reply(None)
        return await dispatch(message, Call(self._service, caller, asyncio.current_task(), alone=False))

    async def _calls(self, request: web.Request) -> web.StreamResponse:
        calls = Calls(self._service, request, request[_ROLE])
        self._sockets.add(calls)
        try:
            return await calls.serve()
        finally:
            self._sockets.discard(calls)

    async def _console(self, request: web.Request) -> web.StreamResponse:
        return await websocket.serve(self._service, request, request[_ROLE])

    async def _openrpc(self, request: web.Request) -> web.Response:
        return json_reply(document())

    async def _healthz(self, request: web.Request) -> web.Response:
        """That the loop turns."""
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        """That the guest is ready, as its definition says; 503 says where it is instead."""
        status = self._service.guest_status()
        told = {"name": status.name, "state": status.state, "phase": status.phase, "ready": status.ready}
        return json_reply(told, 200 if status.ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        text = metrics.exposition(await self._service.guest_stats())
        return web.Response(body=text.encode(), headers={hdrs.CONTENT_TYPE: metrics.CONTENT_TYPE})


class _Caller:
    """Fits ``registry.Client``: who sent one POST, and may leave before the answer."""

    def __init__(self, who: str, role: Role) -> None:
        self.who = who
        self.role = role
        self._gone = False
        self._wait: asyncio.Task[Any] | None = None

    def leave(self) -> None:
        """What merely waits is given up, now or when it is about to begin; all else runs to its end."""
        self._gone = True
        if self._wait is not None:
            self._wait.cancel()

    async def waiting(self, call: Call, run: Awaitable[_T]) -> _T:
        assert call.task is not None
        self._wait = call.task
        try:
            if self._gone:
                call.task.cancel()
            return await run
        finally:
            self._wait = None

    @property
    def stream(self) -> Stream:
        raise Unsupported(
            "cannot call this by POST: it goes on after its reply. Use the WebSocket /rpc, or rpc.sock.",
            feature="stream",
            hint="rpc.sock",
        )
