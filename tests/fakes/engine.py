"""Images that a block engine serves, with a plane and the guest's ring on them; and looking into them from
outside."""

from __future__ import annotations

import queue
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.fakes.blkfront import BlkRing
from tests.fakes.evtchn import FakeEvtchnPort
from tests.fakes.gnttab import FakeGnttab
from xenpvd.abi.io_blkif import SECTOR_SIZE, X86_64
from xenpvd.backends.blkif.engine_image import EngineImage
from xenpvd.backends.blkif.engine_process import Job
from xenpvd.backends.blkif.native import NativePlane
from xenpvd.backends.blkif.plane import Plane
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.throttle import Throttle
from xenpvd.config import DiskConfig
from xenpvd.tasks import in_thread

_T = TypeVar("_T")

MISSING = [name for name in ("qemu-storage-daemon", "qemu-img", "qemu-nbd") if shutil.which(name) is None]
needs_engine = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} missing (Debian: qemu-utils, qemu-system-common)"
)

SIZE = 4 << 20


def make_image(path: Path, form: str, size: int = SIZE) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", form, path, str(size)], check=True, capture_output=True)
    return path


def contents(path: Path, form: str) -> bytes:
    """What a guest would read of it, as others see the image."""
    raw = path.with_suffix(".as-raw")
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


def make_job(fd: int, queues: int = 2) -> Job:
    """To serve the qcow2 image that is open as ``fd``."""
    nodes = [
        {"driver": "file", "filename": f"/proc/self/fd/{fd}", "node-name": "storage"},
        {"driver": "qcow2", "file": "storage", "node-name": "disk"},
    ]
    return Job(nodes, [fd], readonly=False, sector_size=512, queues=queues)


class EngineDisk:
    """A plane on an image of an engine. The guest's calls block, and the loop is the engine's: :meth:`do` has
    them done in a thread."""

    def __init__(self, image: EngineImage, native: bool) -> None:
        self.image = image
        self.troubles: list[str] = []
        self.faults: list[BaseException] = []
        image.watch(self.troubles.append, lambda name, fault: self.faults.append(fault))
        self.gnttab = FakeGnttab()
        self.native = native
        self._closed = False
        self.open()

    def open(self) -> None:
        """A plane, as for another life of the guest."""
        self.ends: queue.Queue[BaseException | None] = queue.Queue()
        self.ring = BlkRing(self.gnttab)
        self.port = self.ring.port = FakeEvtchnPort()
        image = self.image.dup()
        offer = Offer(image.size // SECTOR_SIZE, image.readonly, max_indirect=256, discard=image.can_discard)
        tell: dict[str, Any] = {
            "abi": X86_64,
            "offer": offer,
            "on_trouble": self.troubles.append,
            "on_end": self.ends.put,
        }
        self.plane: Plane | NativePlane
        if self.native:
            self.plane = NativePlane(self.ring.pages, self.port, self.gnttab.memory(), image, **tell)
        else:
            self.plane = Plane(self.ring.pages, self.port, self.gnttab, image, throttle=Throttle(), **tell)
        self.plane.start()

    @classmethod
    async def start(
        cls, path: Path | str, form: str = "qcow2", *, native: bool = True, **options: Any
    ) -> EngineDisk:
        disk = DiskConfig(vdev="xvda", target=f"{path}", format=form, **options)
        return cls(await EngineImage.start(disk), native)

    @property
    def pid(self) -> int:
        engine = self.image.describe()
        assert engine is not None and engine.pid is not None
        return engine.pid

    @property
    def is_there(self) -> bool:
        """The engine has a process."""
        engine = self.image.describe()
        return engine is not None and engine.pid is not None

    async def do(self, call: Callable[[BlkRing], _T]) -> _T:
        return await in_thread(lambda: call(self.ring))

    async def shut(self) -> BaseException | None:
        """End the plane; what it ended with."""
        self.plane.stop()
        end = await in_thread(lambda: self.ends.get(timeout=10))
        self.plane.join()
        self.port.close()
        return end

    async def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        assert await self.shut() is None
        self.image.close()
        await self.image.ended()
        assert self.faults == []
