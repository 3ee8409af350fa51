"""Disks behind qemu-storage-daemon, on both planes, with what can happen to it."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.blkfront import BlkRing, pack_request
from tests.fakes.disks import Rig
from tests.fakes.engine import SIZE, EngineDisk, contents, make_image, needs_engine
from xenpvd.abi.io_blkif import BLKIF_OP_READ, BLKIF_OP_WRITE
from xenpvd.backends.blkif import engine_process
from xenpvd.backends.blkif import native as native_module
from xenpvd.backends.blkif.engine_image import EngineImage
from xenpvd.backends.blkif.formats import FORMATS
from xenpvd.backends.blkif.image import Image
from xenpvd.config import DiskConfig
from xenpvd.errors import BadConfig, ImageError, Unsupported
from xenpvd.tasks import in_thread

pytestmark = needs_engine

Start = Callable[..., Awaitable[EngineDisk]]


@pytest.fixture
async def start(native: bool) -> AsyncIterator[Start]:
    disks: list[EngineDisk] = []

    async def start(path: Path | str, form: str = "qcow2", **options: Any) -> EngineDisk:
        disks.append(await EngineDisk.start(path, form, native=native, **options))
        return disks[-1]

    yield start
    for disk in disks:
        await disk.close()


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.qcow2", "qcow2")


def qemu_img(verb: str, *words: object) -> str:
    """What it complains of."""
    command = ["qemu-img", verb, *(["-q"] if verb != "convert" else []), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True).stderr


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - of what is done in other threads and processes
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("form", FORMATS)
async def test_what_a_guest_writes_is_in_the_image(start: Start, tmp_path: Path, form: str) -> None:
    path = make_image(tmp_path / f"disk.{form}", form)
    disk = await start(path, form)
    assert disk.image.size >= SIZE
    whole, chance = bytearray(disk.image.size), random.Random(form)

    def work(ring: BlkRing) -> None:
        for _ in range(40):
            sector, count = chance.randrange(SIZE // 512 - 88), chance.randrange(1, 88)
            data = chance.randbytes(count * 512)
            ring.write(sector, data)
            whole[sector * 512 : sector * 512 + len(data)] = data
            assert ring.read(sector, count) == data
        assert ring.flush() == 0

    await disk.do(work)
    await disk.close()
    assert contents(path, form)[:SIZE] == whole[:SIZE]


async def test_large_requests_and_discards(start: Start, qcow2: Path) -> None:
    disk = await start(qcow2)
    data = random.Random(0).randbytes(1 << 20)

    def work(ring: BlkRing) -> None:
        pages = [ring.data_page() for _ in range(256)]
        for n, (page, _) in enumerate(pages):
            page.write(0, data[n * 4096 : n * 4096 + 4096])
        grefs = [gref for _, gref in pages]
        assert ring.transfer_indirect(BLKIF_OP_WRITE, 8, grefs) == 0
        for page, _ in pages:
            page.write(0, bytes(4096))
        assert ring.transfer_indirect(BLKIF_OP_READ, 8, grefs) == 0
        assert b"".join(bytes(page.view) for page, _ in pages) == data
        assert ring.discard(0, SIZE // 512) == 0
        assert ring.read(8, 8) == bytes(4096)

    await disk.do(work)


async def test_a_full_ring_at_once(start: Start, qcow2: Path) -> None:
    """More than the queue to the engine has room for: the others wait their turn."""
    disk = await start(qcow2)

    def work(ring: BlkRing) -> None:
        pages = [ring.data_page() for _ in range(256)]
        grefs = [gref for _, gref in pages]
        for n, (page, _) in enumerate(pages):
            page.write(0, bytes([n]) * 4096)
        assert ring.transfer_indirect(BLKIF_OP_WRITE, 0, grefs) == 0
        for _ in range(8):
            slots = [
                pack_request(0, id=n, sector=8 * ((37 * n) % 200), segments=[(grefs[n], 0, 7)])
                for n in range(32)
            ]
            assert ring.do(*slots) == [(n, 0, 0) for n in range(32)]
            assert all(bytes(pages[n][0].view) == bytes([37 * n % 200]) * 4096 for n in range(32))

    await disk.do(work)


async def kill(disk: EngineDisk, killed: threading.Event) -> None:
    """Three times, while something is under way; more of them would wait longer than a ring does here."""
    for _ in range(3):
        await until(lambda: disk.plane.stats()["in_flight"] > 0 and disk.is_there)
        os.kill(disk.pid, signal.SIGKILL)
        await until(lambda: not disk.is_there)
    killed.set()


async def test_an_engine_that_is_killed_is_followed_by_another(start: Start, qcow2: Path) -> None:
    """Nothing is lost that was flushed, and a guest that hears of a failed flush can mend the rest."""
    disk = await start(qcow2)
    whole, chance, killed = bytearray(SIZE), random.Random(1), threading.Event()

    def write_all(ring: BlkRing) -> None:
        for at in range(0, SIZE, 8 * 4096):
            ring.write(at // 512, bytes(whole[at : at + 8 * 4096]))

    def work(ring: BlkRing) -> None:
        while not killed.is_set():
            for _ in range(4):
                sector = 8 * chance.randrange(SIZE // 4096)
                data = chance.randbytes(4096)
                ring.write(sector, data)
                whole[sector * 512 : sector * 512 + 4096] = data
            while ring.flush():
                disk.image.flush_errno.value = 0
                write_all(ring)

    await asyncio.gather(disk.do(work), kill(disk, killed))
    engine = disk.image.describe()
    assert engine is not None and engine.restarts >= 2
    assert "was killed by SIGKILL" in disk.troubles[0] and f"{qcow2}" in disk.troubles[0]
    await disk.close()
    assert contents(qcow2, "qcow2") == bytes(whole)


async def test_a_flush_that_another_engine_ends_has_failed_if_writes_are_lost(
    start: Start, qcow2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await start(qcow2)

    def done_by_the_next_one() -> None:
        disk.image.flush_errno.value = errno.EIO  # as it is told when the one before has died

    monkeypatch.setattr(disk.image._queue, "flush", done_by_the_next_one)
    with pytest.raises(OSError, match="writes may be lost"):
        disk.image.flush()


async def test_a_full_ring_while_engines_die(start: Start, qcow2: Path) -> None:
    """Each request is answered once, and has done what it should."""
    disk = await start(qcow2)
    whole, chance, killed = bytearray(SIZE), random.Random(2), threading.Event()

    def work(ring: BlkRing) -> None:
        pages = [ring.data_page() for _ in range(32)]
        while not killed.is_set():
            sectors = chance.sample(range(0, SIZE // 512, 8), 32)
            writes = [chance.random() < 0.5 for _ in sectors]
            for sector, write, (page, _) in zip(sectors, writes, pages, strict=True):
                page.write(0, chance.randbytes(4096) if write else b"?" * 4096)
                if write:
                    whole[sector * 512 : sector * 512 + 4096] = page.view
            slots = [
                pack_request(write, id=n, sector=sector, segments=[(pages[n][1], 0, 7)])
                for n, (sector, write) in enumerate(zip(sectors, writes, strict=True))
            ]
            assert ring.do(*slots) == [(n, int(write), 0) for n, write in enumerate(writes)]
            for sector, (page, _) in zip(sectors, pages, strict=True):
                assert page.view == whole[sector * 512 : sector * 512 + 4096]

    await disk.do(lambda ring: [ring.write(at, bytes(8192)) for at in range(0, SIZE // 512, 16)])
    assert await disk.do(lambda ring: ring.flush()) == 0  # no table changes after that: nothing gets lost
    await asyncio.gather(disk.do(work), kill(disk, killed))
    engine = disk.image.describe()
    assert engine is not None and engine.restarts >= 2
    disk.image.flush_errno.value = 0


async def test_requests_under_way_are_done_again(start: Start, qcow2: Path) -> None:
    disk = await start(qcow2)
    assert await disk.do(lambda ring: ring.flush()) == 0
    os.kill(disk.pid, signal.SIGSTOP)  # so that they are under way
    answers = asyncio.gather(disk.do(lambda ring: ring.write(0, b"a" * 4096)))
    await until(lambda: disk.plane.stats()["in_flight"] == 1)
    os.kill(disk.pid, signal.SIGKILL)
    await answers
    assert await disk.do(lambda ring: (ring.read(0, 8), ring.flush())) == (b"a" * 4096, 0)
    assert len(disk.troubles) == 1 and "lost" not in disk.troubles[0]


async def test_a_flush_fails_if_writes_may_be_lost(start: Start, qcow2: Path) -> None:
    """Until the guest's next life, as on any disk whose flush has failed."""
    disk = await start(qcow2)
    await disk.do(lambda ring: ring.write(0, b"a" * 4096))
    os.kill(disk.pid, signal.SIGKILL)
    await until(lambda: bool(disk.troubles))
    assert (
        "1 writes since the last flush may be lost: flushes fail until the guest restarts" in disk.troubles[0]
    )
    assert await disk.do(lambda ring: (ring.flush(), ring.flush())) == (-1, -1)
    await disk.do(lambda ring: ring.write(0, b"b" * 4096))  # the rest goes on
    assert await disk.shut() is None
    disk.image.watch(disk.troubles.append, lambda name, fault: disk.faults.append(fault))
    disk.open()
    assert await disk.do(lambda ring: (ring.flush(), ring.read(0, 8))) == (0, b"b" * 4096)


async def test_an_engine_that_hangs_is_waited_for(start: Start, qcow2: Path) -> None:
    disk = await start(qcow2)
    os.kill(disk.pid, signal.SIGSTOP)
    reading = asyncio.gather(disk.do(lambda ring: ring.read(0, 8)))
    done, _ = await asyncio.wait([reading], timeout=0.2)
    assert not done
    os.kill(disk.pid, signal.SIGCONT)
    assert await reading == [bytes(4096)]
    assert disk.troubles == []


async def test_what_is_given_up_fails_and_is_not_done_later(start: Start, qcow2: Path) -> None:
    disk = await start(qcow2)
    pid = disk.pid
    os.kill(pid, signal.SIGSTOP)
    writing = asyncio.gather(
        disk.do(lambda ring: ring.do(pack_request(1, id=5, segments=[(ring.data_page()[1], 0, 7)])))
    )
    await until(lambda: disk.plane.stats()["in_flight"] == 1)
    disk.image.give_up()
    assert await writing == [[(5, 1, -1)]]
    assert await disk.shut() is None
    disk.open()
    assert await disk.do(lambda ring: ring.read(0, 8)) == bytes(4096)
    assert disk.pid != pid


async def test_a_readonly_disk(start: Start, qcow2: Path) -> None:
    disk = await start(qcow2, access="ro")
    other = await EngineImage.start(DiskConfig(vdev="xvdb", target=f"{qcow2}", format="qcow2", access="ro"))
    assert not disk.image.can_discard
    segments = [(disk.ring.data_page()[1], 0, 7)]
    assert await disk.do(lambda ring: ring.do(pack_request(1, id=5, segments=segments))) == [(5, 1, -1)]
    assert await disk.do(lambda ring: ring.read(0, 8)) == bytes(4096)
    other.close()
    await other.ended()


async def test_an_image_has_one_writer(start: Start, qcow2: Path) -> None:
    await start(qcow2)
    with pytest.raises(ImageError, match=rf"cannot use image {qcow2}: .*lock.*Stop what uses the image"):
        await EngineImage.start(DiskConfig(vdev="xvdb", target=f"{qcow2}", format="qcow2"))
    with pytest.raises(ImageError, match="uses it"):
        Image.open(qcow2, readonly=False)


async def test_resize(start: Start, qcow2: Path) -> None:
    disk = await start(qcow2)
    assert await in_thread(lambda: disk.image.plan_resize(None, 4096)) == SIZE
    assert await in_thread(lambda: disk.image.plan_resize(2 * SIZE, 4096)) == 2 * SIZE
    await in_thread(lambda: disk.image.resize(2 * SIZE))
    assert disk.image.size == 2 * SIZE
    disk.plane.offer = type(disk.plane.offer)(2 * SIZE // 512)
    await disk.do(lambda ring: ring.write(SIZE // 512, b"x" * 4096))
    with pytest.raises(ImageError, match="no multiple"):
        await in_thread(lambda: disk.image.plan_resize(SIZE + 512, 4096))
    with pytest.raises(BadConfig, match=f"it has {2 * SIZE}, and what is beyond would be lost"):
        await in_thread(lambda: disk.image.plan_resize(SIZE, 4096))


async def test_the_backend_shows_and_tells(tmp_path: Path, qcow2: Path) -> None:
    rig = Rig(tmp_path)
    image = await EngineImage.start(DiskConfig(vdev="xvda", target=f"{qcow2}", format="qcow2"))
    disk, front = rig.disk(image=image, format="qcow2")
    ring = await front.connect()
    await in_thread(lambda: ring.write(0, b"x" * 4096))
    info = disk.info()
    assert info.format == "qcow2" and info.size == SIZE
    assert info.engine is not None and info.engine.pid and info.engine.version
    os.kill(info.engine.pid, signal.SIGKILL)
    await until(lambda: bool(rig.named("drive.error")))
    (error,) = rig.named("drive.error")
    assert error["vdev"] == "xvda" and "SIGKILL" in error["error"]
    await until(lambda: (engine := disk.info().engine) is not None and engine.pid is not None)
    await disk.resize(2 * SIZE)
    assert rig.named("drive.resized") == [{"vdev": "xvda", "size": 2 * SIZE}]
    await rig.close()
    await image.ended()


async def test_nothing_is_left_of_a_hundred(tmp_path: Path, qcow2: Path) -> None:
    def left() -> tuple[int, int]:
        children = subprocess.run(["pgrep", "-c", "-P", f"{os.getpid()}"], capture_output=True, text=True)
        return len(os.listdir("/proc/self/fd")), int(children.stdout)  # noqa: PTH208

    async def once() -> None:
        image = await EngineImage.start(DiskConfig(vdev="xvda", target=f"{qcow2}", format="qcow2"))
        twin = image.dup()
        twin.close()
        image.close()
        await image.ended()

    await once()
    before = left()
    for _ in range(100):
        await once()
    assert left() == before


async def test_only_the_engine_changes_an_image_that_is_in_use(start: Start, qcow2: Path) -> None:
    """So there is no other size to look for: who would give it one is kept out by the lock."""
    for access in ("rw", "ro"):
        disk = await start(qcow2, access=access)
        assert "lock" in qemu_img("resize", "-f", "qcow2", qcow2, 2 * SIZE)
        assert await in_thread(lambda: disk.image.plan_resize(None, 4096)) == SIZE  # noqa: B023
        await disk.close()
    assert qemu_img("resize", "-f", "qcow2", qcow2, 2 * SIZE) == ""
    disk = await start(qcow2, access="ro")
    assert disk.image.size == 2 * SIZE
    with pytest.raises(ImageError, match=r"it is read-only\. Resize it on the host, and give no size\."):
        await in_thread(lambda: disk.image.plan_resize(3 * SIZE, 4096))


async def test_a_backing_file_is_refused_with_the_cure(tmp_path: Path, qcow2: Path) -> None:
    top = tmp_path / "top.qcow2"
    assert qemu_img("create", "-f", "qcow2", "-b", qcow2, "-F", "qcow2", top) == ""
    disk = DiskConfig(vdev="xvda", target=f"{top}", format="qcow2")
    with pytest.raises(ImageError) as refused:
        await EngineImage.start(disk)
    assert str(refused.value) == (
        f"cannot use image {top}: it has a backing file, and an image must not choose the host's files. "
        "Make one file of it: qemu-img convert."
    )
    assert qemu_img("convert", "-O", "qcow2", top, tmp_path / "one.qcow2") == ""
    whole = disk.model_copy(update={"target": f"{tmp_path / 'one.qcow2'}"})
    image = await EngineImage.start(whole)
    assert image.size == SIZE
    image.close()
    await image.ended()


async def test_an_image_of_another_format_is_refused(tmp_path: Path, qcow2: Path) -> None:
    with pytest.raises(ImageError, match="it is no vmdk image"):
        await EngineImage.start(DiskConfig(vdev="xvda", target=f"{qcow2}", format="vmdk"))


async def test_an_engine_s_own_words(tmp_path: Path, qcow2: Path) -> None:
    with qcow2.open("r+b") as file:
        file.seek(20)
        file.write(bytes([0, 0, 0, 99]))  # cluster bits
    with pytest.raises(ImageError, match=rf"{qcow2}: qemu-storage-daemon says: .*[Cc]luster") as caught:
        await EngineImage.start(DiskConfig(vdev="xvda", target=f"{qcow2}", format="qcow2"))
    assert "/proc/self" not in str(caught.value)


async def test_without_the_program(qcow2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "_PATH", "/nowhere")
    with pytest.raises(Unsupported, match="Install it"):
        await EngineImage.start(DiskConfig(vdev="xvda", target=f"{qcow2}", format="qcow2"))


async def test_a_stop_just_before_it_sleeps_is_heard(
    qcow2: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(native_module, "spin_max", lambda: 20_000_000)  # it ends in there
    disk = await EngineDisk.start(qcow2, native=native)
    for _ in range(20):  # an answer's call may still be there, and wake it
        assert await disk.do(lambda ring: ring.read(0, 8)) == bytes(4096)
        assert await disk.shut() is None
        disk.open()
    await disk.close()


async def test_without_io_uring(qcow2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is forbidden."""
    program = tmp_path / "engine"
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        '*io_uring*) echo "qemu-storage-daemon: Unable to use io_uring: no" >&2; exit 1;; esac\n'
        'exec qemu-storage-daemon "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(engine_process, "find", lambda: f"{program}")
    disk = await EngineDisk.start(qcow2)
    assert await disk.do(lambda ring: ring.read(0, 8)) == bytes(4096)
    await disk.close()
