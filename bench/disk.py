"""fio in a real guest on a disk of xenpvd's, and on one of QEMU's xen-block.

    python -m bench.disk [--rounds N] [--seconds N] [--vcpus N] [--loop]

Same shim, kernel, ramdisk and memory; the images are in the page cache of an ext4 in memory (as root; else on
tmpfs, which cannot tell io_uring whether a read would wait). All guests are up, and run fio by turns: the one
that does has the machine to itself. Where this machine's KVM will not do it is all in the lab, and only the
ratios count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import results
from bench.guests import Guest, at_the_shell
from bench.place import all_up, begin, folder_in_memory
from bench.results import Kind, Report
from lab import fio, guest

MIB = 1 << 20


#: how the guest is told to run them
START = "/mnt/fio --eta=never --output-format=json /mnt/jobs; echo fio-$((6 * 7))\n"


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


@contextmanager
def booted(which: type[Guest], args: argparse.Namespace, rows: Sequence[Row] = ROWS) -> Iterator[Guest]:
    """A guest at its shell: fio is on xvda, xvdb is to be measured. It is shut down in the end."""
    with ExitStack() as stack:
        folder = stack.enter_context(folder_in_memory())
        tools = folder / "xvda.img"
        image = stack.enter_context(file_system(folder, args.size)) / "xvdb.img"
        jobs = JOBS.format(seconds=args.seconds) + "".join(row.job for row in rows)
        guest.make_disk(tools, 16 * MIB, {"fio": fio.program().read_bytes(), "jobs": jobs.encode()})
        with image.open("wb") as file:  # real pages: no holes, which cost less to read and more to write
            for _ in range(args.size):
                file.write(b"\xa5" * MIB)
        disk = image
        if args.loop:
            disk = Path(run("losetup", "-f", "--show", image))
            stack.callback(run, "losetup", "-d", disk)
        one = which(folder, guest.definition(tools, vcpus=args.vcpus), [tools, disk])
        yield stack.enter_context(at_the_shell(one))


@contextmanager
def file_system(folder: Path, size: int) -> Iterator[Path]:
    """A place for an image of ``size`` MiB: an ext4 in ``folder``, or ``folder`` itself."""
    if os.geteuid():
        yield folder
        return
    kept, place = folder / "ext4.img", folder / "ext4"
    guest.make_disk(kept, (size + size // 8 + 16) * MIB, {})
    place.mkdir()
    run("mount", "-o", "loop", kept, place)
    try:
        yield place
    finally:
        run("umount", place)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What :func:`booted` wants to know."""
    parser.add_argument("--seconds", type=int, default=3, help="of each of a round's jobs")
    parser.add_argument("--size", type=int, default=128, help="MiB of each image")
    parser.add_argument("--loop", action="store_true", help="put loop devices before the images (as root)")
    parser.add_argument("--vcpus", type=int, default=1)


def run(tool: str, *words: str | Path) -> str:
    done = subprocess.run([guest.tool(tool), *words], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def measure(one: Guest, name: str, report: Report) -> None:
    """The ``ROWS`` once."""
    one.type(START)
    spent = []
    for _ in ROWS:
        one.expect("job-begins")
        before = one.cpu()
        one.expect("job-ends")
        spent.append([after - then for after, then in zip(one.cpu(), before, strict=True)])
    for row, done, (cpu, outside) in zip(ROWS, outcome(one), spent, strict=True):
        report.note(Kind(f"{row.name}: requests", "1/s", "more", "chart"), name, done["iops"])
        each = 1e6 / done["total_ios"]
        report.note(Kind(f"{row.name}: CPU of a request", "µs"), name, cpu * each)
        outer = Kind(f"{row.name}: CPU outside of the guest", "µs", level="terminal")
        report.note(outer, name, outside * each)


def outcome(one: Guest) -> list[dict[str, float]]:
    """What fio says of each of its jobs, in the end."""
    said = one.expect("fio-42")
    jobs = json.loads(said[said.index("{") : said.rindex("}") + 1])["jobs"]
    assert all(job["error"] == 0 for job in jobs), jobs
    return [job["write" if job["write"]["total_ios"] else "read"] for job in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.disk", description=(__doc__ or "").partition("\n")[0]
    )
    results.rounds(parser, 5)
    arguments(parser)
    args = parser.parse_args()
    report, names = begin("Disks in a real guest, beside QEMU's xen-block", "qemu", "qemu-uring")
    report.versions["fio"] = fio.version()
    with ExitStack() as stack:
        guests = all_up(stack, names, lambda which: booted(which, args), report)
        for _ in range(args.rounds):
            for name, one in guests.items():
                measure(one, name, report)
    report.finish()


if __name__ == "__main__":
    main()
