"""One guest's ring, served: the task between its kicks, the parser, the calls and what waits to go out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import monotonic

from xenpvd.abi.io_xs_wire import XENSTORE_ERROR_COMM
from xenpvd.abi.page import SharedPage
from xenpvd.backends.ops import EvtchnPort
from xenpvd.backends.port import PortKicks
from xenpvd.backends.xenstore.outbox import Outbox
from xenpvd.backends.xenstore.ring import Ring
from xenpvd.backends.xenstore.wire import ConnectionFault, Message, Parser
from xenpvd.tasks import Tasks

#: Steps between two looks at the rest of the loop: a guest that never pauses must not starve it.
BURST = 128
#: Seconds after which it is the others' turn in any case: some requests take milliseconds
TURN = 0.005

#: Seconds that a guest which broke the protocol waits, before it can connect anew: each time is an event
PENANCE = 1.0


class RingServer:
    """Serves from construction until :meth:`close`, :meth:`halt` or a fault of ours.

    ``handle(request)`` must lead to one :meth:`deliver` of its reply; ``reset()`` drops what the connection
    has set up, for a guest that reconnects; ``on_cut(task's name, fault)`` is called when the connection is
    cut off, with ``ConnectionFault`` if that is the guest's doing: it may then connect anew. ``resting()``
    gives the seconds for which no request is to be taken. What waits for the guest is in ``outbox``.
    """

    def __init__(
        self,
        name: str,
        page: SharedPage,
        port: EvtchnPort,
        outbox: Outbox,
        handle: Callable[[Message], None],
        reset: Callable[[], None],
        on_cut: Callable[[str, BaseException], None],
        resting: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._port = port
        self._handle = handle
        self._reset = reset
        self._on_cut = on_cut
        self._resting = resting
        self._ring = Ring(page)
        self._parser = Parser()
        self._outbox = outbox
        self._cut = False
        self._kicks = PortKicks(port)
        self._name = name
        self._tasks = Tasks(self._fault)
        self._serving = self._tasks.spawn(self._serve(), name)

    def deliver(self, message: Message) -> None:
        """Queue a reply or an event for the guest."""
        if not self._cut:
            self._outbox.put(message)
            self._kicks.poke()

    def halt(self) -> None:
        """Stop until :meth:`restart`; the guest gets no answer any more."""
        self._cut = True
        self._outbox.clear()
        self._serving.cancel()

    def restart(self) -> None:
        """Both streams begin anew, whatever the guest thinks of it."""
        self.halt()
        self._kicks.close()  # it may be closed, by a fault of ours
        self._kicks = PortKicks(self._port)
        self._reconnect()
        self._cut = False
        self._serving = self._tasks.spawn(self._serve(), self._name)
        self._port.notify()

    async def close(self) -> None:
        """Stop; the page and the port are not touched any more. Idempotent."""
        self._cut = True
        await self._tasks.cancel()
        self._outbox.clear()
        self._kicks.close()

    async def _serve(self) -> None:
        while True:
            try:
                await self._converse()
            except ConnectionFault as fault:
                self._break_off(fault.error)
                self._on_cut(self._name, fault)
            await asyncio.sleep(PENANCE)
            while not self._ring.reconnect_wanted():
                await self._kicks.wait()
            self._cut = False

    async def _converse(self) -> None:
        """Until the guest breaks the protocol: raises :class:`ConnectionFault`."""
        while True:
            rest = self._resting()  # before: it may end while we look, and nobody would kick for that
            if self._pump():
                await asyncio.sleep(0)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._kicks.wait()

    def _pump(self) -> bool:
        """Move what can be moved, for a while; False if nothing is left to do before the next kick."""
        moved, until = False, monotonic() + TURN
        try:
            for _ in range(BURST):
                if not self._step():
                    return False
                moved = True
                if monotonic() > until:
                    break
            return True
        finally:
            if moved:
                self._port.notify()

    def _step(self) -> bool:
        """One thing: reconnect, or send and handle one request or take in bytes. False if there was none."""
        if self._ring.reconnect_wanted():
            self._reconnect()
            return True
        sent = self._send()
        if self._outbox.behind or self._resting() is not None:
            return sent
        if (message := self._parser.next()) is not None:
            self._handle(message)
            return True
        data = self._ring.consume()
        self._parser.feed(data)
        return sent or bool(data)

    def _send(self) -> bool:
        sent = False
        while (data := self._outbox.head()) and (length := self._ring.produce(data)):
            self._outbox.sent(length)
            sent = True
        return sent

    def _reconnect(self) -> None:
        self._reset()
        self._parser = Parser()
        self._outbox.clear()
        self._ring.reset()

    def _break_off(self, error: int) -> None:
        """Nothing is read or written any more, and the guest can see why."""
        self._cut = True
        self._outbox.clear()
        self._ring.set_error(error)
        self._port.notify()

    def _fault(self, name: str, fault: BaseException) -> None:
        """Ours, and final."""
        self._kicks.close()
        self._break_off(XENSTORE_ERROR_COMM)
        self._on_cut(name, fault)
