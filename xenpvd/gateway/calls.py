"""JSON-RPC on its way to a daemon, by POST and by WebSocket: read, judged, and written anew, so that the
daemon reads what was judged and nothing else."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any, cast

from aiohttp import WSCloseCode, WSMsgType, web
from pydantic_core import to_json

from xenpvd.access import ROLES, Role, covers
from xenpvd.client.errors import ConnectionLost, Unreachable
from xenpvd.client.wire import Wire
from xenpvd.gateway.access import Caller
from xenpvd.gateway.guests import Guests
from xenpvd.gateway.roles import Refused, judge, methods, need
from xenpvd.rpc.errors import parse_fault
from xenpvd.rpc.framing import parse
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)


def judged(sent: bytes, caller: Caller, guest: str, streams: bool) -> Any:
    """The message. Raises :class:`Refused`."""
    try:
        message = parse(sent)
    except (ValueError, RecursionError) as fault:
        raise Refused(parse_fault(str(fault)).reply(None)) from None
    told = [f"{method[:64]!r}" for method in methods(message) if need(method) != "viewer"]
    try:
        judge(message, caller.role, streams)
    except Refused:
        log.warning("%s, %s, was refused %s on %s", caller.who, caller.role, ", ".join(told), guest)
        raise
    if told:
        log.info("%s calls %s on %s", caller.who, ", ".join(told), guest)
    return message


async def post(guests: Guests, guest: str, caller: Caller, sent: bytes) -> bytes | None:
    """The reply; None if there is nothing to answer. Raises what keeps the daemon from being reached."""
    try:
        message = judged(sent, caller, guest, streams=False)
    except Refused as refused:
        return None if refused.reply is None else to_json(refused.reply)
    async with guests.connect(guest, caller.role) as wire:
        wire.send(to_json(message) + b"\n")
        wire.end_input()
        with contextlib.suppress(ConnectionLost):
            while True:
                if _is_reply(line := await wire.receive_line()):
                    return line
    requests = message if isinstance(message, list) else [message]
    if any(not isinstance(request, dict) or "id" in request for request in requests):
        raise Unreachable(f"{guest} has left without an answer. It may be done: look before a second try.")
    return None


def _is_reply(line: bytes) -> bool:
    """Not a notification."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(message, list) or (isinstance(message, dict) and "method" not in message)


async def serve(
    guests: Guests, guest: str, caller: Caller, request: web.Request, ws: web.WebSocketResponse
) -> None:
    """Until either side ends. Raises what keeps the daemon from being reached."""
    async with guests.connect(guest, caller.role) as wire:
        await ws.prepare(request)
        await ws.send_json(_greeting(wire, caller))
        tasks = Tasks()
        try:
            tasks.spawn(_answers(wire, ws), "gateway answers")
            await _requests(wire, ws, caller, guest)
        except ConnectionError:
            pass
        finally:
            await tasks.cancel()


def _greeting(wire: Wire, caller: Caller) -> dict[str, Any]:
    """The daemon's, with the role that comes of what it grants us and what we grant."""
    granted = cast(Role, wire.hello["role"]) if wire.hello.get("role") in ROLES else "admin"
    role = caller.role if covers(granted, caller.role) else granted
    return {"jsonrpc": "2.0", "method": "daemon.hello", "params": {**wire.hello, "role": role}}


async def _requests(wire: Wire, ws: web.WebSocketResponse, caller: Caller, guest: str) -> None:
    async for sent in ws:
        if sent.type is not WSMsgType.TEXT:
            await ws.close(code=WSCloseCode.UNSUPPORTED_DATA)
            return
        try:
            message = judged(sent.data.encode(), caller, guest, streams=True)
        except Refused as refused:
            if refused.reply is not None:
                await ws.send_str(to_json(refused.reply).decode())
            continue
        wire.send(to_json(message) + b"\n")
        await wire.drain()


async def _answers(wire: Wire, ws: web.WebSocketResponse) -> None:
    with contextlib.suppress(ConnectionError, ConnectionLost, UnicodeDecodeError):
        while True:
            await ws.send_str((await wire.receive_line()).decode())
    with contextlib.suppress(ConnectionError):
        await ws.close(code=WSCloseCode.GOING_AWAY)
