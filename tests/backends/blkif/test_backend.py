"""A disk from its nodes to its end: the real store, a frontend, a ring, a file."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.blkfront import Blkfront, BlkRing, pack_request
from tests.fakes.evtchn import FakeEvtchnOps
from tests.fakes.gnttab import FakeGnttab
from tests.fakes.page import FakePage
from xenpvd.abi.io_blkif import BLKIF_OP_READ, BLKIF_OP_WRITE, X86_32, X86_64, Abi
from xenpvd.abi.io_ring import REQ_PROD
from xenpvd.abi.io_xenbus import XenbusState as S
from xenpvd.backends import device
from xenpvd.backends.blkif import backend as backend_module
from xenpvd.backends.blkif.backend import BlockBackend
from xenpvd.backends.blkif.image import Image
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.config import DiskConfig
from xenpvd.errors import BadConfig, ImageError, TimedOut, Unsupported, XenpvdError
from xenpvd.tasks import Tasks, in_thread
from xenpvd.views import NO_LIMITS, DriveLimits

SIZE = 1 << 20


class Rig:
    """A guest's disks: ``disk(vdev)`` makes one, with its frontend."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.store = Xenstore(self.publish)
        self.client = self.store.client
        self.client.mkdir("/local/domain/1/device")
        self.client.set_perms("/local/domain/1/device", ["n0", "r1"])
        self.evtchn = FakeEvtchnOps()
        self.gnttab = FakeGnttab()
        self.faults: list[BaseException] = []
        self.disks: list[BlockBackend] = []
        self._tasks = Tasks(on_fault=lambda name, fault: None)

    def publish(self, name: str, /, **data: Any) -> None:
        self.events.append((name, data))

    def named(self, name: str) -> list[dict[str, Any]]:
        return [data for event, data in self.events if event == name]

    def spawn(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.spawn(coro, "test")

    def image(self, vdev: str, access: str = "rw", cls: type[Image] = Image) -> Image:
        path = self.tmp_path / f"{vdev}.img"
        if not path.exists():
            path.write_bytes(random.Random(vdev).randbytes(SIZE))
        return cls.open(path, readonly=access == "ro")

    def disk(
        self,
        vdev: str = "xvda",
        access: Any = "rw",
        image: Image | None = None,
        abi: Abi = X86_64,
        **options: Any,
    ) -> tuple[BlockBackend, Blkfront]:
        image = image or self.image(vdev, access)
        backend = BlockBackend(
            DiskConfig(vdev=vdev, target=image.path, access=access, **options),
            image,
            domid=1,
            xenstore=self.client,
            evtchn=self.evtchn,
            gnttab=self.gnttab,
            publish=self.publish,
            on_fault=lambda name, fault: self.faults.append(fault),
        )
        backend.start()
        self.disks.append(backend)
        return backend, Blkfront(self.client, self.evtchn, self.gnttab, backend.devid, abi=abi)

    def nodes(self, path: str) -> dict[str, str]:
        return {n.path.removeprefix(f"{path}/"): n.value for n in self.store.tree(path) if n.path != path}

    async def close(self) -> None:
        for backend in self.disks:
            await backend.disconnect()
            backend.image.close()
        self.evtchn.close()
        await self._tasks.cancel()
        states = self.named("drive.state")
        for vdev in {state["vdev"] for state in states}:
            mine = [state for state in states if state["vdev"] == vdev]
            assert all(a != b for a, b in pairwise(mine)), "an event without a change"


def count_threads() -> int:
    return sum(thread.name != "blocking call" for thread in threading.enumerate())  # those end soon


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    threads = count_threads()
    rig = Rig(tmp_path)
    yield rig
    await rig.close()
    assert rig.faults == []
    assert not rig.gnttab.mapped
    assert all(port.closed for port in rig.evtchn.ports.values())
    assert count_threads() == threads


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """No native plane, as without a compiler: a test can step in between the other's calls."""

    def refuse(*args: object, **options: object) -> None:
        raise Unsupported("it is not built", feature="native plane")

    monkeypatch.setattr(backend_module, "NativePlane", refuse)


# ---- nodes


async def test_nodes(rig: Rig) -> None:
    backend, front = rig.disk("xvdb")
    assert rig.nodes(front.path) == {
        "backend": front.backend,
        "backend-id": "0",
        "virtual-device": "51728",
        "device-type": "disk",
        "state": "1",
    }
    assert rig.nodes(front.backend) == {
        "frontend": front.path,
        "frontend-id": "1",
        "online": "1",
        "dev": "xvdb",
        "device-type": "disk",
        "mode": "w",
        "removable": "0",
        "info": "0",
        "sectors": "2048",
        "sector-size": "512",
        "physical-sector-size": "4096",
        "feature-flush-cache": "1",
        "feature-max-indirect-segments": "256",
        "feature-discard": "1",
        "discard-granularity": "4096",
        "discard-alignment": "0",
        "discard-secure": "0",
        "max-ring-page-order": "4",
        "max-ring-pages": "16",
        "multi-queue-max-queues": "4",
        "feature-persistent": "0",
        "state": "2",
    }
    assert rig.named("drive.added") == [
        {"vdev": "xvdb", "devid": 51728, "target": backend.image.path, "access": "rw", "size": SIZE}
    ]


async def test_nodes_of_a_read_only_disk_of_an_odd_size(rig: Rig) -> None:
    (rig.tmp_path / "xvdc.img").write_bytes(bytes(512 * 9))
    _, front = rig.disk("xvdc", "ro")
    nodes = rig.nodes(front.backend)
    assert (nodes["mode"], nodes["info"], nodes["sectors"]) == ("r", "4", "9")
    assert "physical-sector-size" not in nodes  # the size must be a multiple of it


async def test_a_name_without_a_number(rig: Rig) -> None:
    image = rig.image("xvda")
    with pytest.raises(BadConfig):
        rig.disk("sdzz", image=image)
    image.close()
    assert rig.events == []


# ---- connected


@pytest.mark.parametrize("abi", [X86_64, X86_32], ids=lambda abi: abi.name)
async def test_read_write_flush(rig: Rig, abi: Abi) -> None:
    backend, front = rig.disk(abi=abi)
    waiting = rig.spawn(backend.wait_connected(5))
    ring = await front.connect()
    await waiting
    before = Path(backend.image.path).read_bytes()
    assert ring.read(8, 16) == before[4096 : 24 * 512]
    ring.write(100, b"hello!!!" * 64)
    assert ring.flush() == 0
    assert Path(backend.image.path).read_bytes()[51200:51712] == b"hello!!!" * 64
    info = backend.info()
    assert (info.vdev, info.devid, info.state, info.frontend_state) == (
        "xvda",
        51712,
        "Connected",
        "Connected",
    )
    assert (info.access, info.size, info.sector_size, info.error) == ("rw", SIZE, 512, None)
    assert (info.stats["reads"], info.stats["writes"], info.stats["flushes"]) == (1, 1, 1)
    assert rig.named("drive.state") == [
        {"vdev": "xvda", "backend": "InitWait", "frontend": "Initialising"},
        {"vdev": "xvda", "backend": "Connected", "frontend": "Initialised"},
        {"vdev": "xvda", "backend": "Connected", "frontend": "Connected"},
    ]


async def test_two_disks_and_one_breaks_its_ring(rig: Rig) -> None:
    a, front_a = rig.disk("xvda")
    b, front_b = rig.disk("xvdb")
    ring_a, ring_b = await front_a.connect(), await front_b.connect()
    ring_a.page.store32(REQ_PROD, 1000)
    ring_a.kick()
    await front_a.wait_backend(S.Closing)
    info = a.info()
    assert info.error is not None and info.error.startswith("the ring is broken: req_prod 0x3e8")
    assert rig.nodes(front_a.backend)["error"] == info.error
    assert rig.named("drive.error") == [{"vdev": "xvda", "error": info.error}]
    assert ring_b.read(0, 8) == Path(b.image.path).read_bytes()[:4096]
    assert b.info().state == "Connected"
    # the guest closes it and tries again with a sane ring
    front_a.switch(S.Closed)
    await front_a.wait_backend(S.Closed)
    front_a.switch(S.Initialising)
    ring_a = await front_a.connect()
    assert ring_a.flush() == 0
    assert a.info().error is None


async def test_counters_outlive_a_connection(rig: Rig) -> None:
    backend, front = rig.disk()
    for lap in range(1, 4):
        ring = await front.connect()
        ring.write(0, bytes(512))
        front.switch(S.Closing)
        await front.wait_backend(S.Closing)
        assert ring.flush() == 0  # a guest that closes may still have to write
        front.switch(S.Closed)
        await front.wait_backend(S.Closed)
        assert backend.info().stats["writes"] == lap
        assert backend.info().stats["in_flight"] == 0
        front.switch(S.Initialising)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ({"ring_ref": None}, "ring-ref is missing"),
        ({"ring_ref": "x"}, "ring-ref is no number"),
        ({"ring_ref": "0"}, "ring-ref 0 cannot be mapped"),
        ({"ring_ref": 2**32}, "ring-ref is no number"),
        ({"event_channel": None}, "event-channel is missing"),
        ({"event_channel": 4096}, "event-channel 4096 cannot be bound"),
        ({"protocol": "bogus"}, "protocol 'bogus' is not known"),
        ({"protocol": ""}, "protocol '' is not known"),
        ({"protocol": "\u00e4" * 1000}, "is not known"),
        ({"ring_page_order": "5"}, "a ring of order 5, of 4 that was offered"),  # A13
        ({"ring_page_order": "1"}, "ring-ref0 is missing"),  # A14
        ({"ring_page_order": 2**31}, "a ring of order 2147483648"),
        ({"ring_page_order": "x"}, "ring-page-order is no number"),
        ({"num_ring_pages": "3"}, "3 pages"),
        ({"num_ring_pages": "0"}, "0 pages"),
        ({"multi_queue_num_queues": "2"}, "queue-0/ring-ref is missing"),
        ({"multi_queue_num_queues": "0"}, "0 queues, of 4 that were offered"),
        ({"multi_queue_num_queues": "5"}, "5 queues, of 4 that were offered"),
    ],
)
async def test_offers_that_are_refused(rig: Rig, nodes: dict[str, Any], why: str) -> None:
    backend, front = rig.disk()
    waiting = rig.spawn(backend.wait_connected(5))
    front.offer(**nodes)
    with pytest.raises(XenpvdError, match="xvda did not connect") as refused:
        await waiting
    assert why in str(refused.value)
    assert front.backend_state() is S.Closing
    assert not rig.gnttab.mapped


async def test_a_disk_that_the_guest_refuses(rig: Rig) -> None:
    backend, front = rig.disk()
    waiting = rig.spawn(backend.wait_connected(60))
    rig.client.write("/local/domain/1/error/device/vbd/51712/error", "22 xlvbd_alloc_gendisk at /dev")
    for state in (S.Closing, S.Closed):  # as xenbus_dev_fatal, and then the driver that is told of Closing
        rig.client.write(f"{front.path}/state", f"{state:d}")
        await front.wait_backend(state)
    with pytest.raises(XenpvdError, match="xvda did not connect: the guest refused it: 22 xlvbd_alloc"):
        await waiting
    assert backend.info().error == "the guest refused it: 22 xlvbd_alloc_gendisk at /dev"
    assert rig.named("drive.error") == [{"vdev": "xvda", "error": backend.info().error}]


@pytest.mark.parametrize(
    "nodes", [{"ring_page_order": "0"}, {"num_ring_pages": "1"}, {"multi_queue_num_queues": 1}]
)
async def test_offers_of_one_page_in_many_words(rig: Rig, nodes: dict[str, Any]) -> None:
    _, front = rig.disk()
    front.offer(**nodes)
    await front.wait_backend(S.Connected)


async def test_no_protocol_is_x86_32(rig: Rig) -> None:
    _, front = rig.disk(abi=X86_32)
    ring = front.offer(protocol=None)
    await front.wait_backend(S.Connected)
    ring.port = rig.evtchn.ports[1]
    assert ring.flush() == 0


async def test_a_ring_that_starts_broken(rig: Rig) -> None:
    _, front = rig.disk()
    ring = BlkRing(rig.gnttab)
    ring.page.view[:] = b"\xff" * 4096
    ring.page.store32(REQ_PROD, 77)
    front.offer(ring_ref=ring.gref)
    await front.wait_backend(S.Closing)
    assert "req_prod" in rig.nodes(front.backend)["error"]


async def test_nodes_rewritten_while_connected(rig: Rig) -> None:  # L3, B16
    _, front = rig.disk()
    ring = await front.connect()
    front.write("ring-ref", 4711)
    front.write("event-channel", 4711)
    front.write("protocol", "bogus")
    front.switch(S.Initialised)
    front.switch(S.Connected)
    assert ring.flush() == 0
    assert front.backend_state() is S.Connected


async def test_two_disks_with_one_ring_page(rig: Rig) -> None:  # A15
    _, front_a = rig.disk("xvda")
    b, front_b = rig.disk("xvdb")
    ring = await front_a.connect()
    front_b.offer(ring_ref=ring.gref)
    await front_b.wait_backend(S.Connected)
    assert ring.flush() == 0
    await b.remove(force=True)
    assert ring.flush() == 0


async def test_the_frontend_is_removed_with_requests_under_way(rig: Rig) -> None:  # L4
    backend, front = rig.disk()
    ring = await front.connect()
    pages = [ring.data_page() for _ in range(32)]
    ring.submit(*[pack_request(BLKIF_OP_READ, id=n, segments=[(g, 0, 7)]) for n, (_, g) in enumerate(pages)])
    rig.client.remove(front.path)
    await front.wait_backend(S.Closed)
    assert backend.info().frontend_state == "Unknown"
    assert not rig.gnttab.mapped


async def test_reconnect_many_times_leaves_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:  # L5
    monkeypatch.setattr(device, "BURST", 1000)
    _, front = rig.disk()
    fds = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        ring = await front.connect()
        assert ring.flush() == 0
        front.switch(S.Closed)
        await front.wait_backend(S.Closed)
        front.switch(S.Initialising)
        rig.gnttab.end_access(ring.gref)
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    assert not rig.gnttab.mapped


# ---- faults of the host and of ours


class FailingImage(Image):
    def _preadv(self, views: list[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.usefixtures("reference")
async def test_a_bad_sector_is_an_event(rig: Rig) -> None:
    _, front = rig.disk(image=rig.image("xvda", cls=FailingImage))
    ring = await front.connect()
    _, gref = ring.data_page()
    assert ring.do(pack_request(BLKIF_OP_READ, segments=[(gref, 0, 7)])) == [(0, BLKIF_OP_READ, -1)]
    assert ring.flush() == 0
    await rig.disks[0].disconnect()
    (event,) = rig.named("drive.error")
    assert event["vdev"] == "xvda" and "Input/output error" in event["error"]


@pytest.mark.usefixtures("reference")
async def test_our_own_fault_closes_the_disk_and_reaches_the_owner(rig: Rig) -> None:
    _, front = rig.disk()
    ring = await front.connect()

    def broken(gref: int, *, readonly: bool = False) -> Any:
        raise ZeroDivisionError("ours")

    rig.gnttab.map = broken  # type: ignore[method-assign]
    ring.submit(pack_request(BLKIF_OP_READ, segments=[(8, 0, 7)]))
    await front.wait_backend(S.Closing)
    assert [type(fault) for fault in rig.faults] == [ZeroDivisionError]
    rig.faults.clear()


# ---- the end


async def let_go(front: Blkfront) -> None:
    """As Linux: Closing is answered by Closed."""
    await front.wait_backend(S.Closing)
    front.switch(S.Closed)


async def test_remove(rig: Rig) -> None:
    backend, front = rig.disk("xvdb")
    ring = await front.connect()
    ring.write(0, b"x" * 512)
    guest = rig.spawn(let_go(front))
    await backend.remove(timeout=5)
    await guest
    assert not rig.store.exists(front.path) and not rig.store.exists(front.backend)
    assert rig.named("drive.removed") == [{"vdev": "xvdb", "forced": False}]
    again, _ = rig.disk("xvdb", image=backend.image)  # which is open still: it is its owner's
    assert again.image.size == SIZE
    again.image.read([memoryview(bytearray(512))], 0)


async def test_add_remove_and_add_again(rig: Rig) -> None:
    for _ in range(10):
        backend, front = rig.disk("xvdb")
        ring = await front.connect()
        assert ring.read(0, 1)
        guest = rig.spawn(let_go(front))
        await backend.remove(timeout=5)
        await guest
        backend.image.close()


async def test_remove_while_in_use(rig: Rig) -> None:
    backend, front = rig.disk("xvdb")
    ring = await front.connect()
    with pytest.raises(TimedOut, match=r"guest still uses xvdb \(state Connected after 0.01 s\); it stays"):
        await backend.remove(timeout=0.01)
    assert ring.flush() == 0
    assert rig.named("drive.removed") == []
    await backend.remove(force=True)
    assert rig.named("drive.removed") == [{"vdev": "xvdb", "forced": True}]


async def test_remove_before_the_guest_looked(rig: Rig) -> None:  # L8
    backend, front = rig.disk("xvdb")
    await backend.remove(timeout=0)
    assert not rig.store.exists(front.path)


@pytest.mark.usefixtures("reference")
async def test_the_vm_goes_and_the_image_stays(rig: Rig) -> None:
    """A reboot: what was written is flushed, the next life has the same image and fresh nodes."""
    flushed = threading.Event()

    class Watched(Image):
        def _fdatasync(self) -> None:
            super()._fdatasync()
            flushed.set()

    image = rig.image("xvda", cls=Watched)
    backend, front = rig.disk(image=image)
    ring = await front.connect()
    ring.write(7, b"first life......" * 32)
    assert not flushed.is_set()
    await backend.disconnect()
    assert flushed.is_set()
    assert not rig.store.exists(front.path) and not rig.store.exists(front.backend)
    assert not rig.gnttab.mapped
    await backend.disconnect()

    backend, front = rig.disk(image=image)
    ring = await front.connect()
    assert ring.read(7, 1) == b"first life......" * 32


@pytest.mark.usefixtures("reference")
async def test_a_disk_that_hangs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:  # O9
    monkeypatch.setattr(device, "CUT_OFF_TIMEOUT", 0.05)
    asked, go = threading.Event(), threading.Event()

    class Hanging(Image):
        def _pwritev(self, views: list[memoryview], offset: int) -> int:
            asked.set()
            assert go.wait(5)
            return super()._pwritev(views, offset)

    backend, front = rig.disk("xvdb", image=rig.image("xvdb", cls=Hanging))
    _, other = rig.disk("xvda")
    ring, other_ring = await front.connect(), await other.connect()
    _, gref = ring.data_page()
    ring.submit(pack_request(BLKIF_OP_WRITE, id=3, segments=[(gref, 0, 7)]))
    assert asked.wait(5)
    assert other_ring.flush() == 0
    with pytest.raises(TimedOut, match="The storage behind it hangs"):
        await backend.remove(force=True)
    assert rig.gnttab.mapped[gref] == 1  # the page is not given back while the host may touch it
    go.set()
    await backend.remove(force=True)
    assert gref not in rig.gnttab.mapped


async def test_an_unknown_page_is_never_touched(rig: Rig) -> None:  # S5
    _, front = rig.disk()
    ring = await front.connect()
    canary = FakePage()
    canary.view[:] = b"c" * 4096
    gref = rig.gnttab.grant(canary, domid=5)
    assert ring.do(pack_request(BLKIF_OP_READ, segments=[(gref, 0, 7)])) == [(0, BLKIF_OP_READ, -1)]
    assert bytes(canary.view) == b"c" * 4096


@pytest.mark.parametrize(("queues", "order"), [(1, 0), (1, 4), (4, 0), (3, 2)])
async def test_many_rings_of_many_pages(rig: Rig, queues: int, order: int) -> None:
    backend, front = rig.disk()
    await front.connect(queues=queues, order=order)
    for n, ring in enumerate(front.rings):
        ring.write(8 * n, bytes([n + 1]) * 4096)
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

    await backend.resize(SIZE)
    _, gref = ring.data_page()
    beyond = pack_request(BLKIF_OP_READ, sector=SIZE // 512, segments=[(gref, 0, 7)])
    assert ring.do(beyond)[0][2] == -1
    assert [event["size"] for event in rig.named("drive.resized")] == [2 * SIZE, SIZE, SIZE]

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


async def test_a_read_only_disk_has_the_size_that_it_has(rig: Rig) -> None:
    backend, front = rig.disk(access="ro")
    with pytest.raises(ImageError, match="it is read-only"):
        await backend.resize(2 * SIZE)
    await backend.resize(None)
    assert sectors(rig, front) * 512 == SIZE


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
    _, front = rig.disk(discard=False)
    assert "feature-discard" not in rig.nodes(front.backend)
    ring = await front.connect()
    assert ring.discard(0, 8) == -2


async def test_persistent_grants_are_offered_on_request(rig: Rig) -> None:
    """Mapping costs us nothing, so nothing is kept: the guest may use the same pages for ever, or not."""
    _, front = rig.disk(persistent=True)
    assert rig.nodes(front.backend)["feature-persistent"] == "1"
    front.write("feature-persistent", 1)
    ring = await front.connect()
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
        backend.check_size(odd)
    odd.close()


@pytest.mark.usefixtures("reference")
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
