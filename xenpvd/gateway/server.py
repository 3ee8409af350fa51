"""The gateway's HTTP: who may come in, and which door is whose."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import WSCloseCode, hdrs, web

from xenpvd.errors import LimitReached, NotFound, XenpvdError
from xenpvd.gateway import calls, console
from xenpvd.gateway.access import TICKET_TIME, Caller, Certificates, Tickets, Tokens
from xenpvd.gateway.guests import Guests
from xenpvd.gateway.metrics import Metrics
from xenpvd.rpc import page
from xenpvd.rpc import web as manners
from xenpvd.rpc.framing import MESSAGE_MAX
from xenpvd.rpc.metrics import CONTENT_TYPE, exposition
from xenpvd.rpc.web import FULL, LOCAL, Door, Handler, body, discreet, json_reply, no_foreign_page, told
from xenpvd.rpc.websocket import MESSAGE_MAX as TYPED_MAX
from xenpvd.rpc.websocket import asked

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"

CONNECTIONS_MAX = 256
#: Seconds: without a request; between signs of life of a WebSocket's client; for TLS to be agreed on; for
#: what is under way at the end
IDLE_MAX = 30.0
HEARTBEAT = 30.0
HANDSHAKE = 10.0
GRACE = 1.0

#: Whose names are no secrets: files of the page, and that we are there
OPEN = ("healthz", "index", "file", "guest", "guest-file")

_CALLER = web.RequestKey[Caller]("caller")


class Gateway:
    def __init__(
        self,
        guests: Guests,
        tokens: Tokens,
        certificates: Certificates | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self._guests = guests
        self.admit(tokens, certificates or Certificates(), names)
        self._tickets = Tickets()
        self._metrics = Metrics()
        self._sockets: set[web.WebSocketResponse] = set()
        self._servers: list[asyncio.AbstractServer] = []
        app = web.Application(
            client_max_size=MESSAGE_MAX,
            middlewares=[self._counted, discreet, self._from_here, self._known, _told],
        )
        get, post = app.router.add_get, app.router.add_post
        get("/healthz", self._healthz, name="healthz")
        get("/", self._index, name="index")
        get("/page/{name}", self._file, name="file")
        get("/metrics", self._figures, name="metrics")
        post("/v1/tickets", self._ticket, name="tickets")
        get("/v1/guests", self._list, name="guests")
        get("/v1/guests/{guest}/", page.index, name="guest")
        get("/v1/guests/{guest}/page/{name}", self._file, name="guest-file")
        post("/v1/guests/{guest}/rpc", self._post, name="rpc")
        get("/v1/guests/{guest}/rpc", self._calls, name="calls")
        get("/v1/guests/{guest}/console/{console}", self._console, name="console")
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # what merely waits is given up as soon as the client has left
            shutdown_timeout=GRACE,
            keepalive_timeout=IDLE_MAX,
            auto_decompress=False,
            access_log=None,  # it would have the tickets
            logger=manners.log,
        )
        app.on_shutdown.append(self._end_sockets)

    def admit(self, tokens: Tokens, certificates: Certificates, names: tuple[str, ...]) -> None:
        """From the next request on. ``names`` are those that browsers may know us by, beside this host's
        own."""
        self._tokens = tokens
        self._certificates = certificates
        self._no_foreign_page = no_foreign_page((*LOCAL, *names))

    async def start(self, places: list[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        """Serve at listening sockets, which are ours then, by TLS where that is TCP. Done again, new clients
        come in there only, and those that are here stay; if it fails, all is as before."""
        if self._runner.server is None:
            await self._runner.setup()
        servers: list[asyncio.AbstractServer] = []
        try:
            for place in places:
                servers.append(await self._serve(place, tls))
        except BaseException:
            for server in servers:
                server.close()
            for place in places[len(servers) :]:
                place.close()
            raise
        before, self._servers = self._servers, servers
        for server in before:
            server.close()

    async def _serve(self, place: socket.socket, tls: ssl.SSLContext | None) -> asyncio.AbstractServer:
        loop = asyncio.get_running_loop()
        if place.family != socket.AF_UNIX:
            wait = HANDSHAKE if tls else None
            return await loop.create_server(self._accept, sock=place, ssl=tls, ssl_handshake_timeout=wait)
        if sys.version_info >= (3, 13):  # its name is not ours to delete
            return await loop.create_unix_server(self._accept, sock=place, cleanup_socket=False)
        return await loop.create_unix_server(self._accept, sock=place)

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        await self._runner.cleanup()

    async def _end_sockets(self, app: web.Application) -> None:
        for ws in tuple(self._sockets):
            if ws.prepared:
                await ws.close(code=WSCloseCode.GOING_AWAY)

    def _accept(self) -> asyncio.Protocol:
        http = self._runner.server
        if http is None or len(http.connections) >= CONNECTIONS_MAX:
            return Door(lambda _: told("429 Too Many Requests", FULL))
        return http()

    # ---- who comes in

    @web.middleware
    async def _counted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        kind = request.match_info.route.name or "none"
        try:
            answer = await handler(request)
        except web.HTTPException as refusal:
            self._metrics.requests[kind, refusal.status] += 1
            raise
        self._metrics.requests[kind, answer.status] += 1
        return answer

    @web.middleware
    async def _from_here(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await self._no_foreign_page(request, handler)

    @web.middleware
    async def _known(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        route = request.match_info.route.name
        if route is not None and route not in OPEN:
            caller = self._caller(request, ticket=route in ("calls", "console"))
            if caller is None:
                log.warning("somebody at %s is not known: refused", request.remote or "a unix socket")
                raise web.HTTPUnauthorized(
                    text="cannot answer: who are you? Come with a token or a certificate.\n",
                    headers={hdrs.WWW_AUTHENTICATE: 'Bearer realm="xenpvd"'},
                )
            if not caller.sees(guest := request.match_info.get("guest", "")) and guest:
                raise web.HTTPNotFound(text=f"there is no guest {guest[:64]!r} for you here.\n")
            request[_CALLER] = caller
        return await handler(request)

    def _caller(self, request: web.Request, ticket: bool) -> Caller | None:
        """What is shown must be right: a wrong token is not made good by a certificate."""
        kind, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if kind:
            return self._tokens.find(token.strip()) if kind.lower() == "bearer" else None
        if ticket and "ticket" in request.query:
            return self._tickets.redeem(request.query["ticket"])
        secured = request.get_extra_info("ssl_object")
        return None if secured is None else self._certificates.find(secured.getpeercert())

    # ---- the doors

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _index(self, request: web.Request) -> web.Response:
        return page.find("guests.html", PAGE)

    async def _file(self, request: web.Request) -> web.Response:
        return page.find(request.match_info["name"], PAGE, page.FOLDER)

    async def _list(self, request: web.Request) -> web.Response:
        found = [guest for guest in await self._guests.look() if request[_CALLER].sees(guest.name)]
        return json_reply({"role": request[_CALLER].role, "guests": [guest.model_dump() for guest in found]})

    async def _figures(self, request: web.Request) -> web.Response:
        found = [guest for guest in await self._guests.look() if request[_CALLER].sees(guest.name)]
        stats = await self._guests.stats(guest.name for guest in found if guest.why is None)
        text = self._metrics.text(found, self._guests.connections) + exposition(*stats)
        return web.Response(body=text.encode(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

    async def _ticket(self, request: web.Request) -> web.Response:
        return json_reply({"ticket": self._tickets.issue(request[_CALLER]), "seconds": TICKET_TIME})

    async def _post(self, request: web.Request) -> web.Response:
        guest = request.match_info["guest"]
        reply = await calls.post(self._guests, guest, request[_CALLER], await body(request))
        if reply is None:
            return web.Response(status=204)
        return web.Response(body=reply, content_type="application/json")

    async def _calls(self, request: web.Request) -> web.StreamResponse:
        with self._socket(MESSAGE_MAX) as ws:
            await calls.serve(self._guests, request.match_info["guest"], request[_CALLER], request, ws)
            return ws

    async def _console(self, request: web.Request) -> web.StreamResponse:
        query = request.rel_url.without_query_params("ticket").query
        guest, name = request.match_info["guest"], request.match_info["console"]
        with self._socket(TYPED_MAX) as ws:
            await console.serve(self._guests, guest, name, request[_CALLER], asked(query), request, ws)
            return ws

    @contextmanager
    def _socket(self, longest: int) -> Iterator[web.WebSocketResponse]:
        ws = web.WebSocketResponse(max_msg_size=longest + 1, heartbeat=HEARTBEAT)
        self._sockets.add(ws)
        try:
            yield ws
        finally:
            self._sockets.discard(ws)


@web.middleware
async def _told(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An operator's fault, by HTTP's numbers."""
    try:
        return await handler(request)
    except NotFound as fault:
        raise web.HTTPNotFound(text=f"{fault}\n") from None
    except LimitReached as fault:
        raise web.HTTPTooManyRequests(text=f"{fault}\n") from None
    except XenpvdError as fault:
        raise web.HTTPBadGateway(text=f"{fault}\n") from None
