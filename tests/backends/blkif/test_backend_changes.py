"""A disk's rings, what its definition says of it, and what is changed while its guest goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.blkfront import Blkfront, BlkRing, pack_request
from tests.fakes.disks import SIZE, Rig
from tests.fakes.fds import open_fds
from xenpvd.abi.io_blkif import BLKIF_OP_READ
from xenpvd.abi.io_ring import REQ_PROD
from xenpvd.abi.io_xenbus import XenbusState as S
from xenpvd.backends import device
from xenpvd.backends.blkif.image import Image
from xenpvd.errors import BadConfig, ImageError
from xenpvd.tasks import in_thread
from xenpvd.views import NO_LIMITS, DriveLimits


@pytest.mark.parametrize(("queues", "order"), [(1, 0), (1, 4), (4, 0), (3, 2)])
async def test_many_rings_of_many_pages(rig: Rig, queues: int, order: int) -> None:
    backend, front = rig.disk()
    await front.connect(queues=queues, order=order)
    for n, ring in enumerate(front.rings):
        ring.write(8 * n, bytes([n + 1]) * 4096)
    info = backend.info()
    assert (info.rings, info.ring_pages, info.grants) == (queues, 1 << order, queues << order)
    assert sum(rig.gnttab.mapped.values()) == info.grants
    for n in range(queues):
        assert front.rings[n - 1].read(8 * n, 8) == bytes([n + 1]) * 4096
    assert backend.info().stats["writes"] == backend.info().stats["reads"] == queues


async def test_a_ring_that_breaks_ends_the_device_with_all_of_them(rig: Rig) -> None:
    backend, front = rig.disk()
    await front.connect(queues=2)
    front.rings[1].page.store32(REQ_PROD, 1000)
    front.rings[1].kick()
    await front.wait_backend(S.Closing)
    assert "req_prod" in str(backend.info().error)
    assert not rig.gnttab.mapped


async def test_one_ring_of_several_cannot_be_opened(rig: Rig) -> None:
    backend, front = rig.disk()
    front.offer(**{"queues": 2, "queue-1/event-channel": 4096})
    await front.wait_backend(S.Closing)
    assert "event-channel 4096" in str(backend.info().error)


async def test_pages_that_are_in_the_rings_twice(rig: Rig) -> None:  # A15
    backend, front = rig.disk()
    gref = BlkRing(rig.gnttab).gref
    front.offer(**{"queues": 2, "queue-0/ring-ref": gref, "queue-1/ring-ref": gref})
    await front.wait_backend(S.Closing)
    assert backend.info().error == "a page is in the rings twice"


# ---- while the guest goes on


def sectors(rig: Rig, front: Blkfront) -> int:
    return int(rig.nodes(front.backend)["sectors"])


async def test_resize(rig: Rig) -> None:
    backend, front = rig.disk()
    ring = await front.connect()
    looks = rig.client.watch(f"{front.backend}/state")
    await anext(looks)
    await backend.resize(2 * SIZE)
    assert await asyncio.wait_for(anext(looks), 5) == f"{front.backend}/state", "Linux looks again then"
    looks.close()
    assert (
        sectors(rig, front) * 512
        == backend.info().size
        == Path(backend.image.path).stat().st_size
        == 2 * SIZE
    )
    ring.write(SIZE // 512, bytes([7]) * 4096)
    assert ring.read(SIZE // 512, 8) == bytes([7]) * 4096

    with pytest.raises(BadConfig, match=f"it has {2 * SIZE}, and what is beyond would be lost"):
        await backend.resize(SIZE)
    await backend.resize(SIZE, shrink=True)
    _, gref = ring.data_page()
    beyond = pack_request(BLKIF_OP_READ, sector=SIZE // 512, segments=[(gref, 0, 7)])
    assert ring.do(beyond)[0][2] == -1
    assert [event["size"] for event in rig.named("drive.resized")] == [2 * SIZE, SIZE]

    os.truncate(backend.image.path, 4 * SIZE)  # by somebody else
    await backend.resize(None)
    assert sectors(rig, front) * 512 == 4 * SIZE


@pytest.mark.parametrize("size", [SIZE + 1, SIZE + 512, 0])
async def test_a_size_that_cannot_be_changes_nothing(rig: Rig, size: int) -> None:
    backend, front = rig.disk()
    ring = await front.connect()
    with pytest.raises(ImageError, match="no multiple of 4096"):
        await backend.resize(size)
    assert sectors(rig, front) * 512 == SIZE
    ring.read(SIZE // 512 - 8, 8)
    assert rig.named("drive.resized") == []


async def test_a_shrink_is_not_told_before_it_can_be(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, front = rig.disk()
    ring = await front.connect()
    offers = []
    monkeypatch.setattr(backend, "_hold_to", offers.append)
    with pytest.raises(ImageError, match="no multiple of 4096"):
        await backend.resize(512)
    assert offers == [], "the guest would have got errors meanwhile"
    monkeypatch.undo()

    def fail(fd: int, size: int) -> None:
        assert backend.info().size == SIZE and sectors(rig, front) * 512 == SIZE
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(ImageError, match="bad disk"):
        await backend.resize(SIZE // 2, shrink=True)
    ring.read(SIZE // 512 - 8, 8)
    assert rig.named("drive.resized") == []


async def test_an_empty_cdrom_has_no_size(rig: Rig) -> None:
    backend, _ = rig.disk(image=Image.none(), device="cdrom")
    with pytest.raises(ImageError, match="there is no image in it"):
        await backend.resize(None)


async def test_a_read_only_disk_has_the_size_that_it_has(rig: Rig) -> None:
    backend, front = rig.disk(access="ro")
    with pytest.raises(ImageError, match="it is read-only"):
        await backend.resize(2 * SIZE)
    await backend.resize(None)
    assert sectors(rig, front) * 512 == SIZE


async def test_a_block_device_is_resized_on_the_host(rig: Rig) -> None:
    backend, front = rig.disk()
    backend.image.is_block = True
    for size in (SIZE // 2, 2 * SIZE):
        with pytest.raises(
            ImageError, match=r"it is a block device\. Resize it on the host, and give no size"
        ):
            await backend.resize(size, shrink=True)
    assert Path(backend.image.path).stat().st_size == SIZE == backend.info().size
    os.truncate(backend.image.path, 2 * SIZE)
    await backend.resize(None)
    assert sectors(rig, front) * 512 == 2 * SIZE


@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device needs root")
async def test_a_block_device_that_has_grown(rig: Rig) -> None:
    path = rig.tmp_path / "host.img"
    path.write_bytes(b"block".ljust(SIZE, b"\0"))
    made = losetup("--find", "--show", path)
    if made.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        backend, front = rig.disk(image=Image.open(device, readonly=False))
        ring = await front.connect()
        os.truncate(path, 2 * SIZE)
        assert losetup("--set-capacity", device).returncode == 0
        await backend.resize(None)
        assert sectors(rig, front) * 512 == 2 * SIZE
        await in_thread(lambda: ring.write(SIZE // 512, b"grown".ljust(512)))
        assert await in_thread(ring.flush) == 0
        await backend.disconnect()
        backend.image.close()
    finally:
        losetup("--detach", device)
    with path.open("rb") as file:
        file.seek(SIZE)
        assert file.read(5) == b"grown"


def losetup(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["losetup", *map(str, words)], capture_output=True, text=True)


async def test_swap_while_the_guest_writes(rig: Rig) -> None:
    """Every write is in one of the images, whole, and none is lost."""
    backend, front = rig.disk()
    await front.connect(queues=2)
    old, other = backend.image, rig.image("other")

    async def write(ring: BlkRing, first: int) -> None:
        for n in range(first, 128, 2):
            await in_thread(partial(ring.write, 8 * n, bytes([n]) * 4096))

    writers = asyncio.gather(*(write(ring, n) for n, ring in enumerate(front.rings)))
    await backend.swap(other)
    await writers
    old.close()
    before, after = (Path(image.path).read_bytes() for image in (old, other))
    for n in range(128):
        block = slice(4096 * n, 4096 * (n + 1))
        assert bytes([n]) * 4096 in (before[block], after[block])
    assert front.rings[1].read(8 * 127, 8) == after[127 * 4096 : 128 * 4096]
    stats = backend.info().stats
    assert stats["writes"] == 128 and stats["in_flight"] == 0
    assert backend.info().target == other.path


async def test_swap_of_a_disk_that_nobody_uses_yet(rig: Rig) -> None:
    backend, front = rig.disk()
    other = rig.image("other")
    backend.image.close()
    await backend.swap(other)
    ring = await front.connect()
    assert ring.read(0, 8) == Path(other.path).read_bytes()[:4096]


@pytest.mark.parametrize("limits", [NO_LIMITS, DriveLimits(ops_per_second=10_000)], ids=["native", "python"])
async def test_a_plane_left_behind_writes_to_no_other_image(rig: Rig, limits: DriveLimits) -> None:
    """As one whose storage hung while its guest ended, and which gets on when another image is open."""
    backend, front = rig.disk()
    await backend.set_limits(limits)
    ring = await front.connect()
    ring.read(0, 8)  # it has opened all that it wants to
    number = backend.image.fd
    backend.image.close()
    other = rig.image("other")
    assert other.fd == number
    before = Path(other.path).read_bytes()
    ring.write(8, bytes([7]) * 4096)
    assert ring.flush() == 0
    assert Path(other.path).read_bytes() == before
    assert (rig.tmp_path / "xvda.img").read_bytes()[4096:8192] == bytes([7]) * 4096
    other.close()


async def test_overlapping_changes_of_many_rings_all_come_to_their_end(rig: Rig) -> None:
    backend, front = rig.disk()
    await front.connect(queues=4)
    old, other = backend.image, rig.image("other")
    changes = [backend.set_limits(DriveLimits(ops_per_second=n)) for n in (10_000, 20_000)]
    changes += [backend.swap(other), backend.set_limits(NO_LIMITS), backend.set_limits(NO_LIMITS)]
    await asyncio.wait_for(asyncio.gather(*changes), 5)
    old.close()
    for ring in front.rings:
        assert ring.read(0, 8) == Path(other.path).read_bytes()[:4096]
    assert str(backend.info().plane).startswith("native, ")
    assert [each["ops_per_second"] for each in rig.named("drive.limited")][-1] == 0
    assert rig.named("drive.changed") == [{"vdev": "xvda", "target": other.path, "size": SIZE}]


async def test_a_change_whose_caller_leaves_is_done_all_the_same(rig: Rig) -> None:
    backend, front = rig.disk()
    ring = await front.connect()
    changing = asyncio.gather(backend.set_limits(DriveLimits(ops_per_second=10_000)))
    await asyncio.sleep(0)
    changing.cancel()
    assert await in_thread(partial(ring.read, 0, 8))
    with pytest.raises(asyncio.CancelledError):
        await changing


@pytest.mark.parametrize("when", ["connect", "renew"])
@pytest.mark.parametrize("call", ["dup", "eventfd"])
async def test_what_the_host_has_no_more_of_ends_the_device(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, when: str, call: str
) -> None:
    """The Nth descriptor that its rings want is one too many, for every N."""
    monkeypatch.setattr(device, "BURST", 1000)
    backend, front = rig.disk()
    real, calls, nth = getattr(os, call), 0, 0

    def short(*args: int) -> int:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(errno.EMFILE, "Too many open files")
        return int(real(*args))

    for nth in range(1, 10):
        await front.wait_backend(S.InitWait)
        await backend.set_limits(NO_LIMITS)
        fds, calls = len(open_fds()), 0
        if when == "renew":
            await front.connect(queues=2)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, short)
            if when == "renew":
                await backend.set_limits(DriveLimits(ops_per_second=10_000))
            else:
                front.offer(queues=2)
                await front.wait_backend(S.Closing, S.Connected)
            if calls >= nth:
                await front.wait_backend(S.Closing)
        if calls < nth:
            break
        assert "the host has not enough for it" in str(backend.info().error)
        assert "Too many open files" in str(backend.info().error)
        assert not rig.gnttab.mapped and len(open_fds()) == fds
        front.switch(S.Closed)
        await front.wait_backend(S.Closed)
        front.switch(S.Initialising)
    assert nth > 2, "one for each ring at least"


async def test_the_guest_lets_go_during_a_swap(rig: Rig) -> None:
    backend, front = rig.disk()
    await front.connect()
    old, other = backend.image, rig.image("other")
    front.switch(S.Closed)
    await asyncio.gather(backend.swap(other), front.wait_backend(S.Closed))
    old.close()
    assert not rig.gnttab.mapped
    front.switch(S.Initialising)
    assert (await front.connect()).flush() == 0


async def test_flush(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = rig.disk()
    await backend.flush()

    def fail() -> None:
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(backend.image, "_fdatasync", fail)
    with pytest.raises(ImageError, match=r"cannot flush .*xvda.img: bad disk"):
        await backend.flush()


# ---- what a definition says of it


async def test_sectors_of_4096_bytes(rig: Rig) -> None:
    backend, front = rig.disk(sector_size=4096)
    nodes = rig.nodes(front.backend)
    assert (nodes["sector-size"], nodes["physical-sector-size"], nodes["sectors"]) == ("4096", "4096", "2048")
    assert backend.info().sector_size == 4096
    ring = await front.connect()
    ring.write(8, bytes([7]) * 4096)
    assert ring.read(8, 8) == bytes([7]) * 4096
    _, gref = ring.data_page()
    half = pack_request(BLKIF_OP_READ, sector=4, segments=[(gref, 0, 7)])
    assert ring.do(half)[0][2] == -1


async def test_half_a_sector_is_none(rig: Rig) -> None:
    (rig.tmp_path / "xvdc.img").write_bytes(bytes(512 * 9))
    image = rig.image("xvdc")
    with pytest.raises(BadConfig, match="no multiple of its sector_size, 4096"):
        rig.disk("xvdc", image=image, sector_size=4096)
    image.close()


async def test_discard_is_not_offered_to_whom_it_is_denied(rig: Rig) -> None:
    backend, front = rig.disk(discard=False)
    assert "feature-discard" not in rig.nodes(front.backend)
    assert backend.info().features == () and backend.info().grants == 0
    ring = await front.connect()
    assert backend.info().features == ("flush-cache", "indirect-segments")
    assert ring.discard(0, 8) == -2


async def test_persistent_grants_are_offered_on_request(rig: Rig) -> None:
    """Mapping costs us nothing, so nothing is kept: the guest may use the same pages for ever, or not."""
    backend, front = rig.disk(persistent=True)
    assert rig.nodes(front.backend)["feature-persistent"] == "1"
    front.write("feature-persistent", 1)
    ring = await front.connect()
    assert backend.info().features == ("flush-cache", "indirect-segments", "discard", "persistent")
    other, its_front = rig.disk("xvdb")
    its_front.write("feature-persistent", 1)  # which was not offered there
    await its_front.connect()
    assert "persistent" not in other.info().features
    page, gref = ring.data_page()
    for sector in (0, 8, 16):
        assert ring.do(pack_request(BLKIF_OP_READ, sector=sector, segments=[(gref, 0, 7)]))[0][2] == 0
        assert bytes(page.view) == Path(rig.disks[0].image.path).read_bytes()[sector * 512 :][:4096]
        assert rig.gnttab.mapped[gref] == 0


async def test_a_cdrom_is_empty_then_full_then_empty(rig: Rig) -> None:
    backend, front = rig.disk(image=Image.none(), device="cdrom")
    nodes = rig.nodes(front.backend)
    assert (nodes["device-type"], nodes["mode"], nodes["removable"], nodes["info"]) == (
        "cdrom",
        "r",
        "1",
        "7",
    )
    assert nodes["sectors"] == "0" and "feature-discard" not in nodes and "physical-sector-size" not in nodes
    assert rig.nodes(front.path)["device-type"] == "cdrom"
    ring = await front.connect()
    _, gref = ring.data_page()
    first = pack_request(BLKIF_OP_READ, segments=[(gref, 0, 0)])
    assert ring.do(first)[0][2] == -1 and ring.flush() == 0

    (rig.tmp_path / "disc.img").write_bytes(b"disc".ljust(2048 * 3, b"\0"))
    disc = rig.image("disc", "ro")
    await backend.swap(disc)
    assert sectors(rig, front) == 12 and ring.read(0, 1)[:4] == b"disc"
    await backend.swap(Image.none())
    disc.close()
    assert sectors(rig, front) == 0 and ring.do(first)[0][2] == -1


async def test_an_image_of_another_shape_cannot_be_put_behind_a_disk(rig: Rig) -> None:
    backend, _ = rig.disk()
    (rig.tmp_path / "odd.img").write_bytes(bytes(512 * 9))
    odd = rig.image("odd")
    with pytest.raises(BadConfig, match="no multiple of 4096"):
        backend.check_fits(odd)
    odd.close()


async def test_another_image_past_the_page_cache_must_have_its_blocks(rig: Rig) -> None:
    backend, _ = rig.disk(image=rig.image("xvda", cache="none"), cache="none")
    assert backend.info().cache == "none"
    other = rig.image("other", cache="none")
    backend.check_fits(other)
    other.alignment = 4096
    with pytest.raises(BadConfig, match="has blocks of 4096 bytes"):
        backend.check_fits(other)
    other.close()


async def test_a_disc_must_have_whole_sectors_of_its_drive(rig: Rig) -> None:
    backend, _ = rig.disk(image=Image.none(), device="cdrom", sector_size=4096)
    (rig.tmp_path / "disc.img").write_bytes(bytes(2048 * 3))
    disc = rig.image("disc", "ro")
    with pytest.raises(BadConfig, match="no multiple of 4096"):
        backend.check_fits(disc)
    disc.close()


@pytest.mark.usefixtures("no_native_plane")
async def test_where_there_is_no_native_plane_the_other_one_serves(rig: Rig) -> None:
    backend, front = rig.disk()
    ring = await front.connect()
    assert backend.info().plane == "python: it is not built"
    ring.write(0, bytes([7]) * 4096)
    assert ring.read(0, 8) == bytes([7]) * 4096


async def test_limits_change_the_plane_under_a_guest_that_goes_on(rig: Rig) -> None:
    backend, front = rig.disk()
    ring = await front.connect(queues=2)
    assert str(backend.info().plane).startswith("native, ")
    for limits, plane in (
        (DriveLimits(ops_per_second=1000), "python: the disk has limits"),
        (NO_LIMITS, "native"),
    ):
        ring.write(0, bytes([7]) * 4096)
        await backend.set_limits(limits)
        assert str(backend.info().plane).startswith(plane) and backend.info().limits == limits
        assert ring.read(0, 8) == bytes([7]) * 4096
    assert backend.info().stats["reads"] == 2, "nothing is forgotten"
