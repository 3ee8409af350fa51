"""A connection that has become a console: raw bytes both ways (varlink's "upgrade")."""

from __future__ import annotations

import asyncio
import contextlib

from xenpvd.errors import XenpvdError
from xenpvd.rpc.service import ConsoleViewer
from xenpvd.tasks import Tasks


async def serve_console(
    viewer: ConsoleViewer,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    typed: bytes,
    tasks: Tasks,
) -> str:
    """Carry bytes until the viewer ends or the peer has gone; returns why it ended.

    A peer that only ends its sending side goes on to watch. ``typed`` came with the request.
    """
    typing = tasks.spawn(_serve_typing(viewer, reader, typed), "console typing")
    try:
        while data := await viewer.read():
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        typing.cancel()
        why = viewer.close()
    return why


async def _serve_typing(viewer: ConsoleViewer, reader: asyncio.StreamReader, data: bytes) -> None:
    try:
        while data or (data := await reader.read(4096)):
            with contextlib.suppress(XenpvdError):  # read-only: what is typed goes nowhere
                await viewer.write(data)
            data = b""
    except ConnectionError:
        pass
