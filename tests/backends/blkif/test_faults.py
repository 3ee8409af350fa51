"""The host fails a plane: every call that it makes, one by one, transfers cut short, and the power cut."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.blkfront import pack_discard, pack_request
from tests.fakes.disk import Disk
from tests.fakes.faults import Faults
from tests.fakes.guest import Guest
from xenpvd.abi.io_blkif import BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, BLKIF_OP_WRITE
from xenpvd.abi.io_ring import REQ_EVENT
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.sharing import FLOCK
from xenpvd.config import Cache
from xenpvd.errors import ImageError

READ, WRITE, FLUSH = BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_FLUSH_DISKCACHE
SECTORS = 512
BEFORE = random.Random(3).randbytes(SECTORS * 512)
#: what is no error: it is tried again
AGAIN = (errno.EINTR, errno.EAGAIN)
#: by engine: the calls that carry out requests, those without which there is no going on, and others
TRANSFERS = {
    "python": ("fstat", "preadv", "pwritev2", "fdatasync", "fallocate", "ioctl"),
    "preadv": ("preadv", "pwritev2", "fdatasync", "fallocate", "ioctl"),
    "io_uring": ("completion", "fdatasync", "ioctl"),
}
FATAL = {"python": ("poll", "read", "write"), "preadv": (), "io_uring": ("io_uring_enter",)}
OTHERS = {
    "python": (),
    "preadv": ("calloc", "fstat", "poll", "read", "write"),
    "io_uring": ("calloc", "fstat", "poll", "read", "write", "mmap", "io_uring_setup", "io_uring_register"),
}
#: the sectors that requests begin at, by their ids
WHERE = {0: 8, 1: 64, 2: 128, 4: 256}


class Run:
    """One of everything in a batch, then a flush, with a call that fails on the way; and what came of it."""

    def __init__(self, path: Path, engine: str, faults: Faults, call: str, nth: int, number: int) -> None:
        path.write_bytes(BEFORE)
        guest = Guest()
        disk = Disk(path, engine=engine, gnttab=guest, block=call == "ioctl")
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
        disk.ring.page.store32(REQ_EVENT, 1 << 31)
        faults.fail(call, nth, number)
        ring = disk.start()
        while ring.page.load32(REQ_EVENT) != 1 and disk.ends.empty():
            time.sleep(0)  # it is about to sleep, so that it is woken; it may need the GIL
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
                    time.sleep(0)
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


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "number", [*AGAIN, errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EROFS], ids=errno.errorcode.get
)
def test_every_call_fails_once(
    tmp_path: Path, faults: Faults, engine: str, number: int
) -> None:  # O1, O2, O3, O13
    for call in (*OTHERS[engine], *FATAL[engine], *TRANSFERS[engine]):
        for nth in range(1, 100):
            path = tmp_path / f"{call}{nth}.img"  # a broken io_uring holds on to it for a moment
            run = Run(path, engine, faults, call, nth, number)
            run.check_data()
            if not run.failed:
                break
            check(run, engine, call, number)
        assert 1 < nth < 100, call


def check(run: Run, engine: str, call: str, number: int) -> None:
    if call == "calloc":
        assert isinstance(run.end, MemoryError) and not run.answers
        return
    if call in FATAL[engine] and number not in AGAIN:
        assert isinstance(run.end, OSError) and run.end.errno == number
        assert engine == "io_uring" or not run.in_use, "there, some may still be under way"
        return
    assert run.end is None and not run.in_use
    assert sorted(run.answers) == [0, 1, 2, 3, 4, 5]
    errors = [id_ for id_, status in sorted(run.answers.items()) if status]
    if call not in TRANSFERS[engine] or number in AGAIN:
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
def test_short_transfers_are_continued(tmp_path: Path, faults: Faults, engine: str, most: int) -> None:  # O3
    faults.most = most
    run = Run(tmp_path / "disk.img", engine, faults, "", 0, 0)
    run.check_data()
    assert run.answers == dict.fromkeys(range(6), 0) and run.end is None


def test_short_transfers_of_scattered_pages(path: Path, faults: Faults, engine: str) -> None:  # O3
    faults.most, rng = 1000, random.Random(5)
    disk = Disk(path, engine=engine)
    ring = disk.start()
    for n in range(20):
        data = rng.randbytes(4 * 4096)
        ring.write(8 * n, data)
        assert ring.read(8 * n, 32) == data
    assert disk.end() is None
    disk.close()


@pytest.mark.parametrize("operation", [READ, WRITE])
def test_storage_that_takes_or_gives_nothing(engine_disk: Disk, faults: Faults, operation: int) -> None:  # O1
    """That is an error: nobody asks for ever."""
    ring = engine_disk.start()
    _, gref = ring.data_page()
    slot = pack_request(operation, segments=[(gref, 0, 7)])
    faults.fail("nothing", 1, errno.EIO)
    assert ring.do(slot) == [(0, operation, -1)] and faults.calls == 1
    assert ring.do(slot) == [(0, operation, 0)]


@pytest.mark.parametrize(
    ("cache", "synced"), [("writeback", 0), ("writethrough", 3), ("none", 0), ("directsync", 3)]
)
def test_a_write_through_the_cache_has_ended_when_it_is_stored(
    path: Path, faults: Faults, engine: str, cache: Cache, synced: int
) -> None:
    disk = Disk(path, engine=engine, cache=cache)
    ring = disk.start()
    for sector in (0, 8, 16):
        ring.write(sector, b"x" * 4096)
    assert ring.read(0, 24) == b"x" * 3 * 4096 and ring.flush() == 0
    assert faults.synced == synced
    assert disk.end() is None
    disk.close()


@pytest.mark.parametrize("engine", ["io_uring"])
def test_of_flushes_that_come_together_none_succeeds_without_the_others(path: Path, faults: Faults) -> None:
    """The kernel tells one of them that pages were lost, and the next that all is well."""
    faults.fail("completion", 1, errno.EIO)
    disk = Disk(path, native=True)
    for n in range(6):
        disk.ring.put(pack_request(FLUSH, id=n))
    disk.ring.push()
    disk.start()
    assert sorted(disk.ring.wait(6)) == [(n, FLUSH, -1) for n in range(6)]
    assert disk.plane.stats()["flushes"] == 0
    assert disk.end() is None
    disk.close()


@pytest.mark.parametrize("engine", ["io_uring"])
def test_flushes_that_come_meanwhile_have_one_in_common(path: Path, faults: Faults) -> None:
    faults.fail("completion", 0, 0)
    disk = Disk(path, native=True)
    for n in range(16):
        disk.ring.put(pack_request(FLUSH, id=n))
    disk.ring.push()
    disk.start()
    assert sorted(disk.ring.wait(16)) == [(n, FLUSH, 0) for n in range(16)]
    assert disk.plane.stats()["flushes"] == 16 and faults.calls < 16
    assert disk.end() is None
    disk.close()


@pytest.mark.parametrize("engine", ["io_uring"])
def test_what_is_done_does_not_wait_for_what_the_thread_does_itself(path: Path, faults: Faults) -> None:
    """A discard of a block device is a call that takes its time, and the guest has many."""
    faults.discard_us = 2000  # type: ignore[union-attr]
    disk = Disk(path, native=True, order=4, block=True)
    disk.ring.put(pack_request(FLUSH, id=1000))
    for n in range(100):
        disk.ring.put(pack_discard(n, 1, id=n))
    disk.ring.push()
    disk.start()
    answered = [id_ for id_, _, _ in disk.ring.wait(101)]
    assert answered.index(1000) < 100
    faults.discard_us = 0  # type: ignore[union-attr]
    assert disk.end() is None
    disk.close()


@pytest.mark.parametrize("engine", ["io_uring"])
def test_what_may_still_be_under_way_keeps_the_lock(path: Path, faults: Faults) -> None:
    disk = Disk(path, native=True)
    held = os.dup(disk.image.fd)  # as the kernel does for a request
    faults.fail("io_uring_enter", 1, errno.EIO)
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


@pytest.mark.parametrize("other", ["python", "preadv", "io_uring"])
def test_a_flush_that_failed_has_failed_for_every_plane(
    path: Path, faults: Faults, engine: str, other: str
) -> None:  # O1
    """Another ring, or the next connection: until the image is opened anew."""
    first = Disk(path, engine=engine)
    second = Disk(path, engine=other, image=first.image.dup())
    faults.fail("completion" if engine == "io_uring" else "fdatasync", 1, errno.EIO)
    assert first.start().flush() == -1
    assert first.ring.flush() == second.start().flush() == -1
    assert faults.calls == 1, "nobody asks once more"
    for disk in (first, second):
        assert disk.end() is None
        disk.close()
    again = Disk(path, engine=other)
    assert again.start().flush() == 0
    again.close()


def test_what_was_flushed_survives_a_power_cut(path: Path, faults: Faults, engine: str) -> None:  # O11
    """``stable`` has what was written when a flush of ours began; whatever else has been is lost."""
    stable, shadow, rng = path.with_name("stable.img"), bytearray(path.read_bytes()), random.Random(11)
    faults.step_in("sync", lambda: shutil.copyfile(path, stable))
    disk = Disk(path, engine=engine)
    ring = disk.start()
    pages = [ring.data_page(readonly=True) for _ in range(16)]
    for _ in range(30):
        slots = []
        for n, sector in enumerate(rng.sample(range(0, len(shadow) // 512, 8), len(pages))):
            page, gref = pages[n]
            data = rng.randbytes(4096)
            page.write(0, data)
            shadow[sector * 512 : sector * 512 + 4096] = data
            slots.append(pack_request(WRITE, id=n, sector=sector, segments=[(gref, 0, 7)]))
        assert ring.do(*slots) == [(n, WRITE, 0) for n in range(len(pages))]
        if rng.random() < 0.5:
            assert ring.flush() == 0
            assert stable.read_bytes() == shadow
    assert disk.end() is None
    disk.close()


@pytest.mark.parametrize("what", ["write", "discard"])
def test_who_goes_leaves_nothing_in_the_cache(
    path: Path, faults: Faults, engine: str, what: str
) -> None:  # O11
    disk = Disk(path, engine=engine)
    ring = disk.start()
    faults.fail("sync", 0, 0)
    if what == "write":
        ring.write(0, bytes(4096))
    else:
        assert ring.discard(0, 8) == 0
    assert disk.end() is None and faults.calls == 1
    disk.close()


@pytest.mark.parametrize("block", [False, True], ids=["file", "device"])
def test_a_large_discard_goes_in_steps_and_ends_with_the_plane(
    tmp_path: Path, faults: Faults, engine: str, block: bool
) -> None:  # B10
    path, size = tmp_path / "large.img", 64 << 30
    path.touch()
    os.truncate(path, size)
    call = "ioctl" if block else "completion" if engine == "io_uring" else "fallocate"
    disk = Disk(path, engine=engine, block=block)
    faults.fail(call, 0, 0)
    assert disk.start().discard(8, (3 << 30) // 512) == 0
    assert faults.calls == 3, "a GiB at a time"
    faults.step_in(call, disk.plane.stop, 2)
    assert disk.ring.discard(0, size // 512) == 0, "it is advice, and is answered"
    assert disk.ended() is None
    assert faults.calls == 2
    disk.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # io_uring holds on to a file for a moment


@pytest.mark.skipif(os.geteuid() != 0, reason="to mount a file system needs root")
def test_a_sparse_image_on_a_full_file_system(small: Path, engine: str) -> None:  # O2
    path, filler = small / "disk.img", small / "filler"
    path.touch()
    os.truncate(path, 1 << 20)
    filler.write_bytes(bytes(128 << 10))
    disk = Disk(path, engine=engine)
    ring = disk.start()
    page, gref = ring.data_page(readonly=True)
    page.view[:] = b"w" * 4096
    writes = [pack_request(WRITE, id=n, sector=8 * n, segments=[(gref, 0, 7)]) for n in range(64)]
    statuses = [status for half in (writes[:32], writes[32:]) for _, _, status in ring.do(*half)]
    written = statuses.count(0)
    assert 0 < written < 64 and statuses.count(-1) == 64 - written
    assert "No space left" in disk.troubles[0]
    filler.unlink()
    again = [writes[n] for n, status in enumerate(statuses) if status][:8]
    assert [status for _, _, status in ring.do(*again)] == [0] * len(again)
    assert ring.flush() == 0 and ring.read(0, 8) == b"w" * 4096
    assert disk.end() is None
    disk.close()
