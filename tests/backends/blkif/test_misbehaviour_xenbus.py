"""Guests that behave badly with a disk's nodes: what they flip, rewrite and take away, on both planes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.backends.blkif.conftest import count_threads
from tests.fakes.blkfront import pack_request
from tests.fakes.disks import Rig
from xenpvd.abi.io_blkif import BLKIF_OP_READ
from xenpvd.abi.io_xenbus import XenbusState as S
from xenpvd.backends import device
from xenpvd.backends.blkif.image import Image


@pytest.fixture
async def rig(rig: Rig, native: bool, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    if not native:
        request.getfixturevalue("no_native_plane")
    yield rig


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - of what is done in other threads
            await asyncio.sleep(0.01)


async def test_a_guest_that_flips_as_fast_as_it_can(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """L2: with real rings, and without waiting for what the other end makes of it."""
    monkeypatch.setattr(device, "BURST", 10_000)
    backend, front = rig.disk()

    def left() -> tuple[int, int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks()), count_threads()

    async def rest() -> None:
        front.switch(S.Closed)
        await until(lambda: backend.info().state == "Closed" and backend.info().frontend_state == "Closed")

    await front.connect()
    await rest()
    before, loops = left(), 0
    for n in range(1000):
        if n % 2:
            front.offer()
        else:
            front.switch(S.Closed)
        for _ in range(n % 7):
            await asyncio.sleep(0)
        loops += backend.info().state == "Connected"
    assert loops, "it was connected now and then"
    await rest()
    assert left() == before and not rig.gnttab.mapped
    front.switch(S.Initialising)
    assert (await front.connect()).flush() == 0


async def test_what_is_under_way_ends_before_the_device_is_closed(
    rig: Rig, native: bool, tmp_path: Path
) -> None:
    """L4: the guest removes its nodes while the storage takes its time: the pages are its own again when what
    was read has come, which is answered once."""
    begun, go = threading.Event(), threading.Event()
    end, pipe = os.pipe()

    class Slow(Image):
        def dup(self) -> Slow:
            twin = super().dup()
            if native:  # it does its system calls itself
                os.dup2(end, twin.fd)
            return twin

        def _preadv(self, views: list[memoryview], offset: int) -> int:
            begun.set()
            assert go.wait(30)
            return super()._preadv(views, offset)

    backend, front = rig.disk(image=rig.image("xvda", cls=Slow))
    ring = await front.connect()
    page, gref = ring.data_page()
    slot = pack_request(BLKIF_OP_READ, id=9, segments=[(gref, 0, 7)])
    if native:
        ring.submit(slot, pack_request(77, id=99))
        assert ring.wait(1)[0][0] == 99  # which was taken after it
    else:
        ring.submit(slot)
        await until(begun.is_set)

    rig.client.remove(front.path)
    await until(lambda: backend.info().frontend_state == "Unknown")
    assert backend.info().state == "Connected" and rig.gnttab.mapped[gref] == 1
    assert ring.take() == [] and not any(page.view)

    expected = Path(backend.image.path).read_bytes()[:4096]
    if native:
        os.write(pipe, expected)
    go.set()
    await front.wait_backend(S.Closed)
    assert ring.take() == [(9, BLKIF_OP_READ, 0)] and bytes(page.view) == expected
    assert not rig.gnttab.mapped
    os.close(end)
    os.close(pipe)


@pytest.mark.parametrize(
    "nodes",
    [
        {"queue-0/ring-ref": 4711, "queue-0/event-channel": 4711, "queue-1/ring-ref": "x"},
        {"multi-queue-num-queues": 1, "queue-0/ring-ref": 4711, "queue-0/event-channel": 4711},
        {"ring-ref0": 4711, "ring-ref1": 4711},
        {"feature-persistent": 1, "feature-large-sector-size": 1, "feature-barrier": "yes", "max-queues": 99},
    ],
)
async def test_nodes_that_were_not_asked_for_say_nothing(rig: Rig, nodes: dict[str, object]) -> None:
    """L9."""
    backend, front = rig.disk()
    await front.wait_backend(S.InitWait)
    ring = front.offer(**nodes)
    await front.wait_backend(S.Connected)
    ring.port = next(port for port in rig.evtchn.ports.values() if not port.closed)
    assert (backend.info().rings, backend.info().ring_pages) == (1, 1)
    assert ring.read(0, 8) == Path(backend.image.path).read_bytes()[:4096]


async def test_nodes_that_are_rewritten_count_at_the_next_connection(rig: Rig) -> None:
    """L3: the ring that is served is the one that was offered; a reconnect takes what is there then."""
    backend, front = rig.disk()
    old = await front.connect()
    for node in ("ring-ref", "event-channel", "ring-page-order", "multi-queue-num-queues", "protocol"):
        front.write(node, 4711)
    for state in (S.Initialised, S.Connected):
        front.switch(state)
    assert old.read(0, 8) == Path(backend.image.path).read_bytes()[:4096]
    assert backend.info().state == "Connected" and backend.info().error is None
    for state in (S.Closed, S.Initialising):
        front.switch(state)
        await front.wait_backend(S.Closed if state is S.Closed else S.InitWait)
    front.switch(S.Initialised)
    await front.wait_backend(S.Closing)
    assert backend.info().error == "protocol '4711' is not known"
