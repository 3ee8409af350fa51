"""The survival contract S of the bad guests' cases, as far as a store without a VM can see it.

A World that looks at itself: whatever a guest does, nothing fails in silence, domain 0's tool on
xenstored.sock is served as before, and what the guest has taken is given back to the byte.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.backends.xenstore.transports import Guest, RingGuest, SocketGuest, World
from tests.fakes.evtchn import FakeEvtchnPort
from tests.fakes.page import FakePage
from xenpvd.abi import io_xs_wire as abi
from xenpvd.backends.xenstore.socket import XenstoreSocket
from xenpvd.tasks import Tasks


class _Errors(logging.Handler):
    """What is logged as an error: a fault of ours that was caught somewhere."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Survivors(World):
    """Within ``async with`` all may be done that a guest can do; at its end all others must have survived.

    ``clock`` is the rings', in seconds.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        self.clock: Callable[[], float] = time.monotonic
        self.unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.unhandled.append(context))
        self._errors = _Errors()
        logging.getLogger().addHandler(self._errors)
        self._tool_socket: XenstoreSocket | None = None
        self._tools: list[SocketGuest] = []

    async def __aenter__(self) -> Survivors:
        return self

    async def __aexit__(self, fault: type[BaseException] | None, *_: object) -> None:
        try:
            if fault is None:
                await self.assert_survived()
        finally:
            await self.end()

    async def _on_ring(self, domid: int) -> RingGuest:
        guest = RingGuest(FakePage(), FakeEvtchnPort())
        self.store.connect(domid, guest.page, guest.port, clock=lambda: self.clock())
        self.rings[domid] = guest
        return guest

    async def tool(self) -> SocketGuest:
        """One more client of domain 0's, on a socket: it has no ring."""
        if self._tool_socket is None:
            self._tool_socket = XenstoreSocket(self.store, self.folder / "dom0")
            await self._tool_socket.start()
        tool = SocketGuest(*await asyncio.open_unix_connection(self.folder / "dom0"))
        self._tools.append(tool)
        return tool

    async def release(self, domid: int) -> None:
        """Domain 0 ends it, and lets another one begin that has its number; a socket's must connect anew."""
        tool = await self.tool()
        assert await tool.ask(abi.XS_RELEASE, b"%d\0" % domid) == b"OK\0"
        assert await tool.ask(abi.XS_INTRODUCE, b"%d\x001\x001\0" % domid) == b"OK\0"
        if self.kind == "ring":
            self.rings[domid]._in = b""

    def unpaid(self, domid: int) -> int:
        """Bytes on a domain's account for which it owns no node."""
        nodes = self.store._state.store.nodes()
        owned = sum(node.memory(path) for path, node in nodes if node.perms[0].domid == domid)
        return self.domain(domid).memory - owned

    async def assert_survived(self) -> None:
        async with asyncio.timeout(5):
            await super().assert_survived()
            tool = await self.tool()
            assert await tool.ask(abi.XS_READ, b"/local/domain/2/data/alive\0") == b"yes"
        assert [record.getMessage() for record in self._errors.records] == []
        assert self.unhandled == []

    async def end(self) -> None:
        logging.getLogger().removeHandler(self._errors)
        try:
            await super().end()
        finally:
            for tool in self._tools:
                await tool.leave()
            if self._tool_socket is not None:
                await self.until(lambda: not self._tool_socket.peers)  # type: ignore[union-attr]
                await self._tool_socket.stop()
        assert len(self.store._outlets) == 1, "only the daemon's own client is left"
        assert not self.store._state.watches._by_connection.keys() - self.store._outlets.keys()
        assert (self.unpaid(1), self.unpaid(2)) == (0, 0)
        assert self.unhandled == []


def post(guest: Guest, data: bytes) -> int:
    """Send without ever reading an answer; how many bytes have gone."""
    if isinstance(guest, RingGuest):
        return guest.put(data)
    guest.writer.write(data)
    return len(data)


async def begin(guest: Guest) -> int:
    """A new transaction's id."""
    answer = await guest.ask(abi.XS_TRANSACTION_START, b"\0")
    assert isinstance(answer, bytes), answer
    return int(answer[:-1])


async def commit(guest: Guest, tx: int, verdict: bytes = b"T\0") -> bytes | str:
    return await guest.ask(abi.XS_TRANSACTION_END, verdict, tx)


async def heard(guest: Guest) -> list[tuple[str, str]]:
    """The events so far: they come before the reply to what is asked after them."""
    await guest.ask(abi.XS_GET_DOMAIN_PATH, b"0\0")
    events = list(guest.events)
    guest.events.clear()
    return events


class Stall:
    """``seconds``: of this thread's CPU time, the most that passed between two turns of the loop."""

    seconds = 0.0


@asynccontextmanager
async def stall() -> AsyncIterator[Stall]:
    """Measure while the block runs. CPU time, since nobody can help what else the machine does."""
    found, over = Stall(), asyncio.Event()

    async def beat() -> None:
        last = time.thread_time()
        while not over.is_set():
            await asyncio.sleep(0)
            now = time.thread_time()
            found.seconds = max(found.seconds, now - last)
            last = now

    beating = Tasks().spawn(beat(), "beat")
    try:
        yield found
    finally:
        over.set()
        await beating
