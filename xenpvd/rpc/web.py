"""What HTTP clients are given and refused whoever asks, by http.sock and at the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Middleware
from pydantic_core import to_json

from xenpvd.rpc.errors import fault_of
from xenpvd.rpc.framing import MESSAGE_MAX

#: What a browser may have reached us as, by a tunnel: another name is somebody else's, that points at us
LOCAL = ("localhost", "127.0.0.1", "::1")

#: Seconds that a body may take.
BODY_TIME = 30.0

FULL = "cannot take another client: too many are served. Close one.\n"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Door(asyncio.Protocol):
    """Looks who it is, before a connection takes a place."""

    def __init__(self, admit: Callable[[asyncio.BaseTransport], asyncio.Protocol | str]) -> None:
        self._admit = admit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        found = self._admit(transport)
        if isinstance(found, str):
            out = cast(asyncio.WriteTransport, transport)
            out.write(found.encode())
            out.close()
        else:
            transport.set_protocol(found)
            found.connection_made(transport)


def told(status: str, why: str) -> str:
    """An answer before there is a request."""
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(why)}\r\n\r\n{why}"


async def body(request: web.Request) -> bytes:
    """The body of a POST; raises 400, 408, 413 (aiohttp does, too, where no length was told) and 415."""
    if request.content_type != "application/json" or hdrs.CONTENT_ENCODING in request.headers:
        why = "cannot take the body: it must be application/json without a Content-Encoding.\n"
        raise web.HTTPUnsupportedMediaType(text=why)
    if (request.content_length or 0) > MESSAGE_MAX:  # at once: nobody need send it, or wait for it
        raise web.HTTPRequestEntityTooLarge(MESSAGE_MAX, request.content_length or 0)
    try:
        async with asyncio.timeout(BODY_TIME):
            return await request.read()
    except TimeoutError:
        why = f"cannot wait for the body any longer: it has not come within {BODY_TIME:g} s.\n"
        raise web.HTTPRequestTimeout(text=why) from None
    except (HttpProcessingError, web.RequestPayloadError):
        raise web.HTTPBadRequest(text="cannot read the body: broken transfer coding.\n") from None


def json_reply(value: Any, status: int = 200) -> web.Response:
    body = to_json(value, inf_nan_mode="null")
    return web.Response(body=body, status=status, content_type="application/json")


@web.middleware
async def discreet(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A fault of ours is told by its incident number; aiohttp would send a traceback if the loop debugs."""
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except Exception as fault:
        told = fault_of(fault, f"{request.method} {request.path}")
        raise web.HTTPInternalServerError(text=told.message + "\n") from None


def no_foreign_page(names: tuple[str, ...]) -> Middleware:
    """Any page in the world can make a browser speak to a port of its own machine, but a browser says for
    whom it does (with every POST and WebSocket). ``names`` are those that browsers may know us by."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not _is_ours(origin, request.host, names):
            raise web.HTTPForbidden(text=f"cannot answer for {origin}: open the page that is served here.\n")
        return await handler(request)

    return check


def _is_ours(origin: str, host: str, names: tuple[str, ...]) -> bool:
    try:
        return urlsplit(origin).netloc == host and urlsplit(f"//{host}").hostname in names
    except ValueError:  # a bracket that is not closed
        return False


def _not_garbage(record: logging.LogRecord) -> bool:
    fault = record.exc_info[1] if record.exc_info else None
    return not isinstance(fault, HttpProcessingError | web.RequestPayloadError)


#: aiohttp's own, without a traceback for each client that speaks no HTTP.
log = logging.getLogger(__name__)
log.addFilter(_not_garbage)
