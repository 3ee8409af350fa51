"""A guest's disks under many hands at once: limits, races, storage that hangs, and nothing left of any."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.blkfront import pack_request
from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from tests.test_drives_lives import Hanging, connect, lock_is_free, offered
from xenpvd.abi.io_blkif import BLKIF_OP_WRITE
from xenpvd.abi.io_xenbus import XenbusState
from xenpvd.backends import device
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.vdev import devid
from xenpvd.config import MAX_DISKS, DiskConfig, GuestConfig, LimitsConfig
from xenpvd.domain import Domain
from xenpvd.drives import Drives
from xenpvd.errors import BadConfig, Busy, Exists, StateError, TimedOut, XenpvdError
from xenpvd.tasks import Tasks, in_thread
from xenpvd.views import NO_LIMITS, Runstate

SIZE = 1 << 20
VBDS = ("/local/domain/1/device/vbd", "/local/domain/0/backend/vbd/1")


@pytest.fixture(autouse=True)
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest has no xenbus here: nobody waits for it to notice that a device is gone."""
    monkeypatch.setattr(device, "FORGET_TIMEOUT", 0)


@pytest.fixture
async def house(house: House) -> AsyncIterator[House]:
    yield house
    await house.guest.destroy()
    assert not house.guest.drives.images and not house.guest.drives._given_up


def image(tmp_path: Path, name: str = "b.img") -> Path:
    path = tmp_path / name
    path.write_bytes(name.encode().ljust(SIZE, b"\0"))
    return path


def devids(house: House) -> list[set[str]]:
    """Of both ends' nodes."""
    return [
        {node.path.removeprefix(f"{path}/") for node in house.guest.xenstore.tree(path, 1)} - {path}
        for path in VBDS
    ]


def parts(house: House) -> tuple[Drives, Domain]:
    return house.guest.drives, house.guest.running("look")


# ---- adding


async def test_more_disks_than_a_guest_may_have(running: House, tmp_path: Path) -> None:
    """L7: each that is refused leaves no node, no event and no lock."""
    drives, domain = parts(running)
    shared = image(tmp_path)
    disks = [DiskConfig(vdev=f"d{n}", target=f"{shared}", access="ro") for n in range(1, 201)]
    done = await asyncio.gather(
        *(drives.add(domain, disk, False, 60) for disk in disks), return_exceptions=True
    )
    refused = [fault for fault in done if isinstance(fault, BaseException)]
    assert len(refused) == 200 - (MAX_DISKS - 1)
    assert {(type(fault), f"the guest has {MAX_DISKS} disks" in str(fault)) for fault in refused} == {
        (BadConfig, True)
    }
    numbers = {f"{drive.devid}" for drive in domain.drives.values()}
    assert len(numbers) == MAX_DISKS and devids(running) == [numbers, numbers]
    assert len(running.told("drive.added")) == MAX_DISKS
    for drive in list(domain.drives):
        await drives.remove(domain, drive, force=True, missing_ok=False, timeout=5)
    assert devids(running) == [set(), set()] and lock_is_free(shared)


@pytest.mark.parametrize("vdev", ["xvdzzzzzz", "d1048576", "d0p256", "sdzz", "xvda0", "0", "0x20000000"])
async def test_a_name_that_no_disk_can_have_leaves_nothing(running: House, tmp_path: Path, vdev: str) -> None:
    """L7."""
    drives, domain = parts(running)
    with pytest.raises(BadConfig, match=f"cannot use {vdev} as a disk's name"):
        await drives.add(domain, DiskConfig(vdev=vdev, target=f"{image(tmp_path)}"), False, 5)
    assert devids(running) == [{"51712"}, {"51712"}] and lock_is_free(tmp_path / "b.img")


async def test_the_same_disk_once_more_by_another_name(running: House, tmp_path: Path) -> None:
    """L7."""
    drives, domain = parts(running)
    path = image(tmp_path)
    await drives.add(domain, DiskConfig(vdev="51728", target=f"{path}"), False, 5)
    for vdev in ("xvdb", "d1", "0xca10"):
        with pytest.raises(Exists, match=f"cannot add {vdev}: its number 51728 is 51728's"):
            await drives.add(domain, DiskConfig(vdev=vdev, target=f"{path}"), False, 5)
    assert devids(running) == [{"51712", "51728"}] * 2
    assert await drives.remove(domain, "xvdb", force=True, missing_ok=False, timeout=5)


async def test_a_disk_that_is_added_before_the_guest_looks_is_there_when_it_does(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    """L8."""
    drives, domain = parts(running)
    disk = DiskConfig(vdev="xvdb", target=f"{image(tmp_path)}")
    adding = asyncio.gather(drives.add(domain, disk, True, 30))
    await offered(running, "xvdb")
    assert not adding.done()
    assert devids(running)[0] == {"51712", "51728"}  # what Linux lists when its xenbus comes up
    for vdev in ("xvda", "xvdb"):
        ring = await connect(running, machines, vdev)
    (added,) = await adding
    assert added.changed and added.drive.frontend_state == "Connected"
    assert (await in_thread(lambda: ring.read(0, 1)))[:5] == b"b.img"


async def test_twenty_disks_are_twenty(running: House, machines: list[FakeMachine], tmp_path: Path) -> None:
    drives, domain = parts(running)
    names = [f"xvd{letter}" for letter in "bcdefghijklmnopqrstu"]
    for vdev in names:
        disk = DiskConfig(vdev=vdev, target=f"{image(tmp_path, f'{vdev}.img')}")
        await drives.add(domain, disk, False, 5)
    rings = [await connect(running, machines, vdev) for vdev in names]

    def work() -> None:
        for vdev, ring in zip(names, rings, strict=True):
            assert ring.read(0, 1)[:8] == f"{vdev}.img".encode()
            ring.write(8, vdev.encode().ljust(512))
            assert ring.flush() == 0

    await in_thread(work)
    for vdev in names:
        assert (tmp_path / f"{vdev}.img").read_bytes()[4096:4100] == vdev.encode()
    assert [drive.info().stats["writes"] for vdev, drive in domain.drives.items() if vdev in names] == [
        1
    ] * 20


async def test_a_thousand_comings_and_goings_leave_nothing(
    running: House, machines: list[FakeMachine], tmp_path: Path
) -> None:
    """Memory, descriptors, tasks, threads and the store are as they were when the bounded logs were full."""
    drives, domain = parts(running)
    disk = DiskConfig(vdev="xvdb", target=f"{image(tmp_path)}")
    front = machines[0].guest_disk(running.guest.xenstore.client, devid("xvdb"))

    async def once(n: int) -> None:
        adding = asyncio.gather(drives.add(domain, disk, True, 30))
        ring = await front.connect()
        assert all(await adding)
        if n % 8 == 0:
            await in_thread(lambda: ring.read(0, 8))
        removing = asyncio.gather(
            drives.remove(domain, "xvdb", force=n % 2 == 0, missing_ok=False, timeout=30)
        )
        if n % 2:
            await front.wait_backend(XenbusState.Closing)
            front.switch(XenbusState.Closed)
        assert all(await removing)
        front.gnttab.end_access(ring.gref)
        del front.evtchn.ports[front.ports[0]]

    def left() -> dict[str, int]:
        gc.collect()
        return {
            "fds": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            "tasks": len(asyncio.all_tasks()),
            "threads": sum(thread.name != "blocking call" for thread in threading.enumerate()),
            "nodes": sum(1 for _ in running.guest.xenstore.tree("/", 99)),
        }

    for n in range(650):
        await once(n)
    before, blocks = left(), sys.getallocatedblocks()
    for n in range(350):
        await once(n)
    assert left() == before
    assert sys.getallocatedblocks() - blocks < 350, "less than one for each"


class Chaos:
    """Clients that do anything with three disks and four images, a guest that takes them up or not, and lives
    that end: only ever with an answer that an operator could read."""

    DISKS = ("xvdb", "xvdc", "xvdd")

    def __init__(self, house: House, machines: list[FakeMachine], folder: Path, seed: int) -> None:
        self.house, self.machines, self.chance = house, machines, random.Random(seed)
        self.paths = [image(folder, f"{name}.img") for name in "bcde"]
        self.done: Counter[str] = Counter()

    async def client(self, rounds: int) -> None:
        for _ in range(rounds):
            verb = self.chance.choice((self.add, self.add, self.remove, self.swap, self.resize, self.limit))
            try:
                await verb(self.chance.choice(self.DISKS))
            except XenpvdError as fault:
                assert str(fault).endswith(".")
                self.done[type(fault).__name__] += 1
            else:
                self.done[verb.__name__] += 1
            await asyncio.sleep(0)

    async def add(self, vdev: str) -> None:
        guest, path = self.house.guest, self.chance.choice(self.paths)
        disk = DiskConfig(vdev=vdev, target=f"{path}")
        await guest.drives.add(guest.running("add"), disk, self.chance.random() < 0.7, 0.3)

    async def remove(self, vdev: str) -> None:
        guest, force = self.house.guest, self.chance.random() < 0.3
        await guest.drives.remove(guest.domain, vdev, force=force, missing_ok=False, timeout=0.3)

    async def swap(self, vdev: str) -> None:
        guest, path = self.house.guest, self.chance.choice(self.paths)
        await guest.drives.swap(guest.domain, vdev, f"{path}")

    async def resize(self, vdev: str) -> None:
        guest, size = self.house.guest, self.chance.choice((None, SIZE, 2 * SIZE))
        await guest.drives.resize(guest.domain, vdev, size, self.chance.random() < 0.5)

    async def limit(self, vdev: str) -> None:
        guest, limits = self.house.guest, LimitsConfig(ops_per_second=self.chance.choice((0, 1000)))
        await guest.drives.set_limits(guest.domain, vdev, limits)

    async def lives(self, count: int) -> None:
        """Every other one by a reboot: a second one in a row would be late (backoff)."""
        for n in range(count):
            await asyncio.sleep(self.chance.random() / 4)
            if n % 2 == 0:
                await self.house.guest.reset()
            else:
                self.machines[-1].end("reboot")
                await self.house.until(Runstate.STARTING)
                await self.house.until(Runstate.RUNNING)

    async def guest(self, vdev: str) -> None:
        """Its half of one disk, over all lives."""
        client = self.house.guest.xenstore.client
        front = self.machines[-1].guest_disk(client, devid(vdev))
        watch = client.watch(f"{front.backend}/state")
        try:
            async for _ in watch:
                machine = self.machines[-1]
                front.evtchn, front.gnttab = machine.evtchn, machine.grants
                match front.backend_state():
                    case XenbusState.InitWait if self.chance.random() < 0.8:
                        front.offer()
                    case XenbusState.InitWait | XenbusState.Connected:
                        front.switch(XenbusState.Connected)
                    case XenbusState.Closing if self.chance.random() < 0.8:
                        front.switch(XenbusState.Closed)
                    case XenbusState.Closed if self.chance.random() < 0.5:
                        front.switch(XenbusState.Initialising)
        finally:
            watch.close()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_clients_guest_and_lives_do_at_once_each_is_answered(
    running: House, machines: list[FakeMachine], tmp_path: Path, seed: int
) -> None:
    """N16: and what is there in the end is whole, the rest is gone."""
    chaos = Chaos(running, machines, tmp_path, seed)
    tasks = Tasks()
    guests = [tasks.spawn(chaos.guest(vdev), vdev) for vdev in chaos.DISKS]
    try:
        await asyncio.gather(*(chaos.client(40) for _ in range(6)), chaos.lives(4))
        assert not any(guest.done() for guest in guests)
    finally:
        await tasks.cancel()
    assert chaos.done.total() == 6 * 40 and chaos.done["add"] > 1, chaos.done
    assert running.guest.state is Runstate.RUNNING and running.told("guest.crash") == []
    drives, domain = parts(running)
    assert {vdev: drive.image for vdev, drive in domain.drives.items()} == {
        vdev: image for vdev, (_, image) in drives.images.items()
    }
    for vdev, (disk, opened) in drives.images.items():
        assert domain.drives[vdev].disk == disk and opened.path == disk.target and opened.is_at(disk.target)
        assert opened.size == Path(disk.target).stat().st_size
        told = running.guest.xenstore.client.read(f"{VBDS[1]}/{devid(vdev)}/sectors")
        assert int(told) * 512 == opened.size, "as the guest sees it"
    assert not drives._opening and domain._not_held.is_set()
    assert {path for path in chaos.paths if not lock_is_free(path)} == {
        Path(disk.target) for vdev, (disk, _) in drives.images.items() if vdev != "xvda"
    }
    for vdev in list(domain.drives):
        await drives.remove(domain, vdev, force=True, missing_ok=False, timeout=5)
    assert devids(running) == [set(), set()]


# ---- changes that meet


async def test_an_image_that_hangs_in_its_opening_holds_up_no_end(
    running: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drives, domain = parts(running)
    opening, go = threading.Event(), threading.Event()
    open_ = Image.open

    def hang(path: str, **options: Any) -> Image:
        opening.set()
        assert go.wait(30)
        return open_(path, **options)

    monkeypatch.setattr("xenpvd.drives.Image.open", hang)
    swapping = asyncio.gather(drives.swap(domain, "xvda", f"{image(tmp_path)}"))
    await in_thread(partial(opening.wait, 5))
    await asyncio.wait_for(running.guest.destroy(), 5)
    go.set()
    with pytest.raises(StateError, match="cannot change xvda: the guest has just ended"):
        await swapping
    assert lock_is_free(tmp_path / "a.img") and lock_is_free(tmp_path / "b.img")


async def test_two_that_give_up_the_same_image_are_both_waited_for(
    running: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that share it: the writer that comes next finds it locked by neither of them."""
    drives, domain = parts(running)
    path = image(tmp_path)
    first, second, third = gates = [threading.Event() for _ in range(3)]
    waiting, open_ = iter(gates), Image.open

    def hang(path: str, **options: Any) -> Image:
        opened = open_(path, **options)
        assert next(waiting).wait(30)
        return opened

    monkeypatch.setattr("xenpvd.drives.Image.open", hang)
    readers = [DiskConfig(vdev=vdev, target=f"{path}", access="ro") for vdev in ("xvdb", "xvdc")]
    given_up = await asyncio.gather(
        *(drives.add(domain, disk, False, 0.1) for disk in readers), return_exceptions=True
    )
    assert [type(fault) for fault in given_up] == [TimedOut, TimedOut]
    writing = asyncio.gather(drives.add(domain, DiskConfig(vdev="xvdd", target=f"{path}"), False, 30))
    third.set()
    first.set()
    done, _ = await asyncio.wait([writing], timeout=0.2)
    assert not done
    second.set()
    assert (await writing)[0].changed and not drives._given_up


async def test_limits_of_a_disk_that_hangs_hold_up_no_end(
    house: House, machines: list[FakeMachine], definition: GuestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload takes them away, for which other planes have to be made: later, or never."""
    monkeypatch.setattr("xenpvd.guest.LIMITS_TIME", 0.05)
    monkeypatch.setattr(device, "CUT_OFF_TIMEOUT", 0.1)
    monkeypatch.setattr("xenpvd.drives.Image", Hanging)
    Hanging.go.clear()
    limited = definition.disk[0].model_copy(update={"limits": LimitsConfig(ops_per_second=1000)})
    before = definition.model_copy(update={"disk": (limited,)})
    await house.guest.start(before)
    ring = await connect(house, machines, "xvda")
    ring.submit(pack_request(BLKIF_OP_WRITE, segments=[(ring.data_page()[1], 0, 7)]))
    changes = await asyncio.wait_for(house.guest.redefine(before, definition), 5)
    assert changes.applied == ("disk.0.limits",)
    drives, domain = parts(house)
    assert domain.drives["xvda"].info().limits is NO_LIMITS and drives.images["xvda"][0] == definition.disk[0]
    await asyncio.wait_for(house.guest.destroy(), 5)
    Hanging.go.set()


@pytest.mark.parametrize(
    ("options", "target", "why"),
    [
        ({"format": "qcow2"}, "nbd://host/e", "format: what an NBD server has is raw"),
        ({"format": "vmdk"}, "fd:data", "format: a descriptor is of a raw image"),
        ({"cache": "writethrough"}, "nbd://host/e", "cache: it is writeback for images of other formats"),
        ({"cache": "directsync"}, "fd:data", "cache: it is writeback or writethrough for fd:NAME"),
    ],
)
async def test_a_disk_gets_no_image_that_its_definition_could_not_name(
    running: House, tmp_path: Path, options: dict[str, Any], target: str, why: str
) -> None:
    """Else it would be served otherwise than it was asked for: a write ends before it is stored."""
    drives, domain = parts(running)
    drive = domain.drives["xvda"]
    before = drive.disk
    drive.disk = before.model_copy(update=options)
    with pytest.raises(BadConfig, match=f"cannot put {target} behind xvda: {why}.*add it as it shall be"):
        await drives.swap(domain, "xvda", target)
    assert drive.info().target == before.target
    drive.disk = before


async def test_a_size_that_was_right_when_it_was_asked_for_cuts_nothing_off(
    running: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two resize at once: the second one is larger than what the disk had, and smaller than what it gets."""
    drives, domain = parts(running)
    growing, go = threading.Event(), threading.Event()
    ftruncate = os.ftruncate

    def slowly(fd: int, size: int) -> None:
        growing.set()
        assert go.wait(30)
        ftruncate(fd, size)

    monkeypatch.setattr(os, "ftruncate", slowly)
    first = asyncio.gather(drives.resize(domain, "xvda", 4 * SIZE, False))
    await in_thread(partial(growing.wait, 5))
    second = asyncio.gather(drives.resize(domain, "xvda", 2 * SIZE, False))
    await asyncio.sleep(0)
    go.set()
    assert (await first)[0].size == 4 * SIZE
    with pytest.raises(BadConfig, match=f"it has {4 * SIZE}, and what is beyond would be lost"):
        await second
    assert (tmp_path / "a.img").stat().st_size == 4 * SIZE


async def test_what_a_file_has_got_elsewhere_is_not_cut_off_either(running: House, tmp_path: Path) -> None:
    drives, domain = parts(running)
    os.truncate(tmp_path / "a.img", 4 * SIZE)
    with pytest.raises(BadConfig, match=f"it has {4 * SIZE}, and what is beyond would be lost"):
        await drives.resize(domain, "xvda", 2 * SIZE, False)
    assert (tmp_path / "a.img").stat().st_size == 4 * SIZE
    assert (await drives.resize(domain, "xvda", None, False)).size == 4 * SIZE
    assert (await drives.resize(domain, "xvda", 2 * SIZE, True)).size == 2 * SIZE


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_resize_that_a_life_s_end_overtakes_says_so(
    running: House, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """The next life goes on with the size that it was told: the new one, if that did not take too long."""
    monkeypatch.setattr("xenpvd.backends.blkif.backend.RESIZE_TIME", 0.05 if hangs else 30)
    drives, domain = parts(running)
    begun, go = threading.Event(), threading.Event()
    ftruncate = os.ftruncate

    def slowly(fd: int, size: int) -> None:
        begun.set()
        assert go.wait(30)
        ftruncate(fd, size)

    monkeypatch.setattr(os, "ftruncate", slowly)
    resizing = asyncio.gather(drives.resize(domain, "xvda", 2 * SIZE, False))
    await in_thread(partial(begun.wait, 5))
    ended = asyncio.gather(running.guest.reset())
    if hangs:
        await ended
    else:
        backend = domain.drives["xvda"]
        async with asyncio.timeout(5):
            while not backend._device.closed:  # noqa: ASYNC110
                await asyncio.sleep(0)
    go.set()
    with pytest.raises(StateError, match="cannot resize xvda: the guest has just ended"):
        await resizing
    await ended
    drives, domain = parts(running)
    told = running.guest.xenstore.client.read(f"{VBDS[1]}/51712/sectors")
    assert int(told) * 512 == domain.drives["xvda"].info().size == (1 if hangs else 2) * SIZE
    if hangs:
        assert running.told("drive.resized") == []
    assert (await drives.resize(domain, "xvda", None, False)).size == 2 * SIZE


@pytest.mark.parametrize("step", ["plan_resize", "resize"])
async def test_a_resize_that_a_swap_overtakes_says_so(
    running: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    drives, domain = parts(running)
    begun, go = threading.Event(), threading.Event()
    real = getattr(Image, step)

    def slowly(image: Image, *args: Any, **options: Any) -> Any:
        begun.set()
        assert go.wait(30)
        return real(image, *args, **options)

    monkeypatch.setattr(Image, step, slowly)
    resizing = asyncio.gather(drives.resize(domain, "xvda", 2 * SIZE, False))
    await in_thread(partial(begun.wait, 5))
    await drives.swap(domain, "xvda", f"{image(tmp_path)}")
    go.set()
    with pytest.raises(Busy, match="cannot resize xvda: it is just getting another image"):
        await resizing
    info = domain.drives["xvda"].info()
    assert (info.target, info.size) == (f"{tmp_path / 'b.img'}", SIZE)
    assert (tmp_path / "b.img").stat().st_size == SIZE
