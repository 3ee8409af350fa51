"""The host fails the native plane: every system call that it makes, one by one, and transfers cut short."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.blkfront import pack_discard, pack_request
from tests.fakes.disk import Disk
from tests.fakes.guest import Guest
from xenpvd.abi.io_blkif import BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, BLKIF_OP_WRITE
from xenpvd.backends.blkif import build, native
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.sharing import FLOCK
from xenpvd.config import Cache
from xenpvd.errors import ImageError

READ, WRITE, FLUSH = BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE
SOURCE = Path(__file__).parents[2] / "fakes" / "faults.c"
SECTORS = 512
BEFORE = random.Random(3).randbytes(SECTORS * 512)
#: what is no error: it is tried again
AGAIN = (errno.EINTR, errno.EAGAIN)
#: those that carry out requests, and others
TRANSFERS = {True: ("completion",), False: ("preadv", "pwritev2", "fallocate")}
OTHERS = {True: ("mmap", "io_uring_setup", "io_uring_register", "io_uring_enter"), False: ()}
#: the sectors that requests begin at, by their ids
WHERE = {0: 8, 1: 64, 2: 128, 4: 256}
ALWAYS = ("calloc", "fstat", "poll", "read", "fdatasync")


class Faults(ctypes.Structure):
    """struct faults of faults.c."""

    _fields_ = (
        ("call", ctypes.c_char * 32),
        ("calls", ctypes.c_uint32),
        ("fail_at", ctypes.c_uint32),
        ("number", ctypes.c_int32),
        ("most", ctypes.c_uint32),
        ("synced", ctypes.c_uint32),
        ("discard_us", ctypes.c_uint32),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(["cc", *build.FLAGS, "-I", build.SOURCES, "-o", target, SOURCE], check=True)
    return target


@pytest.fixture
def faults(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The native plane is that of faults.c."""
    native.library.cache_clear()
    monkeypatch.setattr(build, "library", lambda: built)
    faults = Faults.in_dll(native.library(), "faults")
    ctypes.memset(ctypes.addressof(faults), 0, ctypes.sizeof(faults))
    yield faults
    native.library.cache_clear()


@pytest.fixture(params=[True, False], ids=["io_uring", "preadv"])
def uring(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Run:
    """One of everything in a batch, then a flush, with a call that fails on the way; and what came of it."""

    def __init__(self, path: Path, uring: bool, faults: Faults, call: str, nth: int, number: int) -> None:
        path.write_bytes(BEFORE)
        guest = Guest()
        disk = Disk(path, native=True, uring=uring, gnttab=guest)
        disk.plane.offer = Offer(SECTORS, discard=True, max_indirect=32)
        self.out = guest.page()
        self.out.write(0, b"w" * 4096)
        pages = [guest.page() for _ in range(4)]
        into = [(guest.grant(page), 0, 7) for page in pages]
        table = guest.page()
        for n, (gref, first, last) in enumerate(into[2:]):
            table.write(n * 8, gref.to_bytes(4, "little") + bytes([first, last, 0, 0]))
        source = (guest.grant(self.out, readonly=True), 0, 7)
        slots = [
            pack_request(READ, id=0, sector=8, segments=[into[0], into[1]]),
            pack_request(WRITE, id=1, sector=64, segments=[source]),
            pack_discard(128, 8, id=2),
            pack_request(FLUSH, id=3),
            pack_request(WRITE, id=4, sector=256, segments=[source, source]),
        ]
        faults.call, faults.calls, faults.fail_at, faults.number = call.encode(), 0, nth, number
        ring = disk.start()
        self.answers: dict[int, int] = {}
        self.end: BaseException | None = None
        try:
            for some in (slots, [pack_request(FLUSH, id=5)]):
                ring.submit(*some)
                left = len(some)
                while left and disk.ends.empty():
                    for id_, _, status in ring.take():
                        assert id_ not in self.answers, "one answer each"
                        self.answers[id_] = status
                        left -= 1
            disk.plane.stop()
            self.end = disk.ends.get(timeout=5)
            for id_, _, status in ring.take():
                self.answers[id_] = status
        finally:
            faults.fail_at = 0
            disk.close()
        self.failed = nth and faults.calls >= nth
        self.read = b"".join(bytes(page.view) for page in pages[:2])
        self.after = path.read_bytes()
        self.in_use = guest.mapped
        self.troubles = disk.troubles
        self.engine = disk.plane.engine

    def check_data(self) -> None:
        """What was said to be done is done; what was not touched is as it was."""
        if self.answers.get(0) == 0:
            assert self.read == BEFORE[4096 : 3 * 4096]
        for id_, sector, length, what in (
            (1, 64, 4096, b"w"),
            (2, 128, 4096, b"\0"),
            (4, 256, 8192, b"w"),
        ):
            place = slice(sector * 512, sector * 512 + length)
            if self.answers.get(id_) == 0:
                assert self.after[place] == what * length
        touched = {*range(64, 72), *range(128, 136), *range(256, 272)}
        for sector in set(range(SECTORS)) - touched:
            assert self.after[sector * 512 : sector * 512 + 512] == BEFORE[sector * 512 :][:512]


@pytest.mark.parametrize("number", [*AGAIN, errno.EIO, errno.ENOSPC, errno.ENOMEM], ids=errno.errorcode.get)
def test_every_call_fails_once(
    tmp_path: Path, faults: Faults, uring: bool, number: int
) -> None:  # O1, O2, O3
    for call in (*ALWAYS, *OTHERS[uring], *TRANSFERS[uring]):
        for nth in range(1, 100):
            path = tmp_path / f"{call}{nth}.img"  # a broken io_uring holds on to it for a moment
            run = Run(path, uring, faults, call, nth, number)
            run.check_data()
            if not run.failed:
                break
            check(run, call, number)
        assert 1 < nth < 100, call


def check(run: Run, call: str, number: int) -> None:
    if call == "calloc":
        assert isinstance(run.end, MemoryError) and not run.answers
        return
    if call == "io_uring_enter" and number not in AGAIN:
        assert isinstance(run.end, OSError) and run.end.errno == number
        return
    assert run.end is None and not run.in_use
    assert sorted(run.answers) == [0, 1, 2, 3, 4, 5]
    errors = [id_ for id_, status in sorted(run.answers.items()) if status]
    if call not in (*TRANSFERS[True], *TRANSFERS[False], "fdatasync") or number in AGAIN:
        assert not errors and not run.troubles
        assert call != "mmap" or run.engine == "native, preadv: no io_uring here"
    else:
        assert errors in ([0], [1], [2], [4], [5], [3, 5], [])
        (told,) = run.troubles
        assert os.strerror(number) in told
        if errors and (sector := WHERE.get(errors[0])):
            assert f" at byte {sector * 512}: " in told
        assert errors or "cannot flush" in told, "the one at the end, which nobody has asked for"


@pytest.mark.parametrize("most", [1, 512, 1000, 4096])
def test_short_transfers_are_continued(tmp_path: Path, faults: Faults, uring: bool, most: int) -> None:  # O3
    faults.most = most
    run = Run(tmp_path / "disk.img", uring, faults, "", 0, 0)
    run.check_data()
    assert run.answers == dict.fromkeys(range(6), 0) and run.end is None


@pytest.mark.parametrize(
    ("cache", "synced"), [("writeback", 0), ("writethrough", 3), ("none", 0), ("directsync", 3)]
)
def test_a_write_through_the_cache_has_ended_when_it_is_stored(
    path: Path, faults: Faults, uring: bool, cache: Cache, synced: int
) -> None:
    disk = Disk(path, native=True, uring=uring, cache=cache)
    ring = disk.start()
    for sector in (0, 8, 16):
        ring.write(sector, b"x" * 4096)
    assert ring.read(0, 24) == b"x" * 3 * 4096 and ring.flush() == 0
    assert faults.synced == synced
    assert disk.end() is None
    disk.close()


def test_of_flushes_that_come_together_none_succeeds_without_the_others(path: Path, faults: Faults) -> None:
    """The kernel tells one of them that pages were lost, and the next that all is well."""
    faults.call, faults.fail_at, faults.number = b"completion", 1, errno.EIO
    disk = Disk(path, native=True)
    for n in range(6):
        disk.ring.put(pack_request(FLUSH, id=n))
    disk.ring.push()
    disk.start()
    assert sorted(disk.ring.wait(6)) == [(n, FLUSH, -1) for n in range(6)]
    assert disk.plane.stats()["flushes"] == 0
    assert disk.end() is None
    disk.close()


def test_flushes_that_come_meanwhile_have_one_in_common(path: Path, faults: Faults) -> None:
    faults.call = b"completion"
    disk = Disk(path, native=True)
    for n in range(16):
        disk.ring.put(pack_request(FLUSH, id=n))
    disk.ring.push()
    disk.start()
    assert sorted(disk.ring.wait(16)) == [(n, FLUSH, 0) for n in range(16)]
    assert disk.plane.stats()["flushes"] == 16 and faults.calls < 16
    assert disk.end() is None
    disk.close()


def test_what_is_done_does_not_wait_for_what_the_thread_does_itself(path: Path, faults: Faults) -> None:
    """A discard of a block device is a call that takes its time, and the guest has many."""
    faults.discard_us = 2000
    disk = Disk(path, native=True, order=4)
    disk.plane._plane.is_block = 1  # type: ignore[union-attr]
    disk.ring.put(pack_request(FLUSH, id=1000))
    for n in range(100):
        disk.ring.put(pack_discard(n, 1, id=n))
    disk.ring.push()
    disk.start()
    answered = [id_ for id_, _, _ in disk.ring.wait(101)]
    assert answered.index(1000) < 100
    faults.discard_us = 0
    assert disk.end() is None
    disk.close()


def test_what_may_still_be_under_way_keeps_the_lock(path: Path, faults: Faults) -> None:
    disk = Disk(path, native=True)
    held = os.dup(disk.image.fd)  # as the kernel does for a request
    faults.call, faults.fail_at, faults.number = b"io_uring_enter", 1, errno.EIO
    ring = disk.start()
    ring.submit(pack_request(FLUSH, id=0))
    assert isinstance(disk.ended(), OSError)
    with pytest.raises(ImageError, match="uses it"):
        Image.open(path, readonly=False)
    os.close(held)
    disk.close()
    with path.open("r+b") as file:  # waits for the kernel, which lets go of a broken io_uring in its own time
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    Image.open(path, readonly=False).close()
