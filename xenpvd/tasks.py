"""Background tasks with an owner: named, kept, and never failing in silence."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from xenpvd.errors import HostError

log = logging.getLogger(__name__)

_T = TypeVar("_T")


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


async def in_thread(call: Callable[[], _T], drop: Callable[[_T], None] | None = None) -> _T:
    """Run a blocking ``call`` in a thread of its own; its result.

    Not asyncio's executor: its few threads are shared and joined at exit, so a file on storage that hangs
    would keep a guest from being stopped and the daemon from ending. If the caller is cancelled, the call
    goes on, and ``drop`` gets what it brings. Raises :class:`HostError` if the host gives no thread.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def succeed(result: _T) -> None:
        if not done.done():
            done.set_result(result)
        elif drop is not None:
            drop(result)

    def fail(fault: BaseException) -> None:
        if not done.done():
            done.set_exception(fault)

    def run() -> None:
        settle: Callable[[], object]
        try:
            settle = partial(succeed, call())
        except BaseException as fault:
            settle = partial(fail, fault)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle)

    try:
        threading.Thread(target=run, name="blocking call", daemon=True).start()
    except RuntimeError as fault:  # what Python makes of the EAGAIN of pthread_create()
        why = f"cannot begin a thread: {fault}. Raise the limit on tasks (TasksMax, ulimit -u)."
        raise HostError(why, errno.EAGAIN, "thread") from None
    return await done
