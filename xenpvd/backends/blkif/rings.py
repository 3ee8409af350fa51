"""The connected rings of one disk: their pages and ports, and the planes that serve them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xenpvd.abi.page import SharedPage
from xenpvd.backends.blkif.native import NativePlane
from xenpvd.backends.blkif.plane import Plane
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.terms import QueueTerms, Terms
from xenpvd.backends.ops import EvtchnOps, EvtchnPort, GnttabOps, GrantError
from xenpvd.errors import GuestFault, HostError, KvmError, XenError

AnyPlane = Plane | NativePlane

#: Makes a plane for the pages and port of the ring of that index; it tells of its end by the event.
MakePlane = Callable[[Sequence[SharedPage], EvtchnPort, int, asyncio.Event], AnyPlane]


@dataclass(slots=True)
class _Ring:
    pages: list[SharedPage]
    port: EvtchnPort
    plane: AnyPlane
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Rings:
    """Served from :meth:`start` until :meth:`close`. Loop thread only.

    Raises :class:`GuestFault`, and holds nothing then, for what cannot be mapped, bound or true, and
    ``OSError`` for what the host has no more of.
    """

    def __init__(self, terms: Terms, evtchn: EvtchnOps, gnttab: GnttabOps, make_plane: MakePlane) -> None:
        self.terms = terms
        self._rings: list[_Ring] = []
        self._past: Counter[str] = Counter()  # of the planes before
        self._closing = False
        with contextlib.ExitStack() as stack:
            for queue in terms.queues:
                self._rings.append(self._open(stack, queue, evtchn, gnttab, make_plane))
            self._release = stack.pop_all()

    def _open(
        self,
        stack: contextlib.ExitStack,
        queue: QueueTerms,
        evtchn: EvtchnOps,
        gnttab: GnttabOps,
        make_plane: MakePlane,
    ) -> _Ring:
        pages: list[SharedPage] = []
        for gref in queue.ring_refs:
            try:
                grant = gnttab.map(gref)
            except GrantError as fault:
                raise GuestFault(f"ring-ref {gref} cannot be mapped: {fault}") from None
            stack.callback(grant.unmap)
            pages.append(grant.page)
        try:
            port = evtchn.bind_interdomain(queue.event_channel)
        except XenError as fault:
            raise GuestFault(f"event-channel {queue.event_channel} cannot be bound: {fault}") from None
        except (HostError, KvmError) as fault:
            raise OSError(fault.data["errno"], str(fault)) from None
        stack.callback(port.close)
        ended = asyncio.Event()
        ended.set()  # nobody is at work on it yet
        ring = _Ring(pages, port, make_plane(pages, port, len(self._rings), ended), ended)
        stack.callback(lambda: ring.plane.join())
        return ring

    def start(self) -> None:
        """Raises ``OSError`` if the host has no more threads; :meth:`close` ends those that run by then."""
        for ring in self._rings:
            _start(ring)

    @property
    def engine(self) -> str:
        return self._rings[0].plane.engine

    def set_offer(self, offer: Offer) -> None:
        """Requests taken from now on are held to it."""
        for ring in self._rings:
            ring.plane.offer = offer

    async def renew(self, make_plane: MakePlane) -> None:
        """Finish what is under way, and go on with other planes; what the guest asks meanwhile waits. One at
        a time; whoever cancels it closes the rings. Nothing is begun that :meth:`close` would not end.

        Raises :class:`GuestFault` if a ring has broken meanwhile, and ``OSError``: it is not served then.
        """
        if not self._closing:  # else its storage may hang, and nobody would cancel this any more
            await self._stop()
        if self._closing:
            return
        for index, ring in enumerate(self._rings):
            ring.plane.join()
            ended = asyncio.Event()
            plane = make_plane(ring.pages, ring.port, index, ended)
            self._past.update(ring.plane.stats())
            ring.plane, ring.ended = plane, ended
            _start(ring)

    async def close(self) -> None:
        """Finish what is under way and give everything back. May be cancelled and called again."""
        self._closing = True
        await self._stop()
        self._release.close()

    def stats(self) -> Counter[str]:
        """Of all rings together, since they were connected."""
        total = self._past.copy()
        for ring in self._rings:
            total.update(ring.plane.stats())
        return total

    async def _stop(self) -> None:
        while running := [ring for ring in self._rings if not ring.ended.is_set()]:
            for ring in running:
                ring.plane.stop()
            for ring in running:
                await ring.ended.wait()


def _start(ring: _Ring) -> None:
    ring.ended.clear()
    try:
        ring.plane.start()
    except RuntimeError:  # what Python makes of the EAGAIN of pthread_create()
        ring.ended.set()
        raise OSError(errno.EAGAIN, "no more threads") from None
