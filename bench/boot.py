"""From nothing to the guest's shell and to power-off: xenpvd beside QEMU's Xen emulation.

    python -m bench.boot [--rounds N]

Same shim, kernel, ramdisk, disk, memory; by turns. CPU is user + system time of the VMM's processes, its
vCPUs included, which under load compares better than wall time.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time

from bench import results
from bench.guests import Guest
from bench.place import PEERS, begin, folder_in_memory
from bench.results import Kind
from lab import guest

PROMPT = Kind("from nothing to the guest's shell", "s", level="chart")
END = Kind("from poweroff to the VMM's end", "s")
CPU = Kind("CPU of all that", "s", level="chart")


def measure(which: type[Guest]) -> tuple[float, float, float]:
    """Seconds until the guest's prompt, from there until its end, and those of CPU."""
    with folder_in_memory() as folder:
        disk = folder / "xvda.img"
        shutil.copyfile(guest.disk(), disk)
        one = which(folder, guest.definition(disk), [disk])
        try:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            start = time.monotonic()
            one.start()
            one.expect(guest.PROMPT)
            prompt = time.monotonic()
            one.type("poweroff\n")
            one.end()
            end = time.monotonic()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        finally:
            one.kill()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return prompt - start, end - prompt, cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.boot", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 3)
    options = parser.parse_args()
    report, names = begin("From nothing to a guest's shell, beside QEMU", "qemu")
    for _ in range(options.rounds):
        for name in names:
            for kind, value in zip((PROMPT, END, CPU), measure(PEERS[name]), strict=True):
                report.note(kind, name, value)
    report.finish()


if __name__ == "__main__":
    main()
