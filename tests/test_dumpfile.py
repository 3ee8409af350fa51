"""A dump's files: whole or none, never in another's place, and the memory as gdb and we read it again."""

from __future__ import annotations

import errno
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fds import open_fds
from xenpvd import dumpfile
from xenpvd.dumpfile import BLOCK, Contents, core_of, write
from xenpvd.errors import Exists, HostError, StateError
from xenpvd.vmm.memory import GuestMemory

MIB = 1 << 20
OWN = Path("/var/lib/xenpvd/web1")


class Vm:
    def __init__(self) -> None:
        self.over, self.paused = False, True
        self.memory = GuestMemory()
        self.memory.add("ram", 0, 36 * MIB, ram=True)
        self.memory.add("special", 0xFEFF_8000, 0x8000)
        self.memory.write(5 * MIB, b"here")
        self.memory.write(0xFEFF_8000, b"there")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "web1.tar.gz"


def contents(vm: Vm | None = None) -> Contents:
    return Contents({"a": b"x" * 1000, "b": b""}, {}, vm, [{"rip": 7, "cr3": 0x1000, "efer": 0x500}])


def finish(work: dumpfile.Work) -> dict[str, Any]:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return dict(end.value)


@pytest.mark.parametrize("name", ["web1.tar.gz", "web1.tgz", "web1.tar", "web1"])
def test_the_core_lies_beside_it(name: str) -> None:
    assert core_of(Path("/srv") / name) == Path("/srv/web1.core")


@pytest.mark.parametrize("live", [False, True])
def test_with_the_memory(file: Path, live: bool) -> None:
    vm = Vm()
    vm.paused = not live
    what = contents(vm)
    assert what.size == 1000 + 36 * MIB + 0x8000
    told = finish(write(file, what, OWN))
    core = core_of(file)
    assert told == {
        "file": str(file), "size": file.stat().st_size, "missing": {},
        "core": str(core), "core_size": core.stat().st_size, "live": live,
    }  # fmt: skip
    for path in (file, core):
        assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as tar:
        assert tar.getnames() == ["web1/dump.json", "web1/a", "web1/b"]
    with core.open("rb") as raw:
        head = raw.read(4096)
        places = {}
        for n in range(1, 3):
            row = struct.unpack_from("<IIQQQQQQ", head, 64 + 56 * n)
            places[row[4]] = (row[2], row[5])
        assert {gpa: size for gpa, (_, size) in places.items()} == {0: 36 * MIB, 0xFEFF_8000: 0x8000}
        raw.seek(places[0][0] + 5 * MIB)
        assert raw.read(5) == b"here\0"
        raw.seek(places[0xFEFF_8000][0])
        assert raw.read(6) == b"there\0"
    assert core.stat().st_size == sum(places[0xFEFF_8000]), "also if it ends in zeros"
    assert core.stat().st_blocks * 512 <= 4 * BLOCK, "zeros take no room"


def test_nothing_is_overwritten(file: Path) -> None:
    core_of(file).write_bytes(b"mine")
    with pytest.raises(Exists, match=r"web1\.core: it is there already, and is not overwritten"):
        finish(write(file, contents(Vm()), OWN))
    assert not file.exists() and core_of(file).read_bytes() == b"mine"
    file.symlink_to(file.with_name("elsewhere"))
    with pytest.raises(Exists):
        finish(write(file, contents(), OWN))
    assert not file.with_name("elsewhere").exists()


def test_a_place_that_the_daemon_may_not_write_to(tmp_path: Path) -> None:
    file = tmp_path / "none" / "web1.tar.gz"
    with pytest.raises(HostError) as refused:
        finish(write(file, contents(), OWN))
    assert str(refused.value) == (
        f"cannot write {file}: No such file or directory. The daemon writes it, with its own rights: choose "
        "a file in /var/lib/xenpvd/web1, or none."
    )
    assert refused.value.data == {"errno": errno.ENOENT, "path": str(file)}


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync"])
def test_a_full_disk(file: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    before = open_fds()
    with pytest.raises(HostError, match=r"No space left on device\. It was removed again") as refused:
        finish(write(file, contents(Vm()), OWN))
    assert refused.value.data["errno"] == errno.ENOSPC
    assert not list(file.parent.iterdir()) and open_fds() == before


def test_given_up_at_any_step(file: Path) -> None:
    steps = sum(1 for _ in write(file, contents(Vm()), OWN))
    assert steps > 5
    for count in range(steps):
        for path in file.parent.iterdir():
            path.unlink()
        work = write(file, contents(Vm()), OWN)
        for _ in range(count):
            next(work)
        work.close()
        assert not list(file.parent.iterdir()), count


def test_a_guest_that_ends_meanwhile(file: Path) -> None:
    """Its memory reads as zeros then, which must not be taken for it."""
    vm = Vm()
    work = write(file, contents(vm), OWN)
    for _ in range(3):
        next(work)
    vm.over = True
    with pytest.raises(StateError, match="the guest has ended, and its memory is gone"):
        finish(work)
    assert not list(file.parent.iterdir())


def test_a_guest_that_was_paused_for_a_part_of_it_ran(file: Path) -> None:
    vm = Vm()
    work = write(file, contents(vm), OWN)
    next(work)
    next(work)
    vm.paused = False
    next(work)
    vm.paused = True
    assert finish(work)["live"] is True
