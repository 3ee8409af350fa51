"""fio for guests: built static from Debian's source, so one file of 2 MB is all that a guest needs.

Debian's own program is linked with the libraries of each storage that it can drive: 60 of them, 80 MB.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from lab import packages
from lab.paths import asset, cache, locked, replacing
from lab.progress import LabError, step

SUITE = "bookworm"
#: what would be found on some machines, and cannot be linked static
WITHOUT = ("http", "gfapi", "native", "numa", "pmem", "rados", "rbd", "rdma")


def program() -> Path:
    """The built fio. Raises LabError if it is not there."""
    path = asset("fio", "fio")
    if not path.exists():
        raise LabError("there is no fio for the guests yet. Run python -m lab.fio (not in the lab: network).")
    return path


def version() -> str:
    return asset("fio", "version").read_text().strip()


def build() -> None:
    """Fetch and build it, unless it is there: some 30 s."""
    with locked(cache() / "assets.lock"):
        if asset("fio", "version").exists():
            return
        packages.install(("gcc", "libc6-dev", "make"))
        suite = packages.Suite(SUITE, "deb-src")
        suite.refresh()
        with step("build", "fio"), replacing(asset("fio")) as folder:
            tarball = suite.source("fio", folder)
            source = folder / "source"
            source.mkdir()
            packages.run_quietly(("tar", "-xf", tarball, "--strip-components=1", "-C", source), "unpack fio")
            options = ("--build-static", *(f"--disable-{name}" for name in WITHOUT))
            packages.run_quietly(("./configure", *options), "configure fio", source)
            packages.run_quietly(("make", f"-j{os.cpu_count()}", "fio"), "build fio", source)
            packages.run_quietly(("strip", "-o", folder / "fio", source / "fio"), "strip fio")
            shutil.rmtree(source)
            number = tarball.name.split("_")[1].partition(".orig")[0]
            for left in folder.glob("fio_*"):
                left.unlink()
            (folder / "version").write_text(f"{number}\n")
        shutil.rmtree(suite.root)  # the list of all sources, 20 MB


if __name__ == "__main__":
    try:
        build()
    except LabError as fault:
        sys.exit(f"fio: {fault}")
