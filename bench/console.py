"""A burst from a real guest's console, as a viewer gets it: xenpvd's, and QEMU's xen-console.

    python -m bench.console [--rounds N] [--mib N] [--peers NAME,NAME]

The viewer reads all of it, from console0.sock and from QEMU's chardev (a pipe). Both guests are up, and print
by turns; only the ratios count.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.guests import Guest, Qemu, Xenpvd, at_home, at_the_shell, qemu_version
from lab import guest

MIB = 1 << 20
PEERS: dict[str, type[Guest]] = {"xenpvd": Xenpvd, "qemu": Qemu}
#: to what the ratios are
REFERENCE = "qemu"
#: 62 characters and the newline, before which the guest's terminal puts a carriage return
LINE = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: what the guest prints, and what the echo of the command does not have
BEGIN, END = b"burst-42", b"burst-49"


class Figure(NamedTuple):
    """MB/s, and seconds of the VMM's CPU for each MB, all and outside of the guest."""

    rate: float
    cpu: float
    outside: float


@contextmanager
def booted(which: type[Guest]) -> Iterator[Guest]:
    """A guest at its shell; it is shut down in the end."""
    folder = Path(tempfile.mkdtemp(prefix="xenpvd-bench-", dir="/dev/shm"))
    disk = folder / "xvda.img"
    guest.make_disk(disk, 16 * MIB, {})
    try:
        with at_the_shell(which(folder, guest.definition(disk), [disk])) as one:
            yield one
    finally:
        shutil.rmtree(folder)


def measure(one: Guest, size: int) -> Figure:
    """Print ``size`` bytes, and read them all."""
    fd = one.attach()
    try:
        one.type(f"echo burst-$((6 * 7)); yes {LINE} | head -c {size}; echo burst-$((7 * 7))\n")
        rest, _ = _until(fd, BEGIN, b"")
        cpu, begin = one.cpu(), time.monotonic()
        _, came = _until(fd, END, rest)
        seconds = time.monotonic() - begin
        spent = [(after - then) / size * 1e6 for after, then in zip(one.cpu(), cpu, strict=True)]
    finally:
        one.detach()
    assert came >= size - (1 << 16), f"{came} bytes came of {size}"
    return Figure(size / seconds / 1e6, *spent)


def _until(fd: int, text: bytes, said: bytes) -> tuple[bytes, int]:
    """Read until ``text`` has come, after ``said``; what came behind it, and how many bytes were read."""
    count = 0
    while text not in said:
        data = os.read(fd, 1 << 16)
        assert data, "the console ended"
        count += len(data)
        said = said[-len(text) :] + data
    return said.partition(text)[2], count


def show(found: dict[str, list[Figure]]) -> None:
    """Medians with the least and the most of the rounds, and the medians of the rounds' own ratios."""
    print("\n              MB/s   least    most  ratio  CPU ms/MB  outside of the guest")
    for peer, figures in found.items():
        median = Figure(*(statistics.median(column) for column in zip(*figures, strict=True)))
        rates = [figure.rate for figure in figures]
        ratios = [mine / theirs.rate for mine, theirs in zip(rates, found.get(REFERENCE, []), strict=False)]
        ratio = f"{statistics.median(ratios):7.2f}" if ratios else f"{'-':>7}"
        print(
            f"{peer:<10}{median.rate:8.2f}{min(rates):8.2f}{max(rates):8.2f}{ratio}"
            f"{median.cpu * 1e3:11.1f}{median.outside * 1e3:22.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.console", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=64, help="of each burst")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of %(default)s")
    args = parser.parse_args()
    at_home()
    print(f"{Xenpvd.version}, QEMU {qemu_version(Qemu.program)}, Linux {platform.release()}")
    results: dict[str, list[Figure]] = defaultdict(list)
    with ExitStack() as stack:
        guests = {name: stack.enter_context(booted(PEERS[name])) for name in args.peers.split(",")}
        for number in range(args.rounds):
            for name, one in guests.items():
                results[name].append(measure(one, args.mib * MIB))
                print(f"round {number + 1} {name:<10}{results[name][-1].rate:8.2f} MB/s", flush=True)
    show(results)


if __name__ == "__main__":
    main()
