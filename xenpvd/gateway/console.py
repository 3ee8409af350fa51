"""A guest's console over a WebSocket, with the messages of the daemon's own (xenpvd/rpc/websocket.py), for
daemons that serve no HTTP: one connection to the daemon has the bytes, another one tells what happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from xenpvd.access import covers
from xenpvd.client.errors import ConnectionLost, RpcError, Unreachable
from xenpvd.client.wire import Wire
from xenpvd.errors import Busy, PermissionRefused, Unsupported, XenpvdError
from xenpvd.gateway.access import Caller
from xenpvd.gateway.guests import GREETING, Guests
from xenpvd.rpc.console import TYPIST
from xenpvd.rpc.link import GRACE
from xenpvd.rpc.websocket import Query, wish
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)

#: Messages with typed bytes that wait for the guest, of 64 KiB at most
TYPED_MAX = 64
EVENTS = ["guest.state", "console.keyboard", "console.detached", "console.opened"]


async def serve(
    guests: Guests,
    guest: str,
    console: str,
    caller: Caller,
    query: Query,
    request: web.Request,
    ws: web.WebSocketResponse,
) -> None:
    """Until either side ends. What the daemon or the role refuses is ``denied``; raises what keeps the daemon
    from being reached."""
    async with guests.connect(guest, caller.role) as events, guests.connect(guest, caller.role) as wire:
        seat = _Seat(guests, guest, console, caller, ws)
        try:
            async with asyncio.timeout(GREETING):
                await seat.learn(events)
        except (LookupError, TypeError, ConnectionLost, TimeoutError):
            raise Unreachable(f"cannot use {guest}: it does not answer as xenpvd does. Try again.") from None
        await ws.prepare(request)
        try:
            await seat.serve(events, wire, query)
        except ConnectionError:
            pass
        except (RpcError, PermissionRefused) as fault:
            await ws.send_json({"type": "denied", "why": str(fault)})
            await ws.close(code=WSCloseCode.POLICY_VIOLATION)
        except (ConnectionLost, LookupError, TypeError):  # or one that is no xenpvd's
            await ws.close(code=WSCloseCode.GOING_AWAY)


class _Seat:
    """One viewer. ``offset`` is that of the byte which comes next."""

    def __init__(
        self, guests: Guests, guest: str, console: str, caller: Caller, ws: web.WebSocketResponse
    ) -> None:
        self._guests = guests
        self._guest = guest
        self._console = console
        self._caller = caller
        self._ws = ws
        self._tasks = Tasks(self._broken)
        self._marks: dict[int, int] = {}  # offset -> the boot whose output begins there
        self._live = self._offset = self._viewer = 0
        self._rest = b""  # has come, and is not sent yet
        self._role = "ro"
        self._input = "none"  # single, shared
        self._why = "the daemon has ended it"
        self._kicked = False  # it shall not come back by itself
        self._ended = asyncio.Event()  # there is no other reason to come
        self._typed = asyncio.Queue[bytes](TYPED_MAX)

    async def learn(self, events: Wire) -> None:
        """What there is before we attach; ``events`` goes on from there."""
        seq = (await events.ask("daemon.ping", {}))["seq"]
        self._status = await events.ask("guest.status", {})
        for info in await events.ask("console.list", {}):
            if info["console"] == self._console:
                self._live, self._input = info["end"], info["input"]
        for event in await events.ask("events.history", {"names": ["console.opened"], "max": 4096}):
            if event["data"]["console"] == self._console:
                self._marks[event["data"]["offset"]] = event["data"]["boot"]
        await events.ask("events.subscribe", {"names": EVENTS, "since": seq})

    async def serve(self, events: Wire, wire: Wire, query: Query) -> None:
        """Raises :class:`RpcError`, :class:`PermissionRefused`, :class:`ConnectionLost`."""
        await self._attach(wire, query.mode, query.since)
        await self._ws.send_json(
            {
                "type": "hello",
                "console": self._console,
                "viewer": self._viewer,
                "role": self._role,
                "offset": self._offset,
                "live": max(self._live, self._offset),
                "input": self._input,
                "epoch": wire.hello["epoch"],
                "guest": self._status["name"],
                "state": self._status["state"],
            }
        )
        who = f"{self._caller.who} at console {self._console!r} of {self._guest}"
        log.info("%s: %s", who, self._role)
        try:
            self._tasks.spawn(self._serve_events(events), "gateway console events")
            self._tasks.spawn(self._serve_output(wire), "gateway console output")
            self._tasks.spawn(self._serve_typing(wire), "gateway console typing")
            await self._serve_input()
        finally:
            await self._tasks.cancel()
            log.info("%s has left", who)

    @property
    def _types(self) -> bool:
        """It has the keyboard; whoever gave it that, the role comes first."""
        return self._role == "rw" and covers(self._caller.role, TYPIST)

    def _check_typist(self) -> None:
        if not covers(self._caller.role, TYPIST):
            why = f"cannot have the keyboard: you are {self._caller.role} here, and that takes {TYPIST}."
            raise PermissionRefused(why, need=TYPIST, role=self._caller.role)

    async def _attach(self, wire: Wire, mode: str, since: int | None) -> None:
        typist = covers(self._caller.role, TYPIST)
        if mode in ("rw", "steal"):
            self._check_typist()
        params = {"console": self._console, "since": since, "mode": "ro" if mode == "auto" else mode}
        try:
            first = {**params, "mode": "rw"} if mode == "auto" and typist else params
            attached = await wire.ask("console.attach", first)
        except (Busy, Unsupported):
            if mode != "auto":
                raise
            attached = await wire.ask("console.attach", params)
        self._role, self._viewer, self._offset = attached["mode"], attached["viewer"], attached["offset"]

    async def _steal(self) -> None:
        try:
            self._check_typist()
            async with self._guests.connect(self._guest, self._caller.role) as wire:
                await wire.ask("console.steal", {"viewer": self._viewer})
        except XenpvdError as fault:
            await self._deny(str(fault))

    async def _deny(self, why: str) -> None:
        await self._ws.send_json({"type": "denied", "why": why})

    # ---- to the client

    async def _serve_output(self, wire: Wire) -> None:
        try:
            while True:
                await self._show()
                self._rest = await wire.receive_raw()
        except ConnectionLost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self._ended.wait()
        await self._ws.send_json({"type": "end", "why": self._why})
        await self._ws.close(code=WSCloseCode.POLICY_VIOLATION if self._kicked else WSCloseCode.GOING_AWAY)

    async def _show(self) -> None:
        while self._rest:
            if (boot := self._marks.get(self._offset)) is not None:
                await self._ws.send_json({"type": "opened", "offset": self._offset, "boot": boot})
            next_boot = min((mark for mark in self._marks if mark > self._offset), default=1 << 63)
            length = min(len(self._rest), next_boot - self._offset)
            piece, self._rest = self._rest[:length], self._rest[length:]
            self._offset += length  # first: a boot that is told of meanwhile may begin amid them
            await self._ws.send_bytes(piece)

    async def _serve_events(self, events: Wire) -> None:
        with contextlib.suppress(ConnectionLost):
            while True:
                event = (await events.receive())["params"]
                await self._tell(event["name"], event["data"])
        self._ended.set()

    async def _tell(self, name: str, data: dict[str, Any]) -> None:
        if name == "guest.state":
            await self._ws.send_json({"type": "state", "state": data["to"]})
        elif data.get("console") != self._console:
            return
        elif name == "console.opened":
            self._marks[data["offset"]] = data["boot"]
            if data["offset"] < self._offset:  # its bytes were faster
                await self._ws.send_json({"type": "opened", "offset": data["offset"], "boot": data["boot"]})
        elif data["viewer"] != self._viewer:
            return
        elif name == "console.detached":
            self._why, self._kicked = data["why"], data["kicked"]
            self._ended.set()
        elif data["mode"] != self._role:
            self._role = data["mode"]
            await self._ws.send_json({"type": "role", "role": self._role})

    # ---- from the client

    async def _serve_input(self) -> None:
        """Always reads on, or nobody would hear that it has left, nor see that it is still there."""
        async for message in self._ws:
            if message.type is WSMsgType.BINARY and self._types:
                try:
                    self._typed.put_nowait(message.data)
                except asyncio.QueueFull:
                    await self._deny("cannot type on: the guest takes no input. What you type now is lost.")
            elif message.type is WSMsgType.BINARY:
                await self._deny("cannot type: this viewer is read-only. Take the keyboard first.")
            elif message.type is WSMsgType.TEXT and wish(message.data) == "steal":
                if self._role != "rw":
                    await self._steal()
            else:
                await self._ws.close(code=WSCloseCode.UNSUPPORTED_DATA)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self._typed.join()  # what it typed before it left

    async def _serve_typing(self, wire: Wire) -> None:
        while True:
            wire.send(await self._typed.get())
            await wire.drain()
            self._typed.task_done()

    def _broken(self, name: str, fault: BaseException) -> None:
        if not isinstance(fault, ConnectionError):
            log.warning("%s of %s failed: %r", name, self._guest, fault)
        self._tasks.spawn(self._ws.close(), "gateway console end")
