"""JSON-RPC on a WebSocket of http.sock, each message a text: calls and notifications, as on rpc.sock."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from xenpvd.access import Role
from xenpvd.rpc.framing import MESSAGE_MAX
from xenpvd.rpc.link import Hangup
from xenpvd.rpc.service import Service
from xenpvd.rpc.session import Session
from xenpvd.sockets import credentials


class Calls:
    """Fits ``session.Carrier``."""

    raw = False

    def __init__(self, service: Service, request: web.Request, role: Role) -> None:
        assert request.transport is not None
        self._request = request
        self._ws = web.WebSocketResponse(max_msg_size=MESSAGE_MAX + 1)
        self._session = Session(service, f"{credentials(request.transport)}, websocket", role, self)

    async def serve(self) -> web.WebSocketResponse:
        """Until the client leaves, and all that it began is done."""
        session, ws = self._session, self._ws
        await ws.prepare(self._request)
        assert self._request.transport is not None
        hangup = Hangup(self._request.transport, session.left)
        try:
            await session.greet()
            async for message in ws:
                if message.type is WSMsgType.TEXT:
                    await session.take(message.data.encode())
                else:
                    await ws.close(code=WSCloseCode.UNSUPPORTED_DATA)
        except ConnectionError:
            pass
        finally:
            session.left()  # a WebSocket has no half that is closed
            await session.finish()
            hangup.close()
            await session.close()
        return ws

    def ending(self) -> set[asyncio.Task[Any]]:
        """See :meth:`Session.ending`."""
        return self._session.ending()

    async def send(self, message: bytes) -> None:
        await self._ws.send_str(message.decode())

    async def close(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._ws.close(code=WSCloseCode.GOING_AWAY)

    def abort(self) -> None:
        if (transport := self._request.transport) is not None:
            transport.abort()
