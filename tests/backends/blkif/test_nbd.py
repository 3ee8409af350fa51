"""Disks that an NBD server has, on both planes: it hangs, goes and comes back, and its export grows."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.blkfront import pack_request
from tests.fakes.disks import Rig
from tests.fakes.engine import SIZE, EngineDisk, needs_engine
from tests.fakes.nbd import NbdServer
from xenpvd.abi.io_blkif import BLKIF_OP_READ
from xenpvd.backends.blkif import backend as backend_module
from xenpvd.backends.blkif.engine_image import EngineImage
from xenpvd.config import DiskConfig
from xenpvd.errors import ImageError
from xenpvd.tasks import in_thread

pytestmark = needs_engine

READ = BLKIF_OP_READ


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NbdServer]:
    raw = tmp_path / "nbd.img"
    raw.write_bytes(random.Random(3).randbytes(SIZE))
    server = NbdServer(raw)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def disk(server: NbdServer, native: bool) -> AsyncIterator[EngineDisk]:
    disk = await EngineDisk.start(server.target, "raw", native=native)
    yield disk
    await disk.close()


@pytest.fixture
async def rig(
    server: NbdServer, tmp_path: Path, native: bool, request: pytest.FixtureRequest
) -> AsyncIterator[Rig]:
    """It ends before the server does: what was written is flushed there."""
    if not native:
        request.getfixturevalue("no_native_plane")
    rig = Rig(tmp_path)
    yield rig
    await rig.close()
    for backend in rig.disks:
        await backend.image.ended()


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - of what is done in other threads and processes
        await asyncio.sleep(0.01)


async def image(server: NbdServer, **options: Any) -> EngineImage:
    return await EngineImage.start(DiskConfig(vdev="xvda", target=server.target, **options))


async def test_what_a_server_has(server: NbdServer, disk: EngineDisk) -> None:
    assert disk.image.size == SIZE
    assert await disk.do(lambda ring: ring.read(8, 88)) == server.raw.read_bytes()[4096:49152]
    await disk.do(lambda ring: ring.write(0, b"n" * 4096))
    assert await disk.do(lambda ring: ring.flush()) == 0
    assert server.raw.read_bytes()[:4096] == b"n" * 4096
    await disk.do(lambda ring: ring.write(0, b"m" * 4096))
    os.kill(disk.pid, signal.SIGKILL)  # the server keeps what it has
    assert await disk.do(lambda ring: (ring.flush(), ring.read(0, 8))) == (0, b"m" * 4096)


async def test_a_server_that_hangs_is_waited_for(server: NbdServer, disk: EngineDisk) -> None:
    server.hang()
    writing = asyncio.gather(disk.do(lambda ring: ring.write(0, b"n" * 4096)))
    done, _ = await asyncio.wait([writing], timeout=0.2)
    assert not done
    server.go_on()
    await writing


async def test_a_server_that_goes_and_comes_back_is_taken_up_again(
    server: NbdServer, disk: EngineDisk
) -> None:
    """What is asked meanwhile waits, and is answered once; nobody is told of an error."""
    engine = disk.pid
    for lap in range(3):
        server.stop()
        slots = [pack_request(READ, id=n, segments=[(disk.ring.data_page()[1], 0, 7)]) for n in range(8)]
        asking = asyncio.gather(disk.do(lambda ring: ring.do(*slots)))  # noqa: B023 - awaited in here
        done, _ = await asyncio.wait([asking], timeout=0.1)
        assert not done
        server.start()
        assert await asking == [[(n, READ, 0) for n in range(8)]]
        await disk.do(lambda ring: ring.write(8 * lap, bytes([lap + 1]) * 4096))  # noqa: B023
    assert server.raw.read_bytes()[: 3 * 4096] == b"\1" * 4096 + b"\2" * 4096 + b"\3" * 4096
    assert disk.pid == engine and disk.troubles == []


async def test_a_disk_on_a_server_that_hangs_goes_by_force(
    rig: Rig, server: NbdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "FORCE_PATIENCE", 0.2)
    disk, front = rig.disk(image=await image(server))
    ring = await front.connect()
    server.hang()
    slot = pack_request(READ, id=5, segments=[(ring.data_page()[1], 0, 7)])
    ring.submit(slot)
    await until(lambda: disk.info().stats["in_flight"] == 1)
    other, its_front = rig.disk("xvdb")
    its_ring = await its_front.connect()
    assert len(await in_thread(lambda: its_ring.read(0, 8))) == 4096  # nothing else stops
    await disk.remove(force=True)
    assert ring.take() == [(5, READ, -1)]
    assert disk.info().state == "Closed" and other.info().state == "Connected"


@pytest.mark.parametrize("access", ["rw", "ro"])
async def test_an_export_that_has_grown_is_seen_when_it_is_asked_for(
    rig: Rig, server: NbdServer, access: Any
) -> None:
    """With requests under way, of which none is lost; the guest hears of a new size and of no error."""
    disk, front = rig.disk(image=await image(server, access=access), access=access)
    ring = await front.connect()
    await disk.resize(None)
    before = disk.info().engine
    assert before is not None and before.restarts == 0, "for the same size nothing is begun anew"
    server.stop()
    os.truncate(server.raw, 2 * SIZE)
    server.start()
    await in_thread(lambda: ring.read(0, 8))
    assert disk.info().size == SIZE
    stop = asyncio.Event()

    async def work() -> int:
        rounds = 0
        while not stop.is_set():
            assert await in_thread(lambda: ring.read(8, 8)) == server.raw.read_bytes()[4096:8192]
            rounds += 1
        return rounds

    working = asyncio.gather(work())
    await disk.resize(None)
    stop.set()
    assert (await working)[0] > 0
    after = disk.info()
    assert after.size == 2 * SIZE and after.engine is not None and after.engine.pid != before.pid
    assert rig.named("drive.resized") == [{"vdev": "xvda", "size": 2 * SIZE}]
    assert rig.named("drive.error") == []
    assert await in_thread(lambda: ring.read(SIZE // 512, 8)) == bytes(4096)
    if access == "rw":
        await in_thread(lambda: ring.write(SIZE // 512, b"x" * 4096))
        assert server.raw.read_bytes()[SIZE : SIZE + 4096] == b"x" * 4096
        assert await in_thread(ring.flush) == 0


async def test_an_export_is_not_resized_from_here(rig: Rig, server: NbdServer) -> None:
    disk, _ = rig.disk(image=await image(server))
    with pytest.raises(ImageError, match=r"a server has it\. Resize it there, and give no size\."):
        await disk.resize(2 * SIZE)
    assert disk.info().size == SIZE and server.raw.stat().st_size == SIZE


async def test_a_server_that_cannot_be_asked_for_its_size(rig: Rig, server: NbdServer) -> None:
    disk, front = rig.disk(image=await image(server))
    ring = await front.connect()
    server.stop()
    with pytest.raises(ImageError, match=r"its engine says: .*Failed to connect.*try again\."):
        await disk.resize(None)
    server.start()
    assert await in_thread(lambda: ring.read(0, 8)) == server.raw.read_bytes()[:4096]
    assert rig.named("drive.error") == [] and rig.named("drive.resized") == []


async def test_what_was_lost_is_not_forgotten_over_a_new_size(rig: Rig, server: NbdServer) -> None:
    """A flush that failed stays failed (fsync), whatever process serves the image."""
    disk, front = rig.disk(image=await image(server))
    ring = await front.connect()
    disk.image.flush_errno.value = 5
    server.stop()
    os.truncate(server.raw, 2 * SIZE)
    server.start()
    with pytest.raises(ImageError, match="at an earlier flush"):
        await disk.resize(None)
    assert await in_thread(ring.flush) == -1 and disk.info().size == SIZE
