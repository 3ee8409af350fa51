"""``make test``: all tests. Those that boot guests run on this machine if it can, else in the lab's hosts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from lab import host, jobs, kvm, packages
from lab.progress import LabError, step

PYTEST = (sys.executable, "-m", "pytest")
PLAIN = ("-m", "plain")
XEN = ("-m", "lab and not plain")
#: of XEN, for a second host: with the unit tests and PLAIN before it, it takes as long as the rest
SECOND = ("tests/lab/test_shapes.py", "tests/lab/test_xen_tools.py", "tests/lab/test_channels.py")


class _Held:
    """A stdout that keeps what it is given until it may be seen. From any thread."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._kept: list[bytes] | None = []
        self._lock = threading.Lock()

    def write(self, data: bytes) -> int:
        with self._lock:
            if self._kept is None:
                return self._out.write(data)
            self._kept.append(data)
            return len(data)

    def flush(self) -> None:
        self._out.flush()

    def show(self) -> None:
        """What was kept, and from now on all at once."""
        with self._lock:
            if self._kept is not None:
                self._out.write(b"".join(self._kept))
                self._out.flush()
                self._kept = None


class _Aside:
    """Tests in a lab host, beside what this thread does meanwhile."""

    def __init__(self, kind: str, tests: Sequence[str]) -> None:
        self._held = _Held(sys.stdout.buffer)
        self._outcome: int | BaseException = 1
        self._kind, self._was_up = kind, host.running(kind) is not None
        self._thread = threading.Thread(target=self._run, args=(kind, tests), daemon=True)
        self._thread.start()

    def _run(self, kind: str, tests: Sequence[str]) -> None:
        try:
            self._outcome = in_host(kind, tests, self._held)
        except BaseException as fault:
            self._outcome = fault

    def wait(self) -> int:
        """Show what it says, and give its exit status. Raises :class:`LabError`."""
        self._held.show()
        self._thread.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def end(self) -> None:
        """Its outcome, if there is none yet, is not wanted any more."""
        if self._thread.is_alive() and not self._was_up:
            _stop(self._kind)
            self._thread.join()


def here(*tests: str) -> int:
    return subprocess.call((*PYTEST, *tests))


def in_host(kind: str, tests: Sequence[str], out: _Held | None = None) -> int:
    """A lab host that was not up is stopped again."""
    was_up = host.running(kind) is not None
    try:
        return jobs.run((*PYTEST, *tests, "-p", "no:cacheprovider"), kind, out=out)
    finally:
        if not was_up:
            _stop(kind)


def _stop(kind: str) -> None:
    with step("stop", f"lab host ({kind})"):
        host.down(kind)


def room_for_two(cpus: int, meminfo: str) -> bool:
    """A lab host keeps one CPU busy, and may take all of its memory."""
    return cpus > 1 and host.available(meminfo) >= 2 * host.MEMORY_MIB


def main() -> int:
    """The exit status of the first part that fails, 0 if none does: the last line tells how it went."""
    packages.install(packages.TEST_PACKAGES)
    why = kvm.unfit()
    if not why:
        return here()
    print(f"Real guests run in the lab: {why}.", flush=True)
    if room_for_two(os.cpu_count() or 1, Path("/proc/meminfo").read_text()):
        print("Most of the xen host's tests run beside the others, and are shown after them.", flush=True)
        aside = _Aside("xen", (*XEN, *(f"--ignore={name}" for name in SECOND)))
        try:
            others = here("-m", "not lab") or in_host("plain", PLAIN) or in_host("xen2", (*XEN, *SECOND))
            return others or aside.wait()
        finally:
            aside.end()
    return here("-m", "not lab") or in_host("xen", XEN) or in_host("plain", PLAIN)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as fault:
        sys.exit(f"test: {fault}")
    except KeyboardInterrupt:
        sys.exit(130)
