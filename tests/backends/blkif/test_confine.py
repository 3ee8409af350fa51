"""A program that is confined: what it can open, and when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xenpvd.backends.blkif import confine


def run(fds: list[int], *words: str, parent: int | None = None) -> subprocess.CompletedProcess[str]:
    given = ",".join(map(str, fds))
    command = [sys.executable, "-IS", confine.__file__, f"{parent or os.getpid()}", given, *words]
    return subprocess.run(command, pass_fds=fds, capture_output=True, text=True)


def has_landlock() -> bool:
    return confine._libc.syscall(444, None, confine.ctypes.c_size_t(0), 1) >= 1


@pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock")
def test_it_opens_its_own_files_only(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.write_text("mine")
    other.write_text("other")
    fd = os.open(mine, os.O_RDWR)
    assert run([fd], "/bin/cat", f"/proc/self/fd/{fd}").stdout == "mine"
    assert run([fd], "/bin/sh", "-c", f"echo more >> /proc/self/fd/{fd}").returncode == 0
    assert mine.read_text() == "minemore\n"
    os.close(fd)
    for path in (other, Path("/etc/passwd"), Path("/proc/self/environ")):
        done = run([], "/bin/cat", f"{path}")
        assert done.returncode and "Permission denied" in done.stderr
    assert run([], "/bin/sh", "-c", f"echo x > {tmp_path}/new").returncode
    assert not (tmp_path / "new").exists()


def test_without_landlock_it_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def syscall(self, *words: object) -> int:
            return -1

    monkeypatch.setattr(confine, "_libc", Libc())
    assert confine.restrict([], "/bin/true") is False


def test_it_does_not_begin_without_its_parent() -> None:
    done = run([], "/bin/echo", "here", parent=1)
    assert done.returncode and done.stdout == "" and "the parent has gone" in done.stderr
