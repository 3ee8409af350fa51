"""Many calls under way on one connection, each with its own answer."""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import Any

from xenpvd.client.errors import ConnectionLost, RpcError
from xenpvd.client.wire import Wire
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)


class Connection:
    """``lost`` is why it has ended, once it has."""

    def __init__(self, wire: Wire) -> None:
        self.hello = wire.hello
        self.lost: ConnectionLost | None = None
        self._wire = wire
        self._ids = count(1)
        self._pending: dict[int, tuple[str, asyncio.Future[Any]]] = {}
        self._slots = asyncio.Semaphore(max(1, wire.hello["limits"]["in_flight"]))
        self._tasks = Tasks(self._broken)
        self._tasks.spawn(self._read(), "rpc answers")

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """The result. Waits while as many calls as the daemon takes are under way.

        A caller that is cancelled leaves the call to the daemon, which goes on with it: its place is
        taken until the daemon has answered. Raises :class:`RpcError`, :class:`ConnectionLost`.
        """
        await self._slots.acquire()
        try:
            if self.lost is not None:
                raise ConnectionLost(
                    f"{method} was not called: {self.lost}. Call it again.", maybe_done=False
                )
            id_ = next(self._ids)
            line = self._wire.encode(method, params, id_)
        except BaseException:
            self._slots.release()
            raise
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[id_] = method, answer
        self._wire.send(line)
        return await answer

    async def close(self) -> None:
        """End it. Idempotent."""
        await self._tasks.cancel()
        self._end(ConnectionLost(f"the connection to {self._wire.path} was closed", maybe_done=True))
        await self._wire.close()

    async def _read(self) -> None:
        try:
            while True:
                self._take(await self._wire.receive())
        except ConnectionLost as fault:
            self._end(fault)
            await self._wire.close()

    def _broken(self, name: str, fault: BaseException) -> None:
        log.error("%s failed", name, exc_info=fault)
        self._end(ConnectionLost(f"the client failed: {fault!r}", maybe_done=True))

    def _end(self, lost: ConnectionLost) -> None:
        self.lost = self.lost or lost
        for method, answer in self._pending.values():
            self._slots.release()
            if not answer.done():
                why = f"{method} was not answered: {lost}. It may have been done: look before a second try."
                answer.set_exception(ConnectionLost(why, maybe_done=True))
        self._pending.clear()

    def _take(self, message: dict[str, Any]) -> None:
        if "method" in message:
            return  # a notification; those that a client asks for have connections of their own
        id_ = message.get("id")
        if not isinstance(id_, int) or id_ not in self._pending:
            fault = message.get("error")
            told = fault.get("message") if isinstance(fault, dict) else "it answers what was not asked"
            raise ConnectionLost(f"the connection to {self._wire.path} was lost: {told}", maybe_done=True)
        _, answer = self._pending[id_]
        try:
            result = self._wire.answer(message)
        except RpcError as refused:
            if not answer.done():
                answer.set_exception(refused)
        else:
            if not answer.done():
                answer.set_result(result)
        del self._pending[id_]
        self._slots.release()
