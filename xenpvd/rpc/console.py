"""The two directions of a connection that is a console: raw bytes (varlink's "upgrade")."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from xenpvd.access import Role, covers
from xenpvd.errors import Busy, Unsupported, XenpvdError
from xenpvd.rpc.link import GRACE
from xenpvd.rpc.service import Consoles, ConsoleViewer
from xenpvd.tasks import Tasks

#: Who may have a keyboard
TYPIST: Role = "operator"


class Reader(Protocol):
    async def read(self, most: int, /) -> bytes:
        """Some bytes; none at the end. Raises ConnectionError."""


def attach_as_can(
    consoles: Consoles,
    name: str,
    since: int | None,
    who: str,
    role: Role,
    on_mode: Callable[[str], None] = lambda mode: None,
) -> ConsoleViewer:
    """With the keyboard if nobody has it and ``role`` may, else to look on. Raises ``NotFound``,
    ``LimitReached``."""
    typist = covers(role, TYPIST)
    if typist:
        with contextlib.suppress(Busy, Unsupported):
            return consoles.attach(name, "rw", since, None, who, on_mode)
    return consoles.attach(name, "ro", since, None, who, on_mode, typist)


async def converse(
    viewer: ConsoleViewer,
    reader: Reader,
    write: Callable[[bytes], Awaitable[None]],
    gone: asyncio.Event,
    typed: bytes = b"",
) -> None:
    """Until the viewer ends or the peer has ``gone``; one that only ends its sending side watches on.
    ``typed`` came before the rest. ``write`` waits while the peer does not read, and raises
    ConnectionError."""
    tasks = Tasks()
    output = tasks.spawn(_serve_output(viewer, write), "console output")
    typing = tasks.spawn(_serve_typing(viewer, reader, typed), "console typing")
    hangup = tasks.spawn(gone.wait(), "console hangup")
    ended = tasks.spawn(viewer.wait_ended(), "console end")
    try:
        await asyncio.wait({output, hangup, ended}, return_when=asyncio.FIRST_COMPLETED)
        if gone.is_set():  # what it typed before it left
            await asyncio.wait({typing}, timeout=GRACE)
        else:  # a peer that does not read has the last bytes still before it
            await asyncio.wait({output, hangup}, return_when=asyncio.FIRST_COMPLETED, timeout=GRACE)
    finally:
        await tasks.cancel()


async def _serve_output(viewer: ConsoleViewer, write: Callable[[bytes], Awaitable[None]]) -> None:
    """What the guest prints, at the pace of the peer; ends with the viewer."""
    with contextlib.suppress(ConnectionError):
        while data := await viewer.read():
            await write(data)


async def _serve_typing(viewer: ConsoleViewer, reader: Reader, data: bytes) -> None:
    """What the peer types, first the ``data`` that came with its request; ends with its input."""
    with contextlib.suppress(ConnectionError):
        while data or (data := await reader.read(4096)):
            with contextlib.suppress(XenpvdError):  # read-only, or no guest: what is typed goes nowhere
                await viewer.write(data)
            data = b""
    viewer.release()  # it can type no more
