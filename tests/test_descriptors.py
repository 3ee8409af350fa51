"""Descriptors by name: what is taken and refused, and guests' disks on them over all lives."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.fakes.house import House
from tests.fakes.machine import FakeMachine
from tests.test_daemon import Hall
from xenpvd import check
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.vdev import devid
from xenpvd.config import DiskConfig, GuestConfig
from xenpvd.descriptors import DESCRIPTORS_MAX, Descriptors
from xenpvd.errors import Busy, Exists, ImageError, LimitReached, NotFound
from xenpvd.views import DescriptorInfo, Runstate


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = fds()
    yield
    assert fds() == before


@pytest.fixture
def held(nothing_leaks: None) -> Iterator[Descriptors]:
    held = Descriptors()
    yield held
    held.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "b.img"
    path.write_bytes(bytes(1 << 20))
    return path


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def lock_is_free(path: Path) -> bool:
    try:
        Image.open(path, readonly=False).close()
    except ImageError:
        return False
    return True


async def test_what_is_told_of_one(held: Descriptors, path: Path) -> None:
    added = await held.add("root", os.open(path, os.O_RDWR))
    root = DescriptorInfo("root", "file", "rw", 1 << 20, path=str(path))
    assert (added.descriptor, added.changed) == (root, True)
    held.inherit("mem", memory())
    assert await held.listing() == [
        added.descriptor,
        DescriptorInfo("mem", "file", "rw", 4096, path="/memfd:disk (deleted)"),
    ]


async def test_where_one_lies_now(held: Descriptors, path: Path) -> None:
    await held.add("root", os.open(path, os.O_RDWR))
    moved = path.rename(path.with_name(os.fsdecode(b"\xff.img")))
    (told,) = await held.listing()
    assert told.path == f"{path.parent}/\ufffd.img", "it goes into JSON"
    moved.unlink()
    (told,) = await held.listing()
    assert told.path == f"{path.parent}/\ufffd.img (deleted)"


async def test_without_proc_its_path_is_not_told(held: Descriptors, monkeypatch: pytest.MonkeyPatch) -> None:
    held.inherit("mem", memory())

    def none(path: Path) -> NoReturn:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "readlink", none)
    assert (await held.listing())[0].path is None


async def test_storage_that_hangs_holds_up_nothing_but_the_list(
    held: Descriptors, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await held.add("root", os.open(path, os.O_RDWR))
    back, stat = threading.Event(), os.fstat

    def hanging(fd: int) -> os.stat_result:
        back.wait(50)
        return stat(fd)

    monkeypatch.setattr("xenpvd.descriptors.os.fstat", hanging)
    listing = asyncio.ensure_future(held.listing())  # noqa: TID251
    await asyncio.sleep(0)
    assert not listing.done() and held.has("root")
    held.remove("root")
    back.set()
    assert [info.name for info in await listing] == ["root"]
    assert await held.listing() == []


async def test_the_same_file_again_changes_nothing(held: Descriptors, path: Path) -> None:
    for changed in (True, False):
        assert (await held.add("root", os.open(path, os.O_RDWR))).changed is changed
    with pytest.raises(Exists, match="there is another one of that name"):
        await held.add("root", os.open(path, os.O_RDONLY))
    with pytest.raises(Exists, match="there is another one of that name"):
        await held.add("root", memory())
    with pytest.raises(Exists, match=r"here already, as root\. Use fd:root"):
        await held.add("data", os.open(path, os.O_RDWR))


async def test_no_disk(held: Descriptors, path: Path) -> None:
    with pytest.raises(ImageError, match="cannot use image fd:root: it is a directory"):
        await held.add("root", os.open(path.parent, os.O_RDONLY))
    with pytest.raises(ImageError, match="the daemon has no descriptor root"):
        held.image("fd:root", readonly=True)
    with pytest.raises(NotFound, match="there is none of that name"):
        held.remove("root")


async def test_the_limit(held: Descriptors) -> None:
    for number in range(DESCRIPTORS_MAX):
        await held.add(f"d{number}", memory())
    with pytest.raises(LimitReached, match="64 are here"):
        await held.add("more", memory())
    held.remove("d7")
    await held.add("more", memory())


def test_two_of_one_name_at_the_start(held: Descriptors, path: Path) -> None:
    held.inherit("root", os.open(path, os.O_RDWR))
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(Exists, match="there are two of that name"):
        held.inherit("root", fd)
    with pytest.raises(ImageError, match="a FIFO"):
        held.inherit("pipe", pipe())


async def test_closed_under_an_image(held: Descriptors, path: Path) -> None:
    await held.add("root", os.open(path, os.O_RDWR))
    image = held.image("fd:root", readonly=False)
    held.close()
    image.read([memoryview(bytearray(512))], 0)
    assert not lock_is_free(path)
    image.close()
    assert lock_is_free(path)


def memory() -> int:
    fd = os.memfd_create("disk")
    os.ftruncate(fd, 4096)
    return fd


def pipe() -> int:
    ours, theirs = os.pipe()
    os.close(theirs)
    return ours


# ---- disks


@pytest.fixture
def on_descriptor(definition: GuestConfig) -> GuestConfig:
    disk = DiskConfig(vdev="xvda", target="fd:root")
    return definition.model_copy(update={"disk": (disk,)})


async def test_lives_of_a_guest_on_one(
    house: House, machines: list[FakeMachine], on_descriptor: GuestConfig, path: Path
) -> None:
    guest = house.guest
    with pytest.raises(ImageError, match="the daemon has no descriptor root"):
        await guest.start(on_descriptor)
    await guest.descriptors.add("root", os.open(path, os.O_RDWR))
    path.unlink()  # it is the file, wherever it lies
    await guest.start(on_descriptor)
    assert guest.domain is not None
    (drive,) = (each.info() for each in guest.domain.drives.values())
    assert (drive.target, drive.size, drive.access) == ("fd:root", 1 << 20, "rw")
    await guest.reset()
    machines[-1].end("reboot")
    await house.until(Runstate.STARTING)
    await house.until(Runstate.RUNNING)
    await guest.destroy()
    await guest.start(on_descriptor)  # opened anew
    assert len(machines) == 4
    async with asyncio.timeout(5):
        await machines[-1].guest_disk(guest.xenstore.client, devid("xvda")).connect()


async def test_hot_added_by_name(running: House, machines: list[FakeMachine], path: Path) -> None:
    guest = running.guest
    domain = guest.running("add")
    drives = guest.drives
    disk = DiskConfig(vdev="xvdb", target="fd:data")
    await guest.descriptors.add("data", os.open(path, os.O_RDWR))
    await drives.add(domain, disk, False, 5)
    assert drives.on("fd:data") == ("xvdb",) and not lock_is_free(path)
    assert not (await drives.add(domain, disk, False, 5)).changed
    with pytest.raises(ImageError, match="another disk uses it"):
        await drives.add(domain, disk.model_copy(update={"vdev": "xvdc"}), False, 5)
    with pytest.raises(ImageError, match="another program or guest uses it"):
        await drives.add(domain, DiskConfig(vdev="xvdc", target=str(path)), False, 5)
    assert (await drives.swap(domain, "xvdb", "fd:data")).target == "fd:data"
    await drives.remove(domain, "xvdb", force=True, missing_ok=False, timeout=5)
    assert lock_is_free(path) and drives.on("fd:data") == ()


async def test_a_swap_to_one_and_back(running: House, machines: list[FakeMachine], path: Path) -> None:
    guest = running.guest
    domain = guest.running("swap")
    await guest.descriptors.add("copy", os.open(path, os.O_RDWR))
    assert (await guest.drives.swap(domain, "xvda", "fd:copy")).target == "fd:copy"
    old = path.with_name("a.img")
    assert lock_is_free(old) and not lock_is_free(path)
    assert (await guest.drives.swap(domain, "xvda", str(old))).target == str(old)
    assert lock_is_free(path)


async def test_a_check_looks_and_locks_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, machines: list[FakeMachine], on_descriptor: GuestConfig,
    path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(check, "probe", lambda accel, image=None: None)

    def found() -> list[str]:
        all_ = check.problems(on_descriptor, house.guest.descriptors)
        return [why for where, why in all_ if where == "disk.0.target"]

    assert "disk.0.target" not in dict(check.problems(on_descriptor)), "only the daemon can tell"
    assert "the daemon has no descriptor root" in found()[0]
    await house.guest.descriptors.add("root", os.open(path, os.O_RDWR))
    assert found() == [] and lock_is_free(path)
    await house.guest.start(on_descriptor)
    assert found() == [] and not lock_is_free(path)


async def test_over_the_socket(
    tmp_path: Path, definition: GuestConfig, machines: list[FakeMachine], path: Path
) -> None:
    hall = Hall(tmp_path / "run", definition)
    peer = await hall.peer()
    sock = socket.socket(fileno=os.dup(peer.writer.get_extra_info("socket").fileno()))
    fd = os.open(path, os.O_RDWR)

    async def add(name: str) -> Any:
        message = {"jsonrpc": "2.0", "id": 1, "method": "fd.add", "params": {"name": name}}
        socket.send_fds(sock, [json.dumps(message).encode()], [fd])
        return await peer.receive()

    assert (await add("data"))["result"]["changed"]
    os.close(fd)
    drive = {"vdev": "xvdb", "target": "fd:data", "wait": False}
    assert (await peer.result("drive.add", **drive))["drive"]["target"] == "fd:data"
    assert (await peer.result("fd.list"))[0]["drives"] == ["xvdb"]
    assert [one["target"] for one in await peer.result("drive.list")][1:] == ["fd:data"]
    busy = await peer.fault("fd.remove", name="data", missing_ok=True)
    assert busy["data"] == {"reason": "BUSY", "by": "xvdb"}
    fd = os.open(tmp_path, os.O_RDONLY)
    assert (await add("folder"))["error"]["data"] == {"reason": "IMAGE", "path": "fd:folder"}
    os.close(fd)
    assert await peer.result("drive.remove", vdev="xvdb", force=True) == {"removed": True}
    assert await peer.result("fd.remove", name="data") == {"removed": True}
    assert (await peer.fault("drive.add", **drive))["data"] == {"reason": "IMAGE", "path": "fd:data"}
    sock.close()
    await peer.close()
    hall.daemon.quit("destroy")
    hall.daemon._at_once.set()
    await hall.ended


async def test_none_goes_while_an_image_is_on_it_or_comes_to_be(
    held: Descriptors, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same file could come again by another name, and be written by two disks."""
    await held.add("root", os.open(path, os.O_RDWR))
    image = held.image("fd:root", readonly=False)
    with pytest.raises(Busy, match="cannot remove descriptor root"):
        held.remove("root")
    image.close()

    def amid(*args: object, **kwargs: object) -> NoReturn:
        with pytest.raises(Busy):
            held.remove("root")
        os.close(args[0])  # type: ignore[arg-type]
        raise ImageError("seen", "fd:root")

    monkeypatch.setattr(Image, "shared", amid)
    with pytest.raises(ImageError, match="seen"):
        held.image("fd:root", readonly=False)
    held.remove("root")


async def test_a_file_that_has_grown_is_told_so(held: Descriptors, path: Path) -> None:
    await held.add("root", os.open(path, os.O_RDWR))
    os.truncate(path, 2 << 20)
    assert (await held.listing())[0].size == 2 << 20
