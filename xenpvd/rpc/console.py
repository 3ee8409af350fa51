"""The two directions of a connection that has become a console: raw bytes (varlink's "upgrade")."""

from __future__ import annotations

import asyncio
import contextlib

from xenpvd.errors import XenpvdError
from xenpvd.rpc.service import ConsoleViewer


async def serve_output(viewer: ConsoleViewer, writer: asyncio.StreamWriter) -> None:
    """What the guest prints, at the pace of the peer; ends with the viewer."""
    with contextlib.suppress(ConnectionError):
        while data := await viewer.read():
            writer.write(data)
            await writer.drain()


async def serve_typing(viewer: ConsoleViewer, reader: asyncio.StreamReader, data: bytes) -> None:
    """What the peer types, first the ``data`` that came with its request; ends with its input."""
    with contextlib.suppress(ConnectionError):
        while data or (data := await reader.read(4096)):
            with contextlib.suppress(XenpvdError):  # read-only, or no guest: what is typed goes nowhere
                await viewer.write(data)
            data = b""
