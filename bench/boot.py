"""From nothing to the guest's shell and to power-off: xenpvd beside QEMU's Xen emulation.

    python -m bench.boot [--qemu PATH] [--rounds N]

Same shim, kernel, ramdisk, disk, memory; by turns. CPU is user + system time of the VMM's processes, its
vCPUs included, which under load compares better than wall time. It needs QEMU 8.2 or newer: the machine's
own, or Debian's backport, which is fetched.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from bench.guests import Guest, Qemu, Xenpvd, at_home, qemu_version
from lab import guest

COLUMNS = ("start", "boot", "prompt", "end", "CPU")
PEERS: dict[str, type[Guest]] = {"xenpvd": Xenpvd, "qemu": Qemu}


def measure(which: type[Guest]) -> list[float]:
    """The ``COLUMNS`` of one run: seconds until the VMM has started the guest (QEMU does not tell; it takes
    tens of milliseconds), from there and in all until its prompt, until it has ended, and those of CPU."""
    folder = Path(tempfile.mkdtemp(prefix="xenpvd-bench-", dir="/dev/shm"))
    disk = folder / "xvda.img"
    shutil.copyfile(guest.disk(), disk)
    one = which(folder, guest.definition(disk), [disk])
    try:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.monotonic()
        one.start()
        started = time.monotonic() - begin if which is Xenpvd else 0.0
        one.expect(guest.PROMPT)
        prompt = time.monotonic() - begin
        one.type("poweroff\n")
        one.end()
        end = time.monotonic() - begin
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    finally:
        one.kill()
        shutil.rmtree(folder, ignore_errors=True)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [started, prompt - started, prompt, end, cpu]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--qemu", help="instead of the one that is found")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    at_home()
    if options.qemu:
        Qemu.program = (options.qemu,)
    print(f"{Xenpvd.version}, QEMU {qemu_version(Qemu.program)}")
    results: dict[str, list[list[float]]] = {name: [] for name in PEERS}
    for number in range(options.rounds):
        for name, which in PEERS.items():
            results[name].append(measure(which))
            row = "".join(f"{value:8.2f}" for value in results[name][-1])
            print(f"round {number + 1} {name:<8}{row}", flush=True)
    print(f"{'median of s':<16}" + "".join(f"{column:>8}" for column in COLUMNS))
    medians = {
        name: [statistics.median(row[column] for row in rows) for column in range(len(COLUMNS))]
        for name, rows in results.items()
    }
    for name, values in medians.items():
        print(f"{name:<16}" + "".join(f"{value:8.2f}" for value in values))
    pairs = zip(medians["xenpvd"], medians["qemu"], strict=True)
    ratios = (f"{mine / theirs:8.2f}" if theirs else f"{'-':>8}" for mine, theirs in pairs)
    print(f"{'xenpvd / qemu':<16}" + "".join(ratios))


if __name__ == "__main__":
    main()
