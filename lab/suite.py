"""``make test``: all tests. Those that boot guests run on this machine if it can, else in the lab's hosts."""

from __future__ import annotations

import subprocess
import sys

from lab import host, jobs, kvm, packages
from lab.progress import LabError, step

PYTEST = (sys.executable, "-m", "pytest")
#: which lab host runs which tests, one after the other: a machine has CPUs and memory for one
PARTS = {"xen": "lab and not plain", "plain": "plain"}


def main() -> int:
    """The exit status of the first part that fails, 0 if none does: the last line tells how it went."""
    packages.install(packages.TEST_PACKAGES)
    why = kvm.unfit()
    if not why:
        return subprocess.call(PYTEST)
    if status := subprocess.call((*PYTEST, "-m", "not lab")):
        return status
    print(f"Real guests run in the lab: {why}.", flush=True)
    for kind, tests in PARTS.items():
        was_up = host.running(kind) is not None
        try:
            if status := jobs.run((*PYTEST, "-m", tests, "-p", "no:cacheprovider"), kind):
                return status
        finally:
            if not was_up:
                with step("stop", f"lab host ({kind})"):
                    host.down(kind)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as fault:
        sys.exit(f"test: {fault}")
    except KeyboardInterrupt:
        sys.exit(130)
