"""A console in memory, and its viewers, for tests/fakes/service.py."""

from __future__ import annotations

import asyncio

from xenpvd.errors import Busy


class FakeViewer:
    def __init__(self, console: FakeConsole, mode: str, offset: int, who: str) -> None:
        self.console, self.mode, self.offset, self.who = console, mode, offset, who
        self.closed = asyncio.Event()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def read(self) -> bytes:
        """As the real one, this is not woken by close()."""
        while not self.closed.is_set():
            if data := bytes(self.console.recorded[self.offset :]):
                self.offset += len(data)
                return data
            if self.console.ended:
                break
            self._wake.clear()
            await self._wake.wait()
        return b""

    async def write(self, data: bytes) -> None:
        if self.mode != "rw":
            raise Busy("somebody else has the keyboard", by="another viewer")
        await self.console.type(data)

    def close(self) -> str:
        self.closed.set()
        if self in self.console.viewers:
            self.console.viewers.remove(self)
        return "detached"


class FakeConsole:
    """``echo`` makes a guest that prints what is typed."""

    def __init__(self) -> None:
        self.recorded = bytearray()
        self.typed = bytearray()
        self.viewers: list[FakeViewer] = []
        self.echo = False
        self.ended = False
        self._typed_more = asyncio.Event()

    def print(self, data: bytes) -> None:
        self.recorded += data
        for viewer in self.viewers:
            viewer.wake()

    def end(self) -> None:
        """The daemon ends: every viewer reads its end."""
        self.ended = True
        for viewer in self.viewers:
            viewer.wake()

    async def type(self, data: bytes) -> None:
        self.typed += data
        if self.echo:
            self.print(data)
        self._typed_more.set()

    async def wait_typed(self, text: bytes) -> None:
        while text not in self.typed:
            self._typed_more.clear()
            await self._typed_more.wait()
