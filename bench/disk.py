"""fio in a real guest on a disk of xenpvd's, and on one of QEMU's xen-block.

    python -m bench.disk [--rounds N] [--seconds N] [--vcpus N] [--loop] [--peers NAME,NAME]

Same shim, kernel, ramdisk and memory; the images are in memory. All guests are up, and run fio by turns: the
one that does has the machine to itself. Where this machine's KVM will not do it is all in the lab, and only
the ratios count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.guests import Guest, Qemu, QemuUring, Xenpvd, at_home, at_the_shell, qemu_version
from lab import fio, guest

MIB = 1 << 20
PEERS: dict[str, type[Guest]] = {"xenpvd": Xenpvd, "qemu": Qemu, "qemu-uring": QemuUring}
#: to what the ratios are
REFERENCE = "qemu"


class Row(NamedTuple):
    name: str
    rw: str
    kib: int
    depth: int

    @property
    def job(self) -> str:
        return f"[{self.name}]\nstonewall\nrw={self.rw}\nbs={self.kib}k\niodepth={self.depth}\n"


ROWS = (
    Row("4K random read, depth 32", "randread", 4, 32),
    Row("4K random write, depth 32", "randwrite", 4, 32),
    Row("1M read, depth 4", "read", 1024, 4),
    Row("128K write, depth 8", "write", 128, 8),
)
#: each job says on the console when it begins and ends (fio appends its own redirection)
JOBS = """\
[global]
filename=/dev/xvdb
direct=1
ioengine=io_uring
thread
time_based
runtime={seconds}
exec_prerun=echo job-begins | tee /dev/hvc0
exec_postrun=echo job-ends | tee /dev/hvc0
"""


class Figure(NamedTuple):
    """Of one job: requests in a second, and each one's µs of the VMM's CPU, all and outside of the guest."""

    rate: float
    cpu: float
    outside: float


@contextmanager
def booted(which: type[Guest], args: argparse.Namespace) -> Iterator[Guest]:
    """A guest at its shell: fio is on xvda, xvdb is to be measured. It is shut down in the end."""
    folder = Path(tempfile.mkdtemp(prefix="xenpvd-bench-", dir="/dev/shm"))
    tools, image = folder / "xvda.img", folder / "xvdb.img"
    jobs = JOBS.format(seconds=args.seconds) + "".join(row.job for row in ROWS)
    guest.make_disk(tools, 16 * MIB, {"fio": fio.program().read_bytes(), "jobs": jobs.encode()})
    with image.open("wb") as file:  # real pages: no holes, which cost less to read and more to write
        for _ in range(args.size):
            file.write(b"\xa5" * MIB)
    device = run("losetup", "-f", "--show", image) if args.loop else ""
    disks = [tools, Path(device or image)]
    try:
        with at_the_shell(which(folder, guest.definition(tools, vcpus=args.vcpus), disks)) as one:
            yield one
    finally:
        if device:
            run("losetup", "-d", device)
        shutil.rmtree(folder)


def run(tool: str, *words: str | Path) -> str:
    done = subprocess.run([guest.tool(tool), *words], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def measure(one: Guest) -> list[Figure]:
    """The ``ROWS`` once."""
    one.type("/mnt/fio --eta=never --output-format=json /mnt/jobs; echo fio-$((6 * 7))\n")
    spent = []
    for _ in ROWS:
        one.expect("job-begins")
        before = one.cpu()
        one.expect("job-ends")
        spent.append([after - then for after, then in zip(one.cpu(), before, strict=True)])
    said = one.expect("fio-42")
    jobs = json.loads(said[said.index("{") : said.rindex("}") + 1])["jobs"]
    figures = []
    for job, cpu in zip(jobs, spent, strict=True):
        assert job["error"] == 0, job
        done = job["write" if job["write"]["total_ios"] else "read"]
        figures.append(Figure(done["iops"], *(seconds / done["total_ios"] * 1e6 for seconds in cpu)))
    return figures


def show(row: Row, found: dict[str, list[Figure]]) -> None:
    """A row's medians with the least and the most of the rounds, and the medians of the rounds' own ratios to
    ``REFERENCE``: the machine's speed changes less in a round than from one to the next."""
    print(f"\n{row.name}{'':{30 - len(row.name)}}MB/s     requests/s   least    most  ratio  CPU µs outside")
    medians = {
        peer: Figure(*(statistics.median(column) for column in zip(*figures, strict=True)))
        for peer, figures in found.items()
    }
    for peer, median in medians.items():
        rates = [figure.rate for figure in found[peer]]
        line = f"  {peer:<22}{median.rate * row.kib / 1024 * MIB / 1e6:10.1f}{median.rate:15,.0f}"
        line += f"{min(rates):8,.0f}{max(rates):8,.0f}"
        pairs = zip(rates, (figure.rate for figure in found.get(REFERENCE, [])), strict=False)
        ratios = [mine / theirs for mine, theirs in pairs]
        line += f"{statistics.median(ratios):7.2f}" if ratios else f"{'-':>7}"
        print(line + f"{median.cpu:8.1f}{median.outside:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.disk", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each of a round's jobs")
    parser.add_argument("--size", type=int, default=256, help="MiB of each image")
    parser.add_argument("--loop", action="store_true", help="put loop devices before the images (as root)")
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--peers", default=",".join(PEERS), help="some of %(default)s")
    args = parser.parse_args()
    at_home()
    results: dict[Row, dict[str, list[Figure]]] = {row: defaultdict(list) for row in ROWS}
    versions = f"{Xenpvd.version}, QEMU {qemu_version(Qemu.program)}, fio {fio.version()}"
    print(f"{versions}, Linux {platform.release()}; {os.cpu_count()} CPUs here, {args.vcpus} of each guest")
    with ExitStack() as stack:
        guests = {name: stack.enter_context(booted(PEERS[name], args)) for name in args.peers.split(",")}
        for number in range(args.rounds):
            for name, one in guests.items():
                figures = measure(one)
                for row, figure in zip(ROWS, figures, strict=True):
                    results[row][name].append(figure)
                rates = "".join(f"{figure.rate:10,.0f}" for figure in figures)
                print(f"round {number + 1} {name:<12}{rates} requests/s", flush=True)
    for row, found in results.items():
        show(row, found)


if __name__ == "__main__":
    main()
