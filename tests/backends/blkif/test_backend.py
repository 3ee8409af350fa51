"""A disk from its nodes to its end: the real store, a frontend, a ring, a file."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from tests.fakes.blkfront import Blkfront, BlkRing, pack_request
from tests.fakes.disks import SIZE, Rig
from tests.fakes.page import FakePage
from xenpvd.abi.io_blkif import (
    BLKIF_OP_READ,
    X86_32,
    X86_64,
    Abi,
)
from xenpvd.abi.io_ring import REQ_PROD, RSP_PROD
from xenpvd.abi.io_xenbus import XenbusState as S
from xenpvd.backends import device
from xenpvd.backends.blkif.image import Image
from xenpvd.errors import BadConfig, TimedOut, XenpvdError

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


@pytest.mark.usefixtures("either_plane")
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
        ({"num_ring_pages": 2**31}, "2147483648 pages"),
        ({"num_ring_pages": "x"}, "num-ring-pages is no number"),
        ({"order": 2, "ring_ref2": None}, "ring-ref2 is missing"),
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


async def test_rings_that_would_share_an_open_file_are_not_offered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells an open file once that pages were lost, and so one of their flushes."""

    def refused(self: Image) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Image, "_reopen", refused)
    backend, front = rig.disk("xvdb")
    assert rig.nodes(front.backend)["multi-queue-max-queues"] == "1"
    waiting = rig.spawn(backend.wait_connected(5))
    front.offer(queues=2)
    with pytest.raises(XenpvdError, match="2 queues, of 1 that were offered"):
        await waiting


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


@pytest.mark.usefixtures("either_plane")
async def test_a_ring_that_starts_broken(rig: Rig) -> None:
    _, front = rig.disk()
    ring = BlkRing(rig.gnttab)
    ring.page.view[:] = b"\xff" * 4096
    ring.page.store32(REQ_PROD, 77)
    front.offer(ring_ref=ring.gref)
    await front.wait_backend(S.Closing)
    assert "req_prod" in rig.nodes(front.backend)["error"]


@pytest.mark.usefixtures("either_plane")
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


@pytest.mark.usefixtures("either_plane")
async def test_two_disks_with_one_ring_page(rig: Rig) -> None:  # A15
    """Each serves it as if it were its own, and ends alone; what the guest gets from that is its affair."""
    a, front_a = rig.disk("xvda")
    b, front_b = rig.disk("xvdb")
    before = [Path(disk.image.path).read_bytes() for disk in (a, b)]
    ring = await front_a.connect()
    front_b.offer(ring_ref=ring.gref)
    await front_b.wait_backend(S.Connected)
    _, gref = ring.data_page()

    def ask(count: int) -> None:
        for n in range(count):
            ring.put(pack_request(BLKIF_OP_READ, id=n, segments=[(gref, 0, 7)]))
        ring.push()
        for port in rig.evtchn.ports.values():
            if not port.closed:
                port.guest_kick()

    ask(8)
    await b.remove(force=True)
    ask(1)
    while ring.page.load32(RSP_PROD) != 9:
        assert a.info().error is None
        await asyncio.sleep(0)
    assert [Path(disk.image.path).read_bytes() for disk in (a, b)] == before


@pytest.mark.usefixtures("either_plane")
async def test_the_frontend_is_removed_with_requests_under_way(rig: Rig) -> None:  # L4
    backend, front = rig.disk()
    ring = await front.connect()
    pages = [ring.data_page() for _ in range(32)]
    ring.submit(*[pack_request(BLKIF_OP_READ, id=n, segments=[(g, 0, 7)]) for n, (_, g) in enumerate(pages)])
    rig.client.remove(front.path)
    await front.wait_backend(S.Closed)
    assert backend.info().frontend_state == "Unknown"
    assert not rig.gnttab.mapped


@pytest.mark.usefixtures("either_plane")
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


@pytest.mark.usefixtures("no_native_plane")
async def test_a_bad_sector_is_an_event(rig: Rig) -> None:
    _, front = rig.disk(image=rig.image("xvda", cls=FailingImage))
    ring = await front.connect()
    _, gref = ring.data_page()
    assert ring.do(pack_request(BLKIF_OP_READ, segments=[(gref, 0, 7)])) == [(0, BLKIF_OP_READ, -1)]
    assert ring.flush() == 0
    await rig.disks[0].disconnect()
    (event,) = rig.named("drive.error")
    assert event["vdev"] == "xvda" and "Input/output error" in event["error"]


@pytest.mark.usefixtures("no_native_plane")
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


@pytest.mark.usefixtures("no_native_plane")
async def test_a_host_that_fails_a_ring_closes_the_disk_and_no_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, front = rig.disk()
    ring = await front.connect()

    def broken(fd: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "eventfd_read", broken)
    ring.kick()
    await front.wait_backend(S.Closing)
    monkeypatch.undo()
    assert backend.info().error == "the host failed it: Input/output error"
    assert rig.faults == [] and not rig.gnttab.mapped


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


@pytest.mark.usefixtures("no_native_plane")
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


@pytest.mark.usefixtures("either_plane")
async def test_a_disk_that_hangs(rig: Rig, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # O9
    """The native plane reads from a pipe; the other one can only read once something has come from there."""
    monkeypatch.setattr(device, "CUT_OFF_TIMEOUT", 0.05)
    reading, writing = os.pipe()

    class Hanging(Image):
        def dup(self) -> Self:
            twin = super().dup()
            if native:
                os.dup2(reading, twin.fd)
                twin.is_block = True
            return twin

        def _preadv(self, views: list[memoryview], offset: int) -> int:
            os.read(reading, 4096)
            return super()._preadv(views, offset)

    backend, front = rig.disk("xvdb", image=rig.image("xvdb", cls=Hanging))
    _, other = rig.disk("xvda")
    ring, other_ring = await front.connect(), await other.connect()
    _, gref = ring.data_page()
    ring.submit(pack_request(BLKIF_OP_READ, id=3, segments=[(gref, 0, 7)]))
    while not rig.gnttab.mapped[gref]:
        assert backend.info().error is None
        await asyncio.sleep(0)
    assert other_ring.flush() == 0
    with pytest.raises(TimedOut, match="The storage behind it hangs"):
        await backend.remove(force=True)
    assert rig.gnttab.mapped[gref] == 1  # the page is not given back while the host may touch it
    os.write(writing, bytes(4096))
    await backend.remove(force=True)
    assert gref not in rig.gnttab.mapped
    os.close(reading)
    os.close(writing)


@pytest.mark.usefixtures("either_plane")
async def test_an_unknown_page_is_never_touched(rig: Rig) -> None:  # S5
    _, front = rig.disk()
    ring = await front.connect()
    canary = FakePage()
    canary.view[:] = b"c" * 4096
    gref = rig.gnttab.grant(canary, domid=5)
    assert ring.do(pack_request(BLKIF_OP_READ, segments=[(gref, 0, 7)])) == [(0, BLKIF_OP_READ, -1)]
    assert bytes(canary.view) == b"c" * 4096
