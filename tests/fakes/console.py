"""A console with no ring, for tests/fakes/service.py: the guest is the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xenpvd.backends.console.backend import Console
from xenpvd.events import Publish


class FakeConsole(Console):
    """``echo`` makes a guest that prints what is typed, ``deaf`` one that never takes it; ``typing`` is set
    when somebody begins."""

    def __init__(self, publish: Publish) -> None:
        super().__init__(publish, 1 << 20, number=0)
        self.typed = bytearray()
        self.echo = self.deaf = False
        self.typing = asyncio.Event()
        self._typed_more = asyncio.Event()

    def print(self, data: bytes) -> None:
        self.record(data)

    async def type(
        self,
        data: bytes,
        timeout: float | None = None,
        check: Callable[[], None] = lambda: None,
        by: object = None,
    ) -> None:
        self.typing.set()
        while self.deaf:
            check()
            self._taken.clear()
            await self._taken.wait()
        self.typed += data
        if self.echo:
            self.print(data)
        self._typed_more.set()

    def hears(self) -> None:
        self.deaf = False
        self._taken.set()

    async def wait_typed(self, text: bytes) -> None:
        while text not in self.typed:
            self._typed_more.clear()
            await self._typed_more.wait()
