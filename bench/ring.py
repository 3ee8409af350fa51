"""A guest that is only its half of xen-block's ring, in C (blkfront.c), and the planes that serve it."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from xenpvd.abi.grant_table import GTF_permit_access, grant_entry_v1
from xenpvd.abi.io_blkif import SECTOR_SIZE, X86_64
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.native import NativePlane
from xenpvd.backends.blkif.plane import Plane
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.throttle import Throttle
from xenpvd.vmm.grants import Grants
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.port import BackendPort, eventfd

SLOTS = 32
RAM = 64 << 20
FIRST_GREF = 8

#: whom the planes are held against, both in C: the transfers without a ring, and the least of a backend
LIMIT, LEAST = "limit", "least"
#: the planes; any other name is the native one's, with another image
PYTHON, NATIVE = "python", "native"


class Shape(NamedTuple):
    """What is asked for: ``pages`` of a request, ``depth`` of them at a time."""

    pages: int
    depth: int
    write: bool = False
    sequential: bool = False


class Job(ctypes.Structure):
    """struct job of blkfront.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("ring", "data", "tables")),
        *((name, ctypes.c_uint32) for name in ("first_gref", "table_gref")),
        *((name, ctypes.c_int32) for name in ("kick_fd", "irq_fd", "image_fd")),
        *((name, ctypes.c_uint32) for name in ("pages", "depth", "write", "sequential", "stop")),
        *((name, ctypes.c_uint64) for name in ("size", "operations", "ended", "elapsed", "cpu")),
    )


def need_compiler() -> None:
    if shutil.which("cc") is None:
        sys.exit("bench: no C compiler here. Install gcc and libc6-dev.")


@cache
def library() -> ctypes.CDLL:
    """blkfront.c, compiled."""
    with tempfile.TemporaryDirectory() as folder:
        built, source = Path(folder, "blkfront.so"), Path(__file__).with_name("blkfront.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", built, source], check=True)
        return ctypes.CDLL(str(built))


def make_image(path: Path, mib: int) -> Path:
    """All of it is in the page cache then."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    return path


class Guest:
    """RAM with a grant table in its first pages, then the ring, the tables of segments and the data."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.region = self.memory.add("ram", 0, RAM, ram=True)
        self.grants = Grants(self.memory)
        frames = RAM // PAGE_SIZE // 512 + 1
        for frame in range(frames):
            self.grants.set_frame(frame, frame)
        self.ring_gfn = frames
        for gfn in range(self.ring_gfn, RAM // PAGE_SIZE):
            grant_entry_v1.pack_into(self.region.view, self.gref(gfn) * 8, GTF_permit_access, 0, gfn)

    def gref(self, gfn: int) -> int:
        return FIRST_GREF + gfn - self.ring_gfn

    def address(self, gfn: int) -> int:
        return self.region.address + (gfn << PAGE_SHIFT)

    @contextmanager
    def ring(self, shape: Shape, image: Image, operations: int) -> Iterator[tuple[BackendPort, Job]]:
        """An empty one, and what its frontend is to do."""
        tables = self.ring_gfn + 1
        data = tables + SLOTS
        page = self.memory.page(self.ring_gfn)
        page.view[:] = bytes(PAGE_SIZE)
        for index in (4, 12):
            page.store32(index, 1)
        port = BackendPort(1, eventfd(), eventfd(), lambda: None, lambda: None)
        port._raise_event = lambda: os.eventfd_write(port.irq_fd or 0, 1)
        try:
            yield (
                port,
                Job(
                    ring=self.address(self.ring_gfn),
                    data=self.address(data),
                    tables=self.address(tables),
                    first_gref=self.gref(data),
                    table_gref=self.gref(tables),
                    kick_fd=port.kick_fd,
                    irq_fd=port.irq_fd,
                    image_fd=image.fd,
                    size=image.size,
                    operations=operations,
                    **shape._asdict(),
                ),
            )
        finally:
            port.close()

    @contextmanager
    def served(self, which: str, port: BackendPort, job: Job, image: Image) -> Iterator[None]:
        """The ring, while there is a backend for it. Raises what that has ended with."""
        ends: list[Any] = []
        if which == LEAST:
            work = threading.Thread(target=lambda: ends.append(library().back(ctypes.byref(job)) or None))
            work.start()
            yield
            work.join()
        else:
            ring = [self.memory.page(self.ring_gfn)]
            common: dict[str, Any] = {
                "abi": X86_64,
                "offer": Offer(image.size // SECTOR_SIZE, max_indirect=256),
                "on_trouble": print,
                "on_end": ends.append,
            }
            plane: Plane | NativePlane
            if which == PYTHON:
                plane = Plane(ring, port, self.grants, image.dup(), throttle=Throttle(), **common)
            else:
                plane = NativePlane(ring, port, self.grants.memory(), image.dup(), **common)
            plane.start()
            yield
            plane.stop()
            plane.join()
        assert ends == [None], ends

    def run(self, which: str, shape: Shape, image: Image, operations: int) -> tuple[float, float]:
        """(requests in a second, µs of CPU of a request: the backend's, or the limit's)."""
        with self.ring(shape, image, operations) as (port, job):
            if which == LIMIT:
                assert library().limit(ctypes.byref(job)) == 0
                return operations / job.elapsed * 1e9, job.cpu / operations / 1000
            with self.served(which, port, job, image):
                before = resource.getrusage(resource.RUSAGE_SELF)
                assert library().front(ctypes.byref(job)) == 0
                after = resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            return operations / job.elapsed * 1e9, (cpu * 1e9 - job.cpu) / operations / 1000
