"""An image that another process serves, a block engine, because it is no raw file: qcow2 and its like, or
what an NBD server has.

For a plane it is an :class:`Image` like others. The native one puts its requests into a queue to the engine
by itself; the plain-Python one calls ``read``, ``write``, ``flush`` and ``discard``.
"""

from __future__ import annotations

import asyncio
import copy
import os
import stat
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Self

from xenpvd.abi import vhost_user as abi
from xenpvd.backends.blkif import engine_process, formats
from xenpvd.backends.blkif.engine import QUEUES, Engine
from xenpvd.backends.blkif.engine_process import EngineFault, Job
from xenpvd.backends.blkif.formats import Misfit
from xenpvd.backends.blkif.image import Image, refusal_of_size
from xenpvd.backends.blkif.opening import open_file, reasons, refusal
from xenpvd.backends.blkif.vqueue import Vqueue
from xenpvd.config import DiskConfig
from xenpvd.tasks import in_thread
from xenpvd.views import EngineInfo


class EngineImage(Image):
    """Made by :meth:`start`, in the loop; ``read`` and its like in any thread, ``dup`` and ``close`` too."""

    _engine: Engine
    _queue: Vqueue
    _owner = True
    _closed = False
    _opened = -1

    @classmethod
    async def start(cls, disk: DiskConfig) -> Self:
        """Open the disk's image and begin the engine. Raises :class:`ImageError`, :class:`Unsupported`."""
        file = await in_thread(partial(examine, disk), drop=close)
        return await cls._begin(disk, file)

    @classmethod
    async def _begin(cls, disk: DiskConfig, file: int) -> Self:
        made = cls(-1, disk.target, 0, readonly=disk.readonly)
        made._opened = file
        try:
            engine = await made._start_engine(disk)
        except BaseException as fault:
            await made._give_back_file()
            if isinstance(fault, EngineFault):
                raise refusal(disk.target, f"{engine_process.PROGRAM} says: {fault}", _cure(fault)) from None
            raise
        made._engine, made._queue = engine, engine.own_queue
        made.size = engine.size
        made.can_discard = engine.can_discard and not disk.readonly
        return made

    async def _start_engine(self, disk: DiskConfig) -> Engine:
        try:
            return await self._try_engine(disk, "io_uring")
        except EngineFault as fault:
            if "io_uring" not in str(fault):
                raise
        return await self._try_engine(disk, "threads")  # it is forbidden here, or not built in

    async def _try_engine(self, disk: DiskConfig, aio: str) -> Engine:
        job = Job(
            nodes=formats.nodes(_source(disk, self._opened, aio), disk.format, readonly=disk.readonly),
            fds=[self._opened] if self._opened >= 0 else [],
            readonly=disk.readonly,
            sector_size=disk.sector_size,
            queues=QUEUES,
        )
        lossy = formats.keeps_to_itself(disk.format)
        engine = Engine(job, disk.target, self.flush_errno, lossy=lossy)
        try:
            await engine.start()
        except EngineFault:
            await engine.ended()
            raise
        return engine

    def dup(self) -> Self:
        twin = copy.copy(self)
        twin._owner = False
        twin._queue = self._engine.take_queue()
        return twin

    def close(self, unlock: bool = True) -> None:
        if self._closed:
            return
        self._closed = True
        if self._owner:
            self._engine.close()
        else:
            self._engine.give_back(self._queue)

    async def ended(self) -> None:
        await self._engine.ended()
        await self._give_back_file()

    async def _give_back_file(self) -> None:
        file, self._opened = self._opened, -1
        await in_thread(partial(close, file))

    def is_at(self, path: str) -> bool:
        if self._opened < 0:
            return path == self.path
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._opened))  # noqa: PTH116
        except (OSError, ValueError):
            return False

    # ---- for the backend

    def serve_queue(self) -> int | None:
        self._queue.serve()
        return self._queue.address

    def watch(
        self, on_trouble: Callable[[str], None], on_fault: Callable[[str, BaseException], None]
    ) -> None:
        self._engine.on_trouble, self._engine.on_fault = on_trouble, on_fault
        self.flush_errno.value = 0  # another life: what it finds missing was missing when it began

    def give_up(self) -> None:
        self._engine.give_up()

    def describe(self) -> EngineInfo | None:
        return self._engine.info()

    @property
    def _is_remote(self) -> bool:
        return formats.is_remote(self.path)

    def _look_at_size(self) -> int:
        return self._ask(self._engine.look_anew() if self._is_remote else self._engine.resize(None))

    def _why_fixed(self) -> tuple[str, str] | None:
        if self._is_remote:
            return "a server has it", "Resize it there, and give no size"
        return super()._why_fixed()

    def resize(self, size: int) -> None:
        if size == self.size:
            return
        if self._is_remote:
            self.flush_now()
            self.size = self._ask(self._engine.renew(size))
        else:
            # one that has the size already has just been looked at
            self.size = self._ask(self._engine.resize(size if size != self._engine.size else None))

    def _ask(self, asking: Coroutine[Any, Any, int]) -> int:
        """In a thread: the engine is the loop's."""
        try:
            return asyncio.run_coroutine_threadsafe(asking, self._engine.loop).result()
        except EngineFault as fault:
            raise refusal_of_size(
                self.path, f"its engine says: {fault}", "Choose another size, or try again"
            ) from None

    # ---- for the plain-Python plane

    def read(self, views: list[memoryview], offset: int) -> None:
        self._queue.transfer(abi.VIRTIO_BLK_T_IN, offset, views)

    def write(self, views: list[memoryview], offset: int) -> None:
        self._queue.transfer(abi.VIRTIO_BLK_T_OUT, offset, views)

    def discard(self, offset: int, length: int) -> None:
        self._queue.discard(offset, length)

    def _fdatasync(self) -> None:
        self._queue.flush()


def examine(disk: DiskConfig) -> int:
    """Look at all that can be looked at without an engine; the image's open file, -1 if it is none. Blocking.
    Raises :class:`ImageError`, :class:`Unsupported`."""
    engine_process.find()
    try:
        if formats.is_remote(disk.target):
            formats.nbd(disk.target)
            return -1
        # the engine opens it anew by this, and locks it: it stays the same file for all its processes
        file = open_file(disk.target, disk.readonly)
        try:
            size = os.lseek(file, 0, os.SEEK_END)
            formats.check(disk.format, lambda offset, count: os.pread(file, count, offset), size)
        except BaseException:
            os.close(file)
            raise
    except Misfit as fault:
        raise refusal(disk.target, fault.why, fault.cure) from None
    except OSError as fault:
        raise refusal(disk.target, *reasons(fault, disk.readonly)) from None
    return file


def _source(disk: DiskConfig, file: int, aio: str) -> dict[str, Any]:
    if file < 0:
        return formats.nbd(disk.target)
    driver = "host_device" if stat.S_ISBLK(os.fstat(file).st_mode) else "file"
    return {"driver": driver, "filename": f"/proc/self/fd/{file}", "aio": aio, "locking": "on"}


def close(file: int) -> None:
    """What :func:`examine` has opened."""
    if file >= 0:
        os.close(file)


def _cure(fault: EngineFault) -> str:
    if "lock" in str(fault):
        return "Stop what uses the image first, or let all who share it have access ro."
    return "Check it with qemu-img check, or the server that has it."
