"""A data plane on a file, with the guest's ring: everything of a disk but xenstore."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.blkfront import BlkRing
from tests.fakes.evtchn import FakeEvtchnPort
from tests.fakes.gnttab import FakeGnttab
from xenpvd.abi.io_blkif import SECTOR_SIZE, X86_64, Abi
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.native import NativePlane
from xenpvd.backends.blkif.plane import Plane
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.throttle import Throttle
from xenpvd.config import Cache


class FaultyImage(Image):
    """``fail(call)`` is asked before each system call ("read", "write", "flush") and may raise."""

    fail: Callable[[str], None] = staticmethod(lambda call: None)

    def _preadv(self, views: list[memoryview], offset: int) -> int:
        self.fail("read")
        return super()._preadv(views, offset)

    def _pwritev(self, views: list[memoryview], offset: int) -> int:
        self.fail("write")
        return super()._pwritev(views, offset)

    def _fdatasync(self) -> None:
        self.fail("flush")
        super()._fdatasync()

    def _discard(self, offset: int, length: int) -> None:
        self.fail("discard")
        super()._discard(offset, length)


class _PortWithoutIrq:
    """The same port; the plane does not see its irq_fd, the guest does."""

    irq_fd = None

    def __init__(self, port: FakeEvtchnPort) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)


class Disk:
    """A plane on a file, with the guest's ring. ``troubles`` and ``ends`` collect what the plane tells."""

    def __init__(
        self,
        path: Path,
        *,
        abi: Abi = X86_64,
        start: int = 0,
        readonly: bool = False,
        size: int | None = None,
        native: bool = False,
        irq: bool = True,
        uring: bool = True,
        engine: str | None = None,
        cache: Cache = "writeback",
        order: int = 0,
        gnttab: Any = None,
        image: FaultyImage | None = None,
        block: bool = False,
    ) -> None:
        """``engine`` is "python", "preadv" or "io_uring"; with ``block`` it takes the file for a device."""
        if engine is not None:
            native, uring = engine != "python", engine == "io_uring"
        self.path = path
        image = image or FaultyImage.open(path, readonly=readonly, cache=cache)
        assert isinstance(image, FaultyImage)
        image.is_block |= block
        self.image = image
        self.gnttab = gnttab or FakeGnttab()
        self.ring = BlkRing(self.gnttab, abi, start, order)
        self.ring.port = self.port = FakeEvtchnPort()
        if not irq:  # as where events do not go through the kernel
            self.port = _PortWithoutIrq(self.port)  # type: ignore[assignment]
        self.throttle = Throttle()
        self.troubles: list[str] = []
        self.ends: queue.Queue[BaseException | None] = queue.Queue()
        offer = Offer(
            sectors=(image.size if size is None else size) // SECTOR_SIZE,
            readonly=readonly,
            max_indirect=256,
            discard=True,
        )
        tell: dict[str, Any] = {"on_trouble": self.troubles.append, "on_end": self.ends.put}
        pages, port = self.ring.pages, self.port
        self.plane: Plane | NativePlane
        if native:
            self.plane = NativePlane(
                pages, port, self.gnttab.memory(), image, abi=abi, offer=offer, uring=uring, **tell
            )
        else:
            self.plane = Plane(
                pages, port, self.gnttab, image, abi=abi, offer=offer, throttle=self.throttle, **tell
            )

    def start(self) -> BlkRing:
        self.plane.start()
        return self.ring

    def end(self) -> BaseException | None:
        """Stop the plane and return what it ended with."""
        self.plane.stop()
        return self.ended()

    def ended(self) -> BaseException | None:
        fault = self.ends.get(timeout=5)
        self.plane.join()
        assert not self.gnttab.mapped
        return fault

    def contents(self) -> bytes:
        return self.path.read_bytes()

    def close(self) -> None:
        self.plane.stop()
        self.plane.join()
        self.port.close()
        self.image.close()
