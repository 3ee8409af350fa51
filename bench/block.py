"""xen-block's data planes beside two in C: the same transfers without a ring, and the least of a backend.

    python -m bench.block [--rounds N] [--size MIB] [--bytes MIB]

A frontend in C drives each plane on one image in the page cache, by turns; the native plane on the same image
as qcow2, too, behind qemu-storage-daemon, where there is one; and with O_DIRECT, if the file system can. The
image is what the planes get; the guest's memory is this process's. It needs a C compiler, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from bench import results
from bench.results import MINE, Kind, Level, Report
from bench.ring import LEAST, LIMIT, NATIVE, PYTHON, Guest, Shape, make_image, need_compiler
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.backends.blkif.engine_image import EngineImage
from xenpvd.backends.blkif.image import Image
from xenpvd.config import DiskConfig
from xenpvd.errors import ImageError

QCOW2 = "qcow2"


class Row(NamedTuple):
    name: str
    shape: Shape
    direct: bool = False


ROWS = (
    Row("4K random read, depth 1", Shape(1, 1)),
    Row("4K random read, depth 32", Shape(1, 32)),
    Row("4K random write, depth 32", Shape(1, 32, write=True)),
    Row("64K read, depth 16", Shape(16, 16, sequential=True)),
    Row("128K read, depth 8", Shape(32, 8, sequential=True)),
    Row("1M read, depth 4", Shape(256, 4, sequential=True)),
    Row("128K write, depth 8", Shape(32, 8, write=True, sequential=True)),
    Row("O_DIRECT: 4K random read, depth 32", Shape(1, 32), direct=True),
    Row("O_DIRECT: 128K read, depth 8", Shape(32, 8, sequential=True), direct=True),
)
#: as a row names it
PLANES = {NATIVE: "", PYTHON: ", plain Python", QCOW2: ", as qcow2"}
CHARTED = (ROWS[0], ROWS[1], ROWS[2], ROWS[4], ROWS[6])


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


def measure(row: Row, guest: Guest, images: dict[str, Image], size: int, report: Report) -> None:
    """One round of it: at most ``size`` bytes for each."""
    most = 100_000 if row.shape.depth > 1 else 20_000
    operations = min(most, max(64, size // (row.shape.pages * PAGE_SIZE)))
    charted: Level = "chart" if row in CHARTED else "docs"
    found = {which: guest.run(which, row.shape, images[NATIVE], operations) for which in (LIMIT, LEAST)}
    for which, image in images.items():
        name = row.name + PLANES[which]
        rate = Kind(f"{name}: requests", "1/s", "more", charted if which == NATIVE else "docs")
        cpu = Kind(f"{name}: CPU of a request", "µs", level="terminal")
        found[MINE] = guest.run(which, row.shape, image, operations)
        for peer, (requests, used) in found.items():
            report.note(rate, peer, requests)
            report.note(cpu, peer, used)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.block", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 5)
    parser.add_argument("--size", type=int, default=256, help="MiB of the image")
    parser.add_argument("--bytes", type=int, default=512, help="MiB that a round transfers at most")
    args = parser.parse_args()
    need_compiler()
    report, _ = results.begin("xen-block's data planes, beside the same I/O with no ring")
    with tempfile.TemporaryDirectory() as folder:
        path = make_image(Path(folder, "image"), args.size)
        loop = Loop()
        engine = {}
        if all(map(shutil.which, ("qemu-img", "qemu-storage-daemon"))):
            engine[QCOW2] = engine_image(loop, path)
        else:
            print("Without qcow2: there is no qemu-storage-daemon or qemu-img here. Install qemu-utils.")
        guest = Guest()
        image = Image.open(path, readonly=False)
        for row in ROWS:
            for _ in range(0 if row.direct else args.rounds):
                images = {NATIVE: image, PYTHON: image, **engine}
                measure(row, guest, images, args.bytes << 20, report)
        image.close()
        for other in engine.values():
            loop.run(end(other))
        try:
            image = Image.open(path, readonly=False, cache="none")
        except ImageError as why:
            print(f"Without O_DIRECT: {why}")
        else:
            for row in ROWS:
                for _ in range(args.rounds if row.direct else 0):
                    measure(row, guest, {NATIVE: image, PYTHON: image}, args.bytes << 18, report)
            image.close()
    report.finish()


if __name__ == "__main__":
    main()
