"""Where guests can run: on this machine, or in the lab; and guests side by side."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from bench import qemu, results
from bench.guests import Guest, Qemu, QemuUring, Xenpvd
from bench.results import MINE, Report
from lab import fio, jobs, kvm
from lab.progress import LabError

#: by their names in the results
PEERS: dict[str, type[Guest]] = {MINE: Xenpvd, "qemu": Qemu, "qemu-uring": QemuUring}


def begin(title: str, *peers: str) -> tuple[Report, list[str]]:
    """Go where guests can run: in a lab host this very command is run, and this process ends with it.

    The report, and who can be measured: xenpvd and ``peers``. Where no guest can run, say why and end well.
    """
    if "XENPVD_IN_LAB" not in os.environ:
        try:
            fio.build()
            with contextlib.suppress(LabError):  # told below, by who misses it
                qemu.get()
            if why := kvm.unfit():
                print(f"The guests run in the lab: {why}.", flush=True)
                sys.exit(_in_the_lab())
        except LabError as fault:
            print(f"not measured: {fault}")
            sys.exit()
    report, names = results.begin(title, peers)
    Qemu.program = qemu.find()
    return report, names


def _in_the_lab() -> int:
    module = sys.modules["__main__"].__spec__
    assert module is not None
    argv = [sys.executable, "-m", module.name, *sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="xenpvd-bench-") as folder:
        status = jobs.run(argv, results=Path(folder), environ={"XENPVD_BENCH_MACHINE": results.machine()})
        results.HERE.mkdir(exist_ok=True)
        for file in Path(folder).glob("*.json"):
            shutil.copyfile(file, results.HERE / file.name)
    return status


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="xenpvd-bench-", dir="/dev/shm"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def all_up(
    stack: ExitStack,
    names: Sequence[str],
    booted: Callable[[type[Guest]], AbstractContextManager[Guest]],
    report: Report,
) -> dict[str, Guest]:
    """The guests of those whose guest boots, until ``stack`` ends."""
    guests = {}
    for name in names:
        try:
            guests[name] = stack.enter_context(booted(PEERS[name]))
        except LabError as fault:
            if name == MINE:
                raise
            report.miss(name, str(fault))
    return guests
