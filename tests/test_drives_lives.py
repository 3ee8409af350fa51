"""Hot-add and remove that the end of a life overtakes: the next life's disks are whole, or not there."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.blkfront import BlkRing, pack_request
from tests.fakes.engine import contents, make_image, needs_engine
from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from xenpvd.abi.io_blkif import BLKIF_OP_WRITE
from xenpvd.abi.io_xenbus import XenbusState
from xenpvd.backends import device
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.vdev import devid
from xenpvd.config import DiskConfig, GuestConfig, LimitsConfig
from xenpvd.errors import BadConfig, Exists, ImageError, NotFound, StateError, TimedOut
from xenpvd.tasks import in_thread
from xenpvd.views import DriveAdded, Runstate

ENDS = pytest.mark.parametrize("end", ["reset", "reboot"])


@pytest.fixture
async def house(house: House, tmp_path: Path) -> AsyncIterator[House]:
    """Whatever happens, a life's disks and the open images are the same, and all of them can be read."""
    yield house
    images, domain = house.guest.drives.images, house.guest.domain
    assert {vdev: drive.image for vdev, drive in (domain.drives if domain else {}).items()} == {
        vdev: image for vdev, (_, image) in images.items()
    }
    for _, image in images.values():
        if image.size:
            image.read([memoryview(bytearray(512))], 0)
    await house.guest.destroy()
    assert all(lock_is_free(path) for path in tmp_path.glob("*.img"))


async def next_life(house: House, machines: list[FakeMachine], end: str) -> None:
    if end == "reset":
        await house.guest.reset()
    else:
        machines[-1].end("reboot")
        await house.until(Runstate.STARTING)
        await house.until(Runstate.RUNNING)
    assert len(machines) == 2


async def connect(house: House, machines: list[FakeMachine], vdev: str) -> BlkRing:
    async with asyncio.timeout(5):
        return await machines[-1].guest_disk(house.guest.xenstore.client, devid(vdev)).connect()


async def offered(house: House, vdev: str) -> None:
    subscription, _, _ = house.events.subscribe(("drive.added",), since=0)
    try:
        async with asyncio.timeout(5):
            async for event in subscription:
                if event.data["vdev"] == vdev:
                    return
    finally:
        subscription.close()


def adding(house: House, path: Path, wait: bool = True) -> asyncio.Future[tuple[DriveAdded]]:
    if not path.exists():
        path.write_bytes(bytes(1 << 20))
    disk = DiskConfig(vdev="xvdb", target=str(path))
    return asyncio.gather(house.guest.drives.add(house.guest.running("add"), disk, wait, 5))


def removing(house: House, vdev: str, force: bool = False, timeout: float = 5) -> asyncio.Future[tuple[bool]]:
    drives, domain = house.guest.drives, house.guest.domain
    return asyncio.gather(drives.remove(domain, vdev, force=force, missing_ok=False, timeout=timeout))


def lock_is_free(path: Path) -> bool:
    try:
        Image.open(path, readonly=False).close()
    except ImageError:
        return False
    return True


@ENDS
async def test_an_add_that_a_life_does_not_take_up_is_the_next_ones(
    running: House, machines: list[FakeMachine], tmp_path: Path, end: str
) -> None:
    add = adding(running, tmp_path / "b.img")
    await offered(running, "xvdb")
    await next_life(running, machines, end)
    with pytest.raises(StateError, match=r"ended before it took up xvdb; .* keeps the disk"):
        await add
    ring = await connect(running, machines, "xvdb")
    await asyncio.to_thread(ring.write, 0, b"x" * 512)
    assert (tmp_path / "b.img").read_bytes()[:512] == b"x" * 512
    assert not lock_is_free(tmp_path / "b.img")
    (again,) = await adding(running, tmp_path / "b.img")
    assert not again.changed


@ENDS
async def test_an_add_that_comes_too_late_leaves_nothing(
    running: House, machines: list[FakeMachine], tmp_path: Path, end: str
) -> None:
    before = running.guest.running("add")
    await next_life(running, machines, end)
    disk = DiskConfig(vdev="xvdb", target=str(tmp_path / "b.img"))
    (tmp_path / "b.img").write_bytes(bytes(1 << 20))
    with pytest.raises(StateError, match="cannot add xvdb: the guest has just ended"):
        await running.guest.drives.add(before, disk, True, 5)
    assert lock_is_free(tmp_path / "b.img")


@ENDS
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("connected", [False, True])
async def test_a_remove_is_done_before_the_next_life(
    running: House,
    machines: list[FakeMachine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    force: bool,
    connected: bool,
) -> None:
    monkeypatch.setattr(device, "FORGET_TIMEOUT", 0.1)
    if connected:
        await connect(running, machines, "xvda")
    remove = removing(running, "xvda", force)
    front = machines[0].guest_disk(running.guest.xenstore.client, devid("xvda"))
    # it waits: for a guest in use of the disk to let go, else for the guest to look at what is gone
    await front.wait_backend(XenbusState.Closing if connected and not force else XenbusState.Unknown)
    assert not remove.done()
    await next_life(running, machines, end)
    assert remove.done() and all(await remove)
    assert not running.guest.drives.images
    assert not running.guest.xenstore.exists(front.path)
    assert not running.guest.xenstore.exists(front.backend)
    assert running.told("drive.removed") == [{"vdev": "xvda", "forced": force}]
    assert len(running.told("drive.added")) == 1
    assert lock_is_free(tmp_path / "a.img")


@ENDS
@pytest.mark.parametrize("force", [False, True])
async def test_a_remove_that_comes_too_late_leaves_the_disk_whole(
    running: House, machines: list[FakeMachine], end: str, force: bool
) -> None:
    before = running.guest.domain
    await next_life(running, machines, end)
    with pytest.raises(StateError, match="cannot remove xvda: the guest has just ended"):
        await running.guest.drives.remove(before, "xvda", force=force, missing_ok=True, timeout=5)
    ring = await connect(running, machines, "xvda")
    assert await asyncio.to_thread(ring.read, 0, 1) == bytes(512)
    assert running.told("drive.removed") == []


@ENDS
async def test_a_remove_that_timed_out_leaves_the_disk_whole(
    running: House, machines: list[FakeMachine], end: str
) -> None:
    await connect(running, machines, "xvda")
    with pytest.raises(TimedOut):
        await removing(running, "xvda", timeout=0.01)
    await next_life(running, machines, end)
    ring = await connect(running, machines, "xvda")
    assert await asyncio.to_thread(ring.read, 0, 1) == bytes(512)


@ENDS
async def test_another_file_may_come_after_a_remove_that_was_overtaken(
    running: House, machines: list[FakeMachine], tmp_path: Path, end: str
) -> None:
    await adding(running, tmp_path / "b.img", wait=False)
    await connect(running, machines, "xvdb")
    remove = removing(running, "xvdb")
    await asyncio.sleep(0)
    await next_life(running, machines, end)
    assert all(await remove)
    await adding(running, tmp_path / "c.img", wait=False)
    (tmp_path / "c.img").write_bytes(b"c" * (1 << 20))
    ring = await connect(running, machines, "xvdb")
    assert await asyncio.to_thread(ring.read, 0, 1) == b"c" * 512


async def test_what_is_opened_for_a_disk_is_opened_as_its_definition_says(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    disk = DiskConfig(vdev="xvdb", target=str(tmp_path / "b.img"), cache="none")
    for name in ("b", "c"):
        (tmp_path / f"{name}.img").write_bytes(bytes(1 << 20))
    drives, domain = running.guest.drives, running.guest.domain
    assert domain is not None
    added = await drives.add(domain, disk, False, 5)
    assert added.drive.cache == "none"
    await drives.swap(domain, "xvdb", str(tmp_path / "c.img"))
    assert fcntl.fcntl(domain.drives["xvdb"].image.fd, fcntl.F_GETFL) & os.O_DIRECT
    with pytest.raises(Exists, match="there is one already"):
        await drives.add(domain, disk.model_copy(update={"cache": "writeback"}), False, 5)
    await drives.remove(domain, "xvdb", force=True, missing_ok=False, timeout=5)


async def test_a_disk_goes_by_any_name_of_its_number(running: House, tmp_path: Path) -> None:
    await adding(running, tmp_path / "b.img", wait=False)
    (tmp_path / "c.img").write_bytes(bytes(1 << 20))
    drives, domain = running.guest.drives, running.guest.domain
    with pytest.raises(Exists, match="cannot add d1: its number 51728 is xvdb's"):
        await drives.add(domain, DiskConfig(vdev="d1", target=str(tmp_path / "c.img")), False, 5)
    assert (await drives.resize(domain, "d1", 1 << 21, shrink=False)).vdev == "xvdb"
    limits = LimitsConfig(ops_per_second=5)
    assert (await drives.set_limits(domain, "d1p0", limits)).limits == limits.view()
    assert (await drives.swap(domain, "d1", str(tmp_path / "b.img"))).vdev == "xvdb"
    await drives.flush(domain, "d1")
    for other in ("sdb", "hdb", "xvdb1", "d2"):  # which have other numbers
        assert not await drives.remove(domain, other, force=True, missing_ok=True, timeout=5)
    assert await drives.remove(domain, "d1", force=True, missing_ok=False, timeout=5)
    assert list(drives.images) == ["xvda"]


async def test_resize_swap_and_flush_of_what_is_there(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    await adding(running, tmp_path / "b.img", wait=False)
    ring = await connect(running, machines, "xvdb")
    drives, domain = running.guest.drives, running.guest.domain
    with pytest.raises(BadConfig, match="what is beyond would be lost"):
        await drives.resize(domain, "xvdb", 1 << 19, shrink=False)
    assert (await drives.resize(domain, "xvdb", 1 << 21, shrink=False)).size == 1 << 21
    assert (await drives.resize(domain, "xvdb", 1 << 20, shrink=True)).size == 1 << 20
    await drives.flush(domain, "xvdb")

    other = tmp_path / "c.img"
    other.write_bytes(b"other".ljust(1 << 20, b"\0"))
    with pytest.raises(ImageError, match=r"none\.img"):
        await drives.swap(domain, "xvdb", str(tmp_path / "none.img"))
    (tmp_path / "odd.img").write_bytes(bytes(512 * 9))
    with pytest.raises(BadConfig, match="no multiple of 4096"):
        await drives.swap(domain, "xvdb", str(tmp_path / "odd.img"))
    assert lock_is_free(tmp_path / "odd.img")
    with pytest.raises(BadConfig, match="it is a disk, no cdrom"):
        await drives.swap(domain, "xvdb", "")
    assert (await drives.swap(domain, "xvdb", str(other))).target == str(other)
    assert ring.read(0, 1)[:5] == b"other"
    assert lock_is_free(tmp_path / "b.img") and not lock_is_free(other)
    for verb in (drives.resize(domain, "xvdz", None, False), drives.flush(domain, "xvdz")):
        with pytest.raises(NotFound, match="no such drive"):
            await verb
    with pytest.raises(NotFound, match="no such drive"):
        await drives.swap(domain, "xvdz", str(other))

    await next_life(running, machines, "reset")
    assert (await connect(running, machines, "xvdb")).read(0, 1)[:5] == b"other"


async def test_a_cdrom_that_was_emptied_is_empty_in_the_next_life(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    disc = tmp_path / "disc.img"
    disc.write_bytes(b"disc".ljust(4096, b"\0"))
    drives, domain = running.guest.drives, running.guest.running("add")
    await drives.add(domain, DiskConfig(vdev="xvdc", device="cdrom", target=str(disc)), False, 5)
    assert (await connect(running, machines, "xvdc")).read(0, 1)[:4] == b"disc"
    other = Image.open(disc, readonly=True)  # as readers share it
    other.close()
    await drives.swap(domain, "xvdc", "")
    assert lock_is_free(disc)
    await next_life(running, machines, "reset")
    assert running.guest.drives.images["xvdc"][1].size == 0
    assert (await drives.swap(running.guest.domain, "xvdc", str(disc))).size == 4096


class Hanging(Image):
    """Storage that hangs in every write until ``go``."""

    go = threading.Event()

    def _pwritev(self, views: list[memoryview], offset: int) -> int:
        assert self.go.wait(30)
        return super()._pwritev(views, offset)


async def test_a_change_on_storage_that_hangs_does_not_hold_up_the_end(
    running: House, machines: list[FakeMachine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "CUT_OFF_TIMEOUT", 0.1)
    monkeypatch.setattr("xenpvd.drives.Image", Hanging)
    Hanging.go.clear()
    (tmp_path / "b.img").write_bytes(bytes(1 << 20))
    (tmp_path / "c.img").write_bytes(bytes(1 << 20))
    drives, domain = running.guest.drives, running.guest.running("add")
    disk = DiskConfig(vdev="xvdb", target=str(tmp_path / "b.img"), limits=LimitsConfig(ops_per_second=1000))
    await drives.add(domain, disk, False, 5)
    ring = await connect(running, machines, "xvdb")
    page, gref = ring.data_page()
    page.write(0, b"late" * 128)
    ring.submit(pack_request(BLKIF_OP_WRITE, segments=[(gref, 0, 0)]))
    change = asyncio.gather(drives.swap(domain, "xvdb", str(tmp_path / "c.img")))
    async with asyncio.timeout(5):
        while domain.drives["xvdb"].disk.target == disk.target:  # noqa: ASYNC110  nobody is told that it waits
            await asyncio.sleep(0.01)
    await asyncio.wait_for(running.guest.destroy(), 5)
    await asyncio.wait_for(change, 5)
    assert not lock_is_free(tmp_path / "b.img"), "what hangs may still write there"
    (tmp_path / "new.img").write_bytes(bytes(4096))
    new = Image.open(tmp_path / "new.img", readonly=False)
    Hanging.go.set()
    async with asyncio.timeout(5):
        while not lock_is_free(tmp_path / "b.img"):  # noqa: ASYNC110  the kernel tells nobody of a lock
            await asyncio.sleep(0.01)
    assert (tmp_path / "b.img").read_bytes()[:512] == b"late" * 128
    assert (tmp_path / "new.img").read_bytes() == bytes(4096)
    new.close()


async def test_limits_that_come_during_a_change_hold_for_the_next_life(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    await adding(running, tmp_path / "b.img", wait=False)
    (tmp_path / "c.img").write_bytes(bytes(1 << 20))
    drives, domain = running.guest.drives, running.guest.domain
    limits = LimitsConfig(ops_per_second=77)
    change = asyncio.gather(drives.swap(domain, "xvdb", str(tmp_path / "c.img")))
    await asyncio.sleep(0)
    await drives.set_limits(domain, "xvdb", limits)
    await change
    await next_life(running, machines, "reset")
    (drive,) = [each for vdev, each in running.guest.running("look").drives.items() if vdev == "xvdb"]
    assert drive.info().limits.ops_per_second == 77 and drive.info().target == str(tmp_path / "c.img")
    (again,) = await adding(running, tmp_path / "c.img", wait=False)
    assert not again.changed, "limits make it no other disk"


async def test_a_change_to_what_is_there_changes_nothing(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    await adding(running, tmp_path / "b.img", wait=False)
    drives, domain = running.guest.drives, running.guest.domain
    assert (await drives.swap(domain, "xvdb", str(tmp_path / "b.img"))).target == str(tmp_path / "b.img")
    assert running.told("drive.changed") == []


async def test_a_change_that_a_remove_overtakes_says_so(
    running: House, machines: list[FakeMachine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await adding(running, tmp_path / "b.img", wait=False)
    (tmp_path / "c.img").write_bytes(bytes(1 << 20))
    drives, domain = running.guest.drives, running.guest.domain
    opening, go = asyncio.Event(), asyncio.Event()

    async def open_slowly(disk: DiskConfig) -> Image:
        opening.set()
        await go.wait()
        return await opened(disk)

    opened = drives._open
    monkeypatch.setattr(drives, "_open", open_slowly)
    change = asyncio.gather(drives.swap(domain, "xvdb", str(tmp_path / "c.img")))
    await opening.wait()
    await removing(running, "xvdb", force=True)
    go.set()
    with pytest.raises(NotFound, match="it was removed meanwhile"):
        await change
    assert lock_is_free(tmp_path / "b.img") and lock_is_free(tmp_path / "c.img")


async def test_a_guest_has_so_many_disks(
    running: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenpvd.drives.MAX_DISKS", 1)
    with pytest.raises(BadConfig, match="the guest has 1 disks, as many as it may"):
        await adding(running, tmp_path / "b.img", wait=False)
    assert lock_is_free(tmp_path / "b.img")


async def test_two_remove_it_by_force_and_it_is_told_once(
    running: House, machines: list[FakeMachine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "FORGET_TIMEOUT", 0.05)
    await adding(running, tmp_path / "b.img", wait=False)
    await connect(running, machines, "xvdb")
    both = await asyncio.gather(removing(running, "xvdb", force=True), removing(running, "xvdb", force=True))
    assert both == [[True], [True]]
    assert running.told("drive.removed") == [{"vdev": "xvdb", "forced": True}]


async def test_a_resize_that_a_remove_overtakes_says_so(
    running: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "FORGET_TIMEOUT", 0.05)
    await adding(running, tmp_path / "b.img", wait=False)
    drives, domain = running.guest.drives, running.guest.domain
    planning, go = threading.Event(), threading.Event()
    planned = Image.plan_resize

    def plan_slowly(image: Image, *args: Any, **options: Any) -> int:
        planning.set()
        assert go.wait(5)
        return planned(image, *args, **options)

    monkeypatch.setattr(Image, "plan_resize", plan_slowly)
    resize = asyncio.gather(drives.resize(domain, "xvdb", 1 << 21, False))
    await asyncio.to_thread(planning.wait, 5)
    await removing(running, "xvdb", force=True)
    go.set()
    with pytest.raises(NotFound, match="cannot resize xvdb: there is no such drive"):
        await resize
    assert (tmp_path / "b.img").stat().st_size == 1 << 20


async def test_an_image_whose_opening_was_given_up_is_not_in_the_next_ones_way(
    house: House, definition: GuestConfig, machines: list[FakeMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """N16: destroy overtakes a start, and the next start does not find its own image locked."""
    locked, go = threading.Event(), threading.Event()
    open_ = Image.open

    def open_slowly(path: str, **options: Any) -> Image:
        image = open_(path, **options)
        locked.set()
        go.wait(5)
        return image

    monkeypatch.setattr(Image, "open", open_slowly)
    first = asyncio.gather(house.guest.start(definition), return_exceptions=True)
    await in_thread(partial(locked.wait, 5))
    await house.guest.destroy()
    (fault,) = await first
    assert isinstance(fault, StateError)
    second = asyncio.gather(house.guest.start(definition))
    await asyncio.sleep(0)
    go.set()
    await second
    assert house.guest.state is Runstate.RUNNING and not house.guest.drives._given_up


@needs_engine
async def test_an_image_of_an_engine_over_the_lives(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    """Added, removed and added again at once, kept over a reset, swapped: one engine each, none is left."""
    one, two = (make_image(tmp_path / name, "qcow2") for name in ("one.qcow2", "two.qcow2"))
    disk = DiskConfig(vdev="xvdb", target=f"{one}", format="qcow2")
    drives = running.guest.drives
    for _ in range(2):
        added = await drives.add(running.guest.running("add"), disk, False, 5)
        assert added.changed and added.drive.engine is not None
        await removing(running, "xvdb", force=True)
    await drives.add(running.guest.running("add"), disk, False, 5)
    await next_life(running, machines, "reset")
    ring = await connect(running, machines, "xvdb")
    await in_thread(lambda: ring.write(0, b"x" * 512))
    before = running.guest.running("look").drives["xvdb"].info().engine
    info = await drives.swap(running.guest.domain, "xvdb", f"{two}")
    assert info.target == f"{two}" and info.engine is not None and before is not None
    assert info.engine.pid != before.pid and not Path(f"/proc/{before.pid}").exists()
    assert contents(one, "qcow2")[:512] == b"x" * 512
    assert await in_thread(lambda: ring.read(0, 1)) == bytes(512)
    await running.guest.destroy()
    assert not Path(f"/proc/{info.engine.pid}").exists()
