"""A daemon while a disk of its process is saturated: its calls and a vCPU's exits; and how two disks share.

    python -m bench.saturated [--rounds N] [--seconds N]

In the daemon's process a frontend in C keeps a disk's ring full, 4K random reads at depth 32 from the page
cache, and a thread stands for a vCPU: it sleeps for 20 µs, then it needs the GIL, as an exit does; how late
it comes is measured. A client calls daemon.ping every millisecond. The peer is the same without disks. How
two disks share is measured with nothing beside them. It needs a C compiler, and nothing else.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import results
from bench.results import MINE, Kind, Report
from bench.ring import NATIVE, PYTHON, Guest, Job, Shape, library, make_image, need_compiler
from bench.servers import PING, Connection, Server
from xenpvd.__main__ import main as xenpvd
from xenpvd.backends.blkif.image import Image

IDLE = "idle"
SHAPE = Shape(pages=1, depth=32)
FOREVER = 1 << 60
SLEEP = 20e-6
PAUSE = 0.001
#: by plane, as a row names it
ROWS = {NATIVE: "a saturated disk", PYTHON: "a saturated disk, plain Python"}
SHARE = Kind("two saturated disks: the lesser's part of both", "%", "more")


class Loaded(Server):
    """xenpvd with ``planes`` at work; what it finds is in ``found`` once it has ended."""

    def __init__(self, folder: Path, planes: Sequence[str]) -> None:
        self.planes = planes
        self.found = folder / "late"
        super().__init__(MINE, folder)

    def argv(self, folder: Path, guest: str) -> list[str | Path]:
        python, *_ = words = super().argv(folder, guest)
        return [python, "-m", "bench.saturated", "--daemon", self.found, ",".join(self.planes), *words[3:]]


@contextmanager
def saturated(which: str, path: Path) -> Iterator[Job]:
    """A disk, until the end; its job tells then how many requests there were."""
    guest, image = Guest(), Image.open(make_image(path, 16), readonly=False)
    with guest.ring(SHAPE, image, FOREVER) as (port, job), guest.served(which, port, job, image):
        front = threading.Thread(target=library().front, args=(ctypes.byref(job),))
        front.start()
        yield job
        job.stop = 1
        front.join()
    image.close()


@contextmanager
def vcpu(late: list[float]) -> Iterator[None]:
    """µs that each of its exits is late."""
    ending = threading.Event()

    def exits() -> None:
        while not ending.is_set():
            since = time.perf_counter()
            time.sleep(SLEEP)
            late.append((time.perf_counter() - since - SLEEP) * 1e6)

    thread = threading.Thread(target=exits)
    thread.start()
    yield
    ending.set()
    thread.join()


def daemon(found: Path, planes: Sequence[str], words: Sequence[str]) -> None:
    """The process that is measured: xenpvd, as its command runs it, beside the threads that load it."""
    late: list[float] = []
    with ExitStack() as stack:
        for number, which in enumerate(planes):
            stack.enter_context(saturated(which, found.with_name(f"{number}.img")))
        stack.enter_context(vcpu(late))
        xenpvd(words, standalone_mode=False)
    found.write_text(str(p99(late)))


def p99(values: Sequence[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


def run(folder: Path, planes: Sequence[str], seconds: float) -> tuple[list[float], float]:
    """µs of each call, and how late an exit is at the 99th percentile."""
    server = Loaded(folder, planes)
    try:
        client, times = Connection(server), list[float]()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            since = time.perf_counter()
            client.socket.sendall(PING[MINE])
            client.wait()
            times.append((time.perf_counter() - since) * 1e6)
            time.sleep(PAUSE)
        client.close()
    finally:
        server.close()
    late: float = json.loads(server.found.read_text())
    return times, late


def share(folder: Path, seconds: float) -> float:
    """The lesser's part of what two disks have served, in per cent."""
    with saturated(NATIVE, folder / "0.img") as one, saturated(NATIVE, folder / "1.img") as other:
        time.sleep(seconds)
    rates = [job.ended / job.elapsed for job in (one, other)]
    return float(100 * min(rates) / sum(rates))


def measure(folder: Path, seconds: float, report: Report) -> None:
    """One round."""
    found = {which: run(folder, [which] if which in ROWS else [], seconds) for which in (IDLE, *ROWS)}
    for which, name in ROWS.items():
        for peer in (MINE, IDLE):
            times, late = found[which if peer == MINE else IDLE]
            report.note(Kind(f"{name}: a call", "µs"), peer, statistics.median(times))
            report.note(Kind(f"{name}: a call, p99", "µs"), peer, p99(times))
            report.note(Kind(f"{name}: how late a vCPU's exit is, p99", "µs"), peer, late)
    report.note(SHARE, MINE, share(folder, seconds))


def main() -> None:
    if sys.argv[1:2] == ["--daemon"]:
        found, planes, *words = sys.argv[2:]
        daemon(Path(found), planes.split(",") if planes else [], words)
        return
    parser = argparse.ArgumentParser(
        prog="python -m bench.saturated", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 7)
    parser.add_argument("--seconds", type=float, default=2, help="for each")
    args = parser.parse_args()
    need_compiler()
    report, _ = results.begin(
        "A daemon while disks of its process are saturated, beside itself without disks"
    )
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            measure(Path(folder), args.seconds, report)
    report.finish()


if __name__ == "__main__":
    main()
