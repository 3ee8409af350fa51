"""A console among many viewers, and over the lives of its guest; the other files here have the rest of M."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.backends.console.test_backend import Bench, bench
from tests.fakes.console_frontend import OUT_SIZE
from tests.fakes.fds import open_fds
from xenpvd.backends.console.backend import Viewer
from xenpvd.backends.console.logfile import LogFile, LogTerms

__all__ = ["bench"]  # a fixture


def stream(length: int) -> bytes:
    """Any piece of 8 bytes tells where it is from."""
    return b"".join(b"%07x\n" % at for at in range(length // 8))


async def test_a_hundred_come_and_go_and_each_sees_its_part_whole(bench: Bench) -> None:
    """M8: 10,000 in all, while the guest prints; from each one's offset on there is no gap."""
    data, seen = stream(1 << 15), 0
    printing = bench.tasks.spawn(bench.printed(data), "guest")
    choice = random.Random(8)
    while not printing.done() or seen < 10_000:
        viewers = [
            bench.console.attach("ro", choice.randrange(bench.console.history.end + 1), "v")
            for _ in range(100)
        ]
        await asyncio.gather(*(look(viewer, data) for viewer in viewers))
        seen += len(viewers)
    await printing
    assert not bench.console.viewers and not bench.tasks._tasks


async def look(viewer: Viewer, data: bytes) -> None:
    """It reads as much as there is, a piece at least unless it stands at the end, and goes."""
    begin = viewer.offset
    if begin < viewer.live:
        part = await viewer.read()
        assert part and data[begin : begin + len(part)] == part
        assert viewer.offset == begin + len(part)
    viewer.close()


@pytest.mark.parametrize("viewers", [0, 8])
async def test_a_flood_keeps_to_its_bounds_whoever_looks(bench: Bench, tmp_path: Path, viewers: int) -> None:
    """M3, M4: a full ring at a time, with viewers that read nothing; the guest waits for none of them, and
    neither memory nor the log file is longer than it may be."""
    size = 1 << 17
    terms = LogTerms(tmp_path / "console.log", size=size, keep=1, timestamps=False, safe=False)
    log = LogFile(bench.console.history, "0", terms, lambda name, **data: None, lambda: 0.0)
    await log.open()
    deaf = [bench.console.attach("ro", None, "deaf") for _ in range(viewers)]
    for number in range(100):
        await bench.printed(b"%c" % (number % 256) * OUT_SIZE)
        assert sum(map(len, bench.console.history._blocks)) <= bench.console.history.limit + (2 << 16)
    assert all(viewer.ended is not None and viewer.ended.startswith("too slow") for viewer in deaf)
    await log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["console.log", "console.log.1"]
    assert all(file.stat().st_size <= size for file in files)


async def test_kexec_of_the_guest_is_a_new_connection_of_the_same_console(bench: Bench) -> None:
    """M9: its indices begin anew, on another page and port; hundreds of times, and nothing is left behind."""
    viewer = bench.console.attach("rw", None, "v")
    fds = len(open_fds())
    for number in range(200):
        await bench.console.disconnect()
        guest = bench.connect()
        await bench.printed(b"%03d" % number)
        assert await viewer.read() == b"%03d" % number
        await viewer.write(b"x")
        assert guest.reads() == b"x"
    assert len(open_fds()) == fds
