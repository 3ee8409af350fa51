"""A disk added to a running guest: until the call is answered, and until the guest has it.

    python -m bench.hotadd [--rounds N]

xenpvd answers when the guest has connected the disk, QEMU when it has made its own end of it. The guest looks
for the block device every millisecond and says on its console that it is there. Both are up, by turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import results
from bench.guests import Guest, at_the_shell, until
from bench.place import all_up, begin, folder_in_memory
from bench.results import Kind
from lab import guest

MIB = 1 << 20
ANSWER = Kind("adding a disk: the call is answered", "ms")
THERE = Kind("adding a disk: the guest has it", "ms", level="chart")
GONE = Kind("removing it: the guest has let go", "ms", level="chart")

#: the guest's part; what it prints is not in what is typed
WAIT = "echo wait-$((7 * 7)); until [ -b /dev/xvdz ]; do usleep 1000; done; echo plug-$((6 * 7))\n"
LEAVE = "while [ -b /dev/xvdz ]; do usleep 1000; done; echo left-$((6 * 7))\n"


@contextmanager
def booted(which: type[Guest]) -> Iterator[Guest]:
    """A guest at its shell, with z.img beside its disk; it is shut down in the end."""
    with folder_in_memory() as folder:
        disk = folder / "xvda.img"
        for path in (disk, folder / "z.img"):
            guest.make_disk(path, 16 * MIB, {})
        with at_the_shell(which(folder, guest.definition(disk), [disk])) as one:
            yield one


def measure(one: Guest) -> tuple[float, float, float]:
    """ms until the answer, the guest's device, and the end of the removal."""
    fd = one.attach()
    try:
        one.type(WAIT)
        rest, _ = until(fd, b"wait-49")
        since = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(timed, one, one.folder / "z.img")
            until(fd, b"plug-42", rest)
            there = time.monotonic() - since
            answer = answered.result()
        since = time.monotonic()
        one.unplug()
        gone = time.monotonic() - since
        one.type(LEAVE)
        until(fd, b"left-42")
    finally:
        one.detach()
    return answer * 1e3, there * 1e3, gone * 1e3


def timed(one: Guest, path: Path) -> float:
    since = time.monotonic()
    one.plug(path)
    return time.monotonic() - since


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.hotadd", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 7)
    options = parser.parse_args()
    report, names = begin("A disk added to a running guest, beside QEMU", "qemu")
    with ExitStack() as stack:
        guests = all_up(stack, names, booted, report)
        for _ in range(options.rounds):
            for name, one in guests.items():
                for kind, value in zip((ANSWER, THERE, GONE), measure(one), strict=True):
                    report.note(kind, name, value)
    report.finish()


if __name__ == "__main__":
    main()
