"""What holds a disk's rings; tests/backends/blkif/test_backend.py has them at work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.fakes.blkfront import BlkRing
from tests.fakes.evtchn import FakeEvtchnOps
from tests.fakes.gnttab import FakeGnttab
from xenpvd.abi.io_blkif import X86_64
from xenpvd.abi.page import SharedPage
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.rings import Rings
from xenpvd.backends.blkif.terms import QueueTerms, Terms
from xenpvd.backends.ops import EvtchnPort
from xenpvd.errors import GuestFault


class FakePlane:
    """Ends when the test says so."""

    def __init__(self, ended: asyncio.Event) -> None:
        self.offer = Offer(8)
        self.ended = ended
        self.calls: list[str] = []
        self.fails = False

    def start(self) -> None:
        self.calls.append("start")
        if self.fails:
            raise RuntimeError("can't start new thread")

    def stop(self) -> None:
        self.calls.append("stop")

    def join(self) -> None:
        self.calls.append("join")

    def stats(self) -> dict[str, int]:
        return {"reads": 1}


class Rig:
    def __init__(self, count: int = 2) -> None:
        self.gnttab, self.evtchn = FakeGnttab(), FakeEvtchnOps()
        self.planes: list[FakePlane] = []
        self.no_thread_for = 0  # counted from 1
        queues = [QueueTerms((BlkRing(self.gnttab).gref,), self.evtchn.alloc_unbound()) for _ in range(count)]
        self.terms = Terms(X86_64, tuple(queues))

    def open(self) -> Rings:
        rings = Rings(self.terms, self.evtchn, self.gnttab, self.make)
        rings.start()
        return rings

    def make(
        self, pages: Sequence[SharedPage], port: EvtchnPort, index: int, ended: asyncio.Event
    ) -> FakePlane:
        self.planes.append(FakePlane(ended))
        self.planes[-1].fails = len(self.planes) == self.no_thread_for
        return self.planes[-1]

    def end(self) -> None:
        for plane in self.planes:
            plane.ended.set()


async def test_close_stops_all_and_gives_all_back() -> None:
    rig = Rig()
    rings = rig.open()
    rings.set_offer(Offer(99))
    assert [plane.offer.sectors for plane in rig.planes] == [99, 99]
    closing = asyncio.gather(rings.close())
    await asyncio.sleep(0)
    assert [plane.calls for plane in rig.planes] == [["start", "stop"]] * 2
    assert rig.gnttab.mapped
    rig.end()
    await closing
    assert [plane.calls[-1] for plane in rig.planes] == ["join", "join"]
    assert not rig.gnttab.mapped and all(port.closed for port in rig.evtchn.ports.values())


async def test_a_close_that_is_cancelled_can_be_done_again() -> None:
    rig = Rig()
    rings = rig.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await rings.close()
    assert rig.gnttab.mapped
    rig.end()
    await rings.close()
    assert not rig.gnttab.mapped


async def test_renewed_planes_go_on_and_nothing_is_forgotten() -> None:
    rig = Rig()
    rings = rig.open()
    rig.end()
    await rings.renew(rig.make)
    assert [plane.calls for plane in rig.planes] == [["start", "join"]] * 2 + [["start"]] * 2
    assert rings.stats()["reads"] == 4
    rig.end()
    await rings.close()


async def test_a_close_overtakes_a_renewal() -> None:
    rig = Rig()
    rings = rig.open()
    both = asyncio.gather(rings.renew(rig.make), rings.close())
    await asyncio.sleep(0)
    rig.end()
    await both
    assert len(rig.planes) == 2
    assert not rig.gnttab.mapped


async def test_a_renewal_that_is_cancelled_can_be_closed() -> None:
    rig = Rig()
    rings = rig.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await rings.renew(rig.make)
    rig.end()
    await asyncio.wait_for(rings.close(), 5)
    assert len(rig.planes) == 2
    assert not rig.gnttab.mapped


@pytest.mark.parametrize("at", [1, 2])
async def test_no_thread_for_a_ring(at: int) -> None:
    rig = Rig()
    rig.no_thread_for = at
    rings = Rings(rig.terms, rig.evtchn, rig.gnttab, rig.make)
    with pytest.raises(OSError, match="no more threads"):
        rings.start()
    assert all("join" not in plane.calls for plane in rig.planes), "nobody waits in the loop"
    for plane in rig.planes[: at - 1]:  # what never began never tells of its end
        plane.ended.set()
    await asyncio.wait_for(rings.close(), 5)
    assert not rig.gnttab.mapped


@pytest.mark.parametrize("at", [3, 4])
async def test_no_thread_for_a_renewed_ring(at: int) -> None:
    rig = Rig()
    rig.no_thread_for = at
    rings = rig.open()
    rig.end()
    with pytest.raises(OSError, match="no more threads"):
        await rings.renew(rig.make)
    assert rings.stats()["reads"] == (3 if at == 3 else 4), "each is counted once"
    rig.end()
    await asyncio.wait_for(rings.close(), 5)
    assert not rig.gnttab.mapped


async def test_one_that_cannot_be_opened_leaves_nothing() -> None:
    rig = Rig(count=3)
    rig.terms = Terms(X86_64, (*rig.terms.queues[:2], QueueTerms((999,), 1)))
    with pytest.raises(GuestFault, match="ring-ref 999"):
        rig.open()
    assert not rig.gnttab.mapped and all(port.closed for port in rig.evtchn.ports.values())
    assert [plane.calls for plane in rig.planes] == [["join"], ["join"]], "never started"
