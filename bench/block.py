"""xen-block's data planes beside the limit: the same transfers by io_uring in C, with no ring in between.

    python -m bench.block [--rounds N] [--size MIB] [--bytes MIB]

A frontend in C drives each plane on one image in the page cache, by turns; and the native plane on the same
image as qcow2, behind qemu-storage-daemon, where there is one. The image is what the planes get; the guest's
memory is this process's. It needs a C compiler, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from bench import results
from bench.results import Kind, Level
from xenpvd.abi.grant_table import GTF_permit_access, grant_entry_v1
from xenpvd.abi.io_blkif import SECTOR_SIZE, X86_64
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.backends.blkif.engine_image import EngineImage
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.native import NativePlane
from xenpvd.backends.blkif.plane import Plane
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.throttle import Throttle
from xenpvd.config import DiskConfig
from xenpvd.vmm.grants import Grants
from xenpvd.vmm.memory import GuestMemory
from xenpvd.vmm.port import BackendPort, eventfd

SLOTS = 32
RAM = 64 << 20
FIRST_GREF = 8


class Row(NamedTuple):
    name: str
    pages: int
    depth: int
    write: bool = False
    sequential: bool = False


ROWS = (
    Row("4K random read, depth 1", 1, 1),
    Row("4K random read, depth 32", 1, 32),
    Row("4K random write, depth 32", 1, 32, write=True),
    Row("64K read, depth 16", 16, 16, sequential=True),
    Row("128K read, depth 8", 32, 8, sequential=True),
    Row("1M read, depth 4", 256, 4, sequential=True),
    Row("128K write, depth 8", 32, 8, write=True, sequential=True),
)


#: as a row names it
PLANES = {"native": "", "python": ", plain Python", "qcow2": ", as qcow2"}
CHARTED = (ROWS[0], ROWS[1], ROWS[2], ROWS[4], ROWS[6])


class Job(ctypes.Structure):
    """struct job of blkfront.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("ring", "data", "tables")),
        *((name, ctypes.c_uint32) for name in ("first_gref", "table_gref")),
        *((name, ctypes.c_int32) for name in ("kick_fd", "irq_fd", "image_fd")),
        *((name, ctypes.c_uint32) for name in ("pages", "depth", "write", "sequential")),
        *((name, ctypes.c_uint64) for name in ("size", "operations", "elapsed", "cpu")),
    )


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


def run(
    which: str, row: Row, guest: Guest, image: Image, operations: int, lib: ctypes.CDLL
) -> tuple[float, float]:
    """(requests in a second, µs of CPU of a request: the backend's, or the limit's)."""
    tables = guest.ring_gfn + 1
    data = tables + SLOTS
    guest.memory.page(guest.ring_gfn).view[:] = bytes(PAGE_SIZE)
    ring = guest.memory.page(guest.ring_gfn)
    for index in (4, 12):
        ring.store32(index, 1)
    port = BackendPort(1, eventfd(), eventfd(), lambda: None, lambda: None)
    port._raise_event = lambda: os.eventfd_write(port.irq_fd or 0, 1)
    job = Job(
        ring=guest.address(guest.ring_gfn),
        data=guest.address(data),
        tables=guest.address(tables),
        first_gref=guest.gref(data),
        table_gref=guest.gref(tables),
        kick_fd=port.kick_fd,
        irq_fd=port.irq_fd,
        image_fd=image.fd,
        pages=row.pages,
        depth=row.depth,
        write=row.write,
        sequential=row.sequential,
        size=image.size,
        operations=operations,
    )
    if which == "limit":
        assert lib.limit(ctypes.byref(job)) == 0
        port.close()
        return operations / job.elapsed * 1e9, job.cpu / operations / 1000
    offer = Offer(image.size // SECTOR_SIZE, max_indirect=256)
    image = image.dup()
    ends: list[BaseException | None] = []
    plane: Plane | NativePlane
    common: dict[str, Any] = {"abi": X86_64, "offer": offer, "on_trouble": print, "on_end": ends.append}
    if which != "python":
        plane = NativePlane([ring], port, guest.grants.memory(), image, **common)
    else:
        plane = Plane([ring], port, guest.grants, image, throttle=Throttle(), **common)
    plane.start()
    before = resource.getrusage(resource.RUSAGE_SELF)
    code = lib.front(ctypes.byref(job))
    after = resource.getrusage(resource.RUSAGE_SELF)
    plane.stop()
    plane.join()
    port.close()
    assert code == 0 and ends == [None], (code, ends)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return operations / job.elapsed * 1e9, (cpu * 1e9 - job.cpu) / operations / 1000


class Loop:
    """A loop in a thread, for an engine's control."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coro, self._loop).result()


def engine_image(loop: Loop, raw: Path) -> Image:
    target = raw.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, target], check=True)
    image: Image = loop.run(EngineImage.start(DiskConfig(vdev="xvda", target=f"{target}", format="qcow2")))
    return image


async def end(image: Image) -> None:
    image.close()
    await image.ended()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.block", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 5)
    parser.add_argument("--size", type=int, default=256, help="MiB of the image")
    parser.add_argument("--bytes", type=int, default=512, help="MiB that a round transfers at most")
    args = parser.parse_args()
    if shutil.which("cc") is None:
        sys.exit("bench: no C compiler here. Install gcc and libc6-dev.")
    report, _ = results.begin("xen-block's data planes, beside the same I/O with no ring")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "blkfront.so")
        source = Path(__file__).with_name("blkfront.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", built, source], check=True)
        lib = ctypes.CDLL(str(built))
        path = Path(folder, "image")
        with path.open("wb") as file:
            for _ in range(args.size):
                file.write(os.urandom(1 << 20))
        loop = Loop()
        there = all(map(shutil.which, ("qemu-img", "qemu-storage-daemon")))
        engine = {"qcow2": engine_image(loop, path)} if there else {}
        if not engine:
            print("Without qcow2: there is no qemu-storage-daemon or qemu-img here. Install qemu-utils.")
        image = Image.open(path, readonly=False)
        images = dict.fromkeys(("native", "python"), image) | engine
        guest = Guest()
        for row in ROWS:
            most = 100_000 if row.depth > 1 else 20_000
            operations = max(
                min(2000, 4 * args.bytes), min(most, (args.bytes << 20) // (row.pages * PAGE_SIZE))
            )
            for _ in range(args.rounds):
                limit = run("limit", row, guest, image, operations, lib)
                for which, mine in images.items():
                    ours = run(which, row, guest, mine, operations, lib)
                    name = f"{row.name}{PLANES[which]}"
                    level: Level = "chart" if which == "native" and row in CHARTED else "docs"
                    rate = Kind(f"{name}: requests", "1/s", "more", level)
                    cpu = Kind(f"{name}: CPU of a request", "µs", level="terminal")
                    for peer, (requests, used) in (("xenpvd", ours), ("limit", limit)):
                        report.note(rate, peer, requests)
                        report.note(cpu, peer, used)
        image.close()
        for other in engine.values():
            loop.run(end(other))
    report.finish()


if __name__ == "__main__":
    main()
