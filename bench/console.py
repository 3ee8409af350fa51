"""A real guest's console, as a viewer gets it: xenpvd's, and QEMU's xen-console.

    python -m bench.console [--rounds N] [--mib N] [--keys N]

The viewer types bytes and waits for the guest's echo, and reads all of a burst of output: from console0.sock,
and from QEMU's chardev (a pipe). Both guests are up, and have their turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench import results
from bench.guests import Guest, at_the_shell, until
from bench.place import all_up, begin, folder_in_memory
from bench.results import Kind
from lab import guest

MIB = 1 << 20
#: 62 characters and the newline, before which the guest's terminal puts a carriage return
LINE = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: what the guest prints, and what the echo of the command does not have
BEGIN, END = b"burst-42", b"burst-49"


ECHO = Kind("a typed byte's echo", "µs", level="chart")
BURST = (
    Kind("a burst of output", "MB/s", "more", "chart"),
    Kind("a burst: CPU", "ms/MB"),
    Kind("a burst: CPU outside of the guest", "ms/MB"),
)


@contextmanager
def booted(which: type[Guest]) -> Iterator[Guest]:
    """A guest at its shell; it is shut down in the end."""
    with folder_in_memory() as folder:
        disk = folder / "xvda.img"
        guest.make_disk(disk, 16 * MIB, {})
        with at_the_shell(which(folder, guest.definition(disk), [disk])) as one:
            yield one


def measure(one: Guest, size: int) -> list[float]:
    """Print ``size`` bytes, and read them all: the values of ``BURST``."""
    fd = one.attach()
    try:
        one.type(f"echo burst-$((6 * 7)); yes {LINE} | head -c {size}; echo burst-$((7 * 7))\n")
        rest, _ = until(fd, BEGIN)
        cpu, since = one.cpu(), time.monotonic()
        _, came = until(fd, END, rest)
        seconds = time.monotonic() - since
        spent = [(after - then) / size * 1e9 for after, then in zip(one.cpu(), cpu, strict=True)]
    finally:
        one.detach()
    assert came >= size - (1 << 16), f"{came} bytes came of {size}"
    return [size / seconds / 1e6, *spent]


def echo(one: Guest, count: int) -> float:
    """Median of the µs from a byte typed to its echo: the terminal's, while the guest's shell runs cat."""
    fd = one.attach()
    try:
        one.type("echo burst-$((6 * 7)); cat >/dev/null\n")
        rest, _ = until(fd, BEGIN)
        while b"\n" not in rest:
            rest += os.read(fd, 1 << 16)
        times = []
        for _ in range(count):
            since = time.perf_counter()
            one.type("x")
            until(fd, b"x")
            times.append(time.perf_counter() - since)
        one.type("\n\x04")  # a line and the end, to which the shell answers by its prompt
        until(fd, guest.PROMPT.encode())
    finally:
        one.detach()
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.console", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 5)
    parser.add_argument("--mib", type=int, default=1, help="of each burst")
    parser.add_argument("--keys", type=int, default=50, help="typed in each round, by turns with their echos")
    args = parser.parse_args()
    report, names = begin("A guest's console, beside QEMU's xen-console", "qemu")
    with ExitStack() as stack:
        guests = all_up(stack, names, booted, report)
        for _ in range(args.rounds):
            for name, one in guests.items():
                report.note(ECHO, name, echo(one, args.keys))
                for kind, value in zip(BURST, measure(one, args.mib * MIB), strict=True):
                    report.note(kind, name, value)
    report.finish()


if __name__ == "__main__":
    main()
