"""A block engine over all of its processes: one that ends is followed by another, which the guest does not
notice but by the time it takes.

What was under way is done again by the next process. What had been answered and not yet flushed may be gone
with a process that keeps tables to itself; then the next flush fails, as it would on a disk that lost power.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import mmap
import os
import re
from collections.abc import Callable
from dataclasses import replace

from xenpvd.backends.blkif.engine_process import (
    PROGRAM,
    START_TIMEOUT,
    EngineFault,
    EngineProcess,
    Job,
)
from xenpvd.backends.blkif.vhost import Device, VhostFault
from xenpvd.backends.blkif.vqueue import QUEUE_BYTES, Vqueue, Written
from xenpvd.errors import Unsupported
from xenpvd.tasks import Tasks
from xenpvd.views import EngineInfo

#: One for each ring, one for the daemon itself, and a few for who has not ended yet.
QUEUES = 8

#: Seconds: that a process has to close its image; that one has lived well; and between starts, at most.
END_TIMEOUT = 5.0
GOOD_LIFE = 60.0
LONGEST_PAUSE = 30.0

#: How it knows an image that it was given open
_OUR_FD = re.compile(r"/proc/self/fd/\d+")


class Engine:
    """``flush_errno`` is of the image. Loop thread only, but for what is said otherwise."""

    def __init__(self, job: Job, label: str, flush_errno: ctypes.c_int32, *, lossy: bool) -> None:
        """``lossy``: its processes keep something to themselves until they are asked to flush."""
        self.on_trouble: Callable[[str], None] | None = None
        self.on_fault: Callable[[str, BaseException], None] | None = None
        self.restarts = 0
        self.loop = asyncio.get_running_loop()
        self._job = job
        self._label = label
        self._flush_errno = flush_errno
        self._lossy = lossy
        self._process: EngineProcess | None = None
        self._renewed: EngineProcess | None = None  # that one was told to end
        self._device = Device(0, 0)
        self._version = ""
        self._written = Written()
        self._taken_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._let_go = asyncio.Event()
        self._queues = [Vqueue(index, self._written, self._taken_fd) for index in range(QUEUES)]
        self._free = self._queues[1:]
        self._tasks = Tasks(self._failed)
        self._closing = False
        self._ended = asyncio.Event()
        self.loop.add_reader(self._taken_fd, self._taken)

    async def start(self) -> None:
        """Raises :class:`EngineFault`, :class:`Unsupported`; it is closed then."""
        try:
            await self._begin()
        except EngineFault as fault:
            self.close()
            raise EngineFault(self._plain(fault)) from None
        except BaseException:
            self.close()
            raise
        self._tasks.spawn(self._supervise(), f"engine of {self._label}")

    @property
    def size(self) -> int:
        return self._device.size

    @property
    def can_discard(self) -> bool:
        return self._device.max_discard > 0

    @property
    def own_queue(self) -> Vqueue:
        """For what is asked by no ring."""
        return self._queues[0]

    def take_queue(self) -> Vqueue:
        """Raises ``OSError`` if all are in use, or it is closed."""
        if self._closing:
            raise OSError(errno.ESHUTDOWN, "it is closed")
        if not self._free:
            raise OSError(errno.EMFILE, "no more queues")
        return self._free.pop()

    def give_back(self, queue: Vqueue) -> None:
        """Its user has ended. In any thread."""
        queue.release()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody takes it any more
            self.loop.call_soon_threadsafe(self._given_back, queue)

    async def resize(self, size: int | None) -> int:
        """To ``size`` bytes, or only look; the size now. Raises :class:`EngineFault`."""
        process = self._living()
        if size is not None:
            await process.execute("block_resize", **{"node-name": "disk", "size": size})
        # what vhost-user tells is, before QEMU 8, the size that it had at first
        for node in await process.execute("query-named-block-nodes", flat=True):
            if node["node-name"] == "disk":
                self._device = replace(self._device, size=node["image"]["virtual-size"])
        return self.size

    async def look_anew(self) -> int:
        """The size that another process finds: one that is connected to a server knows only what that told
        it first. Raises :class:`EngineFault`, :class:`Unsupported`."""
        process = await EngineProcess.start(self._job)
        try:
            return process.device.size
        finally:
            await process.destroy()

    async def renew(self, size: int) -> int:
        """Go on with another process, for what :meth:`look_anew` has found; the size now. The guest waits for
        that moment. Raises :class:`EngineFault`."""
        process = self._living()
        self._device = replace(self._device, size=size)
        self._renewed = process
        await self._have_it_end(process)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._until(lambda: self._closing or self._process not in (None, process))
        except TimeoutError:
            raise EngineFault(f"it has not begun anew in {START_TIMEOUT:g} s. Requests wait") from None
        return self.size

    def _living(self) -> EngineProcess:
        if self._process is None:
            raise EngineFault("it is just being started again")
        return self._process

    def give_up(self) -> None:
        """Whoever waits for it is told that it failed. Its process ends before anything else is done, so that
        it does nothing of that later."""
        for queue in self._queues:
            queue.detach()
            if queue is not self.own_queue and queue not in self._free:
                queue.give_up()
        if self._process is not None:
            self._process.kill()

    def info(self) -> EngineInfo:
        process = self._process
        return EngineInfo(PROGRAM, self._version, process.pid if process else None, self.restarts)

    def close(self) -> None:
        """Returns at once; :meth:`ended` waits."""
        if not self._closing:
            self._closing = True
            self._let_go.set()
            self._tasks.spawn(self._end(), f"end of the engine of {self._label}")

    async def ended(self) -> None:
        await self._ended.wait()

    # ---- below: its tasks

    async def _begin(self) -> None:
        process = await EngineProcess.start(self._job)
        try:
            if self.restarts and process.device.size < self.size:
                raise EngineFault(f"the image has {process.device.size} bytes, and had {self.size}")
            shared = await self._share(process)
        except BaseException:
            await process.destroy()
            raise
        self._process, self._device, self._version = process, process.device, process.version
        for queue in self._queues:
            queue.attach(shared, process.device.max_discard)
        self._let_go.set()

    async def _share(self, process: EngineProcess) -> mmap.mmap:
        """Memory of its own for each process: one that is not quite dead finds nobody there."""
        size = QUEUES * QUEUE_BYTES
        fd = os.memfd_create("xenpvd-disk", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            shared = mmap.mmap(fd, size)
            await process.vhost.share(fd, size)
            for queue in self._queues:
                await process.vhost.start(queue.index, queue)
        except (VhostFault, OSError) as fault:
            raise EngineFault(str(fault)) from None
        finally:
            os.close(fd)
        return shared

    async def _supervise(self) -> None:
        pause = 0.0
        while True:
            process = self._process
            assert process is not None
            begun = self.loop.time()
            await process.exited.wait()
            self._process = None
            await self._detach()
            loss = self._loss()
            if process is not self._renewed:
                self._tell(f"{PROGRAM} {process.pid} of {self._label} {process.end}. {loss}")
            pause = 0.0 if self.loop.time() - begun >= GOOD_LIFE else pause
            while self._process is None:
                await asyncio.sleep(pause)
                pause = min(2 * pause or 0.25, LONGEST_PAUSE)
                self.restarts += 1
                try:
                    await self._begin()
                except (EngineFault, Unsupported) as fault:
                    why = self._plain(fault)
                    self._tell(f"{PROGRAM} for {self._label} cannot be started again: {why}. Requests wait.")

    async def _detach(self) -> None:
        """Until nobody looks at the process' memory: what it has answered by then was taken for done."""
        for queue in self._queues:
            queue.detach()
        await self._until(lambda: not any(queue.holds for queue in self._queues))

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._let_go.clear()
            await self._let_go.wait()

    def _loss(self) -> str:
        lost, again = self._written.unflushed, "What was under way is done again."
        self._written.forget()
        if not lost or not self._lossy:
            return again
        self._flush_errno.value = self._flush_errno.value or errno.EIO
        return (
            f"{again} {lost} writes since the last flush may be lost: flushes fail until the guest restarts."
        )

    def _taken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._taken_fd)
        self._let_go.set()

    def _given_back(self, queue: Vqueue) -> None:
        self._free.append(queue)
        self._let_go.set()

    def _plain(self, fault: Exception) -> str:
        return _OUR_FD.sub(self._label, str(fault))

    def _tell(self, what: str) -> None:
        if self.on_trouble is not None:
            self.on_trouble(what)

    def _failed(self, name: str, fault: BaseException) -> None:
        if self.on_fault is not None:
            self.on_fault(name, fault)

    async def _have_it_end(self, process: EngineProcess) -> None:
        """It closes its image, or is killed; then the kernel may still hold on to it."""
        process.terminate()
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await process.exited.wait()
        except TimeoutError:
            process.kill()

    async def _end(self) -> None:
        await self._tasks.cancel()
        process = self._process
        if process is not None:
            await self._have_it_end(process)
        for queue in self._queues:
            queue.give_up()
        if process is not None:
            await process.exited.wait()
        await self._detach()
        await self._until(lambda: len(self._free) == QUEUES - 1)
        self.loop.remove_reader(self._taken_fd)
        os.close(self._taken_fd)
        for queue in self._queues:
            queue.close()
        self._ended.set()
