"""From nothing to the guest's shell and to power-off: xenpvd beside QEMU's Xen emulation.

    python -m bench.boot [--rounds N]

Same shim, kernel, ramdisk, disk, memory; by turns. CPU is user + system time of the VMM's processes, its
vCPUs included, which under load compares better than wall time. QEMU needs KVM's Xen support: where xenpvd
does without, it is beside QEMU's guest that has it.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from typing import Any

from bench import results
from bench.guests import Guest
from bench.place import PEERS, begin, folder_in_memory
from bench.results import MINE, Kind, Level
from lab import guest

#: (what is told of it, what it has beside the demo guest's definition)
SHAPES: tuple[tuple[str, dict[str, Any]], ...] = (("1 vCPU", {}), ("2 vCPUs", {"vcpus": 2}))
PLAIN = ("1 vCPU, without KVM's Xen support", {"accel": "kvm"})


def kinds(shape: str) -> tuple[Kind, Kind, Kind]:
    level: Level = "chart" if shape == SHAPES[0][0] else "docs"
    return (
        Kind(f"{shape}: from nothing to the guest's shell", "s", level=level),
        Kind(f"{shape}: from poweroff to the VMM's end", "s"),
        Kind(f"{shape}: CPU of all that", "s", level=level),
    )


def measure(which: type[Guest], shape: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds until the guest's prompt, from there until its end, and those of CPU."""
    with folder_in_memory() as folder:
        disk = folder / "xvda.img"
        shutil.copyfile(guest.disk(), disk)
        one = which(folder, {**guest.definition(disk), **shape}, [disk])
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
    results.rounds(parser, 5)
    options = parser.parse_args()
    report, names = begin("From nothing to a guest's shell, beside QEMU", "qemu")

    def note(shape: str, name: str, values: tuple[float, float, float]) -> None:
        for kind, value in zip(kinds(shape), values, strict=True):
            report.note(kind, name, value)

    for _ in range(options.rounds):
        found = {shape: {name: measure(PEERS[name], more) for name in names} for shape, more in SHAPES}
        found[PLAIN[0]] = {**found[SHAPES[0][0]], MINE: measure(PEERS[MINE], PLAIN[1])}
        for shape, values in found.items():
            for name in names:
                note(shape, name, values[name])
    report.finish()


if __name__ == "__main__":
    main()
