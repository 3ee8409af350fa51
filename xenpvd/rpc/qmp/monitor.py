"""What all clients of qmp.sock share: the guest's verbs, the names that only QMP knows, and its events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from xenpvd.events import Event, EventLog, Publish
from xenpvd.rpc.qmp.events import NAMES, Translator
from xenpvd.rpc.qmp.names import Names
from xenpvd.rpc.service import Service
from xenpvd.tasks import Tasks

log = logging.getLogger(__name__)


class Monitor:
    """``events`` are QMP's own, already in its words; clients subscribe there."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.names = Names()
        self.events = EventLog()
        self.tell: Publish = self.events.publish
        self._source, _, _ = service.events.subscribe(NAMES)
        self._translator = Translator(self.names)
        self._tasks = Tasks(lambda name, fault: log.info("%s: %s", name, fault))
        self._under_way: dict[str, asyncio.Task[Any]] = {}

    def start(self) -> None:
        self._translation = self._tasks.spawn(self._translate(), "qmp events")

    async def stop(self) -> None:
        """What has happened by now is in ``events``, and what was begun behind a reply is given up."""
        self._source.close()
        await self._translation
        await self._tasks.cancel()

    async def _translate(self) -> None:
        async for event in self._source:
            self._tell_of(event)

    def catch_up(self) -> None:
        """All that has happened by now is in ``events``."""
        while (event := self._source.take()) is not None:
            self._tell_of(event)

    def _tell_of(self, event: Event) -> None:
        for name, data in self._translator.translate(event):
            self.tell(name, **data)

    async def begin(self, what: str, coro: Coroutine[Any, Any, Any]) -> None:
        """Run ``coro`` behind the reply, in the place of the one of that name before. What is refused at once
        is raised; what fails later is logged."""
        if (before := self._under_way.get(what)) is not None:
            before.cancel()
        task = self._under_way[what] = self._tasks.spawn(coro, what)
        task.add_done_callback(lambda task: self._end(what, task))
        await asyncio.wait({task}, timeout=0)
        if task.done() and not task.cancelled():
            task.result()

    def is_under_way(self, what: str) -> bool:
        return what in self._under_way

    def _end(self, what: str, task: asyncio.Task[Any]) -> None:
        if self._under_way.get(what) is task:
            del self._under_way[what]
