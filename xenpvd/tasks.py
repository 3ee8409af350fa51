"""Background tasks with an owner: named, kept, and never failing in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Tasks:
    """The tasks of one owner (a guest, a device, a connection).

    ``on_fault(name, exception)`` is called in the loop when a task ends by an exception that nobody
    awaits; it is the owner's place to say what such a fault ends. Without it the fault is logged.
    """

    def __init__(self, on_fault: Callable[[str, BaseException], None] | None = None) -> None:
        self._on_fault = on_fault
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start ``coro``; the task is kept until it ends."""
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (fault := task.exception()) is None:
            return
        if self._on_fault is not None:
            self._on_fault(task.get_name(), fault)
        else:
            log.error("task %s failed", task.get_name(), exc_info=fault)

    async def cancel(self) -> None:
        """Cancel every task but the calling one and wait until they have ended."""
        mine = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
