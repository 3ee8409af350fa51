"""One disk of one guest: the control side of xen-block (io/blkif.h, "Feature and Parameter Negotiation").

What crosses the ring is the plane's; here are the nodes, the connecting and cutting off, and what the
operator sees. Only what exists is advertised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

from xenpvd.abi.io_blkif import VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE, Abi
from xenpvd.abi.page import SharedPage
from xenpvd.backends.blkif.fit import check_fits
from xenpvd.backends.blkif.image import SECTOR_SIZE, Image, refusal_of_size
from xenpvd.backends.blkif.native import NativePlane
from xenpvd.backends.blkif.opening import reasons
from xenpvd.backends.blkif.plane import Plane
from xenpvd.backends.blkif.request import Offer
from xenpvd.backends.blkif.rings import AnyPlane, Rings
from xenpvd.backends.blkif.terms import MAX_QUEUES, MAX_RING_PAGE_ORDER, Terms
from xenpvd.backends.blkif.throttle import Throttle
from xenpvd.backends.blkif.vdev import devid
from xenpvd.backends.device import Frontend, XenbusDevice
from xenpvd.backends.ops import EvtchnOps, EvtchnPort, GnttabOps, XenstoreOps
from xenpvd.config import DiskConfig
from xenpvd.errors import BadConfig, Busy, GuestFault, Unsupported
from xenpvd.events import Publish
from xenpvd.tasks import Tasks, in_thread
from xenpvd.views import NO_LIMITS, DriveInfo, DriveLimits

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_PHYSICAL_SECTOR_SIZE = 4096

#: Seconds that a life's end waits for a change of size, which takes as long as the storage does
RESIZE_TIME = 5.0

#: Seconds that what is under way has to end by itself when a disk is removed by force; less than
#: device.CUT_OFF_TIMEOUT
FORCE_PATIENCE = 5.0

#: 1 MiB in a request, and one page of descriptors; Linux takes 32 of them unless it is told otherwise
MAX_INDIRECT_SEGMENTS = 256


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
        loop.call_soon_threadsafe(call, *args)


def _offer(disk: DiskConfig, image: Image) -> Offer:
    return Offer(
        sectors=image.size // SECTOR_SIZE,
        readonly=image.readonly,
        sector_size=disk.sector_size,
        max_indirect=MAX_INDIRECT_SEGMENTS,
        discard=disk.discard and image.can_discard,
    )


def _use(image: Image, call: Callable[[Image], _T]) -> _T:
    """In a thread, for which the disk may be removed or get another image; ``image`` is its own."""
    try:
        return call(image)
    finally:
        image.close()


def _log_fault(name: str, fault: BaseException) -> None:
    log.error("%s failed", name, exc_info=fault)


class BlockBackend:
    """One disk for one life of a guest. Loop thread only.

    ``image`` is open already and may serve the guest's next life too: who opened it closes it.
    ``on_fault(name, exception)`` gets what is our own fault, as :class:`xenpvd.tasks.Tasks` says.
    Raises :class:`BadConfig` for a vdev that has no number, and for an image that does not fit.

    Events: ``drive.added`` {vdev, devid, target, access, size}, ``drive.state`` {vdev, backend, frontend},
    ``drive.resized`` {vdev, size}, ``drive.changed`` {vdev, target, size}, ``drive.limited`` {vdev and the
    limits}, ``drive.error`` {vdev, error}, ``drive.removed`` {vdev, forced}.
    """

    def __init__(
        self,
        disk: DiskConfig,
        image: Image,
        *,
        domid: int,
        xenstore: XenstoreOps,
        evtchn: EvtchnOps,
        gnttab: GnttabOps,
        publish: Publish,
        on_fault: Callable[[str, BaseException], None] = _log_fault,
    ) -> None:
        self.disk = disk
        self.image = image
        self.devid = devid(disk.vdev)
        check_fits(disk, image)
        self._evtchn = evtchn
        self._gnttab = gnttab
        self._publish = publish
        self._on_fault = on_fault
        self._offer = _offer(self.disk, image)
        self._throttle = Throttle(disk.limits.view())
        #: every size that it may have is a multiple of this: the guest may have been told so
        self._unit: int = disk.sector_size
        if disk.device == "disk" and image.size % _PHYSICAL_SECTOR_SIZE == 0:
            self._unit = _PHYSICAL_SECTOR_SIZE
        self._rings: Rings | None = None
        self._tasks = Tasks(on_fault)
        self._renewing = asyncio.Lock()
        self._resizing = asyncio.Lock()
        self._left = False  # the image is another life's
        self._past: Counter[str] = Counter()  # the counters of the connections before
        self._told_size = image.size
        self._removed = False
        self._shown: tuple[str, str] | None = None
        self._error: str | None = None
        #: rings that share an open file share the news of lost pages, too: see Image.dup
        self._max_queues = MAX_QUEUES if image.readonly or image.can_reopen else 1
        image.watch(self._trouble, on_fault)
        self._device = XenbusDevice(
            "vbd",
            self.devid,
            label=disk.vdev,
            domid=domid,
            xenstore=xenstore,
            driver=self,
            on_fault=on_fault,
        )

    def start(self) -> None:
        """Publish the disk to the guest, at once and whole, and serve it from now on."""
        readonly, cdrom = self.image.readonly, self.disk.device == "cdrom"
        backend = {
            "dev": self.disk.vdev,
            "device-type": self.disk.device,
            "mode": "r" if readonly else "w",
            "removable": f"{cdrom:d}",
            "info": f"{VDISK_READONLY * readonly | (VDISK_CDROM | VDISK_REMOVABLE) * cdrom}",
            "sectors": f"{self._offer.sectors}",
            "sector-size": f"{self._offer.sector_size}",
            "feature-flush-cache": "1",
            "feature-max-indirect-segments": f"{self._offer.max_indirect}",
            "max-ring-page-order": f"{MAX_RING_PAGE_ORDER}",
            "max-ring-pages": f"{1 << MAX_RING_PAGE_ORDER}",
            "multi-queue-max-queues": f"{self._max_queues}",
            "feature-persistent": f"{self.disk.persistent:d}",
        }
        if self._offer.discard:
            backend |= {
                "feature-discard": "1",
                "discard-granularity": f"{_PHYSICAL_SECTOR_SIZE}",
                "discard-alignment": "0",
                "discard-secure": "0",
            }
        if self._unit == _PHYSICAL_SECTOR_SIZE:  # what the host's page cache likes best
            backend["physical-sector-size"] = f"{_PHYSICAL_SECTOR_SIZE}"
        self._publish(
            "drive.added",
            vdev=self.disk.vdev,
            devid=self.devid,
            target=self.image.path,
            access="ro" if readonly else "rw",
            size=self.image.size,
        )
        self._device.start({"virtual-device": f"{self.devid}", "device-type": self.disk.device}, backend)

    async def wait_connected(self, timeout: float) -> None:
        """Wait until the guest has taken the disk up. Raises :class:`TimedOut`, :class:`XenpvdError`."""
        await self._device.wait_connected(timeout)

    async def remove(self, *, force: bool = False, timeout: float = 10.0) -> None:
        """Take the disk from the guest; nothing of it uses the image then, which stays open.

        Raises :class:`TimedOut` if the guest does not let go in ``timeout`` seconds; the disk stays then.
        ``force`` cuts it off without asking.
        """
        patience = (
            asyncio.get_running_loop().call_later(FORCE_PATIENCE, self.image.give_up) if force else None
        )
        try:
            await self._device.remove(force=force, timeout=timeout)
        finally:
            if patience is not None:
                patience.cancel()
        if not self._removed:  # else another call has told it
            self._removed = True
            self._publish("drive.removed", vdev=self.disk.vdev, forced=force)

    async def resize(self, size: int | None, *, shrink: bool = False) -> None:
        """The guest sees the image's new size: ``size`` bytes, or what it has become.

        Raises :class:`BadConfig` for less than it has, unless that is meant (``shrink``);
        :class:`ImageError`; :class:`Busy` if it gets another image meanwhile.
        """
        async with self._resizing:  # what one has looked at must not have another size when it is cut
            image = self.image
            wanted = await self._with(image, lambda twin: twin.plan_resize(size, self._unit, shrink=shrink))
            if wanted < image.size:  # no request may go beyond the new end
                self._hold_to(replace(self._offer, sectors=wanted // SECTOR_SIZE))

            def change(twin: Image) -> None:
                twin.resize(wanted)
                if not self._left:  # else the next life has been told already, and goes on with that
                    image.size = wanted

            try:
                await self._with(image, change)
            finally:
                self._announce()

    async def _with(self, image: Image, call: Callable[[Image], _T]) -> _T:
        """``call`` it on a descriptor of its own, in a thread. Raises :class:`ImageError`, :class:`Busy`."""
        self._check_has(image)
        try:
            twin = image.dup()
        except OSError as fault:
            raise refusal_of_size(image.path, *reasons(fault, image.readonly)) from None
        done = await in_thread(partial(_use, twin, call))
        self._check_has(image)
        return done

    def _check_has(self, image: Image) -> None:
        vdev = self.disk.vdev
        if self._device.closed:  # the image may be another life's by now, which was told its size
            raise refusal_of_size(image.path, f"{vdev} is gone", "See drive.list")
        if self.image is not image:
            why = f"cannot resize {vdev}: it is just getting another image. Look at it, and try again."
            raise Busy(why, by=vdev)

    async def flush(self) -> None:
        """Have everything that was written to the disk on stable storage. Raises ``ImageError``."""
        await in_thread(self.image.flush_now)

    async def set_limits(self, limits: DriveLimits) -> None:
        """From now on, also for what waits already. ``drive.limited`` tells."""
        before = self._throttle.limits
        if limits == before:
            return
        self._throttle.set(limits)
        if (before is NO_LIMITS) is not (limits is NO_LIMITS):  # what is limited needs no fast plane
            await self._renew()
        self._publish("drive.limited", vdev=self.disk.vdev, **asdict(limits))

    def check_fits(self, image: Image) -> None:
        """Can it be put behind this disk? Raises :class:`BadConfig`."""
        if image.size % self._unit:
            why = f"it has {image.size} bytes, no multiple of {self._unit}"
            raise BadConfig(f"cannot put {image.path} behind {self.disk.vdev}: {why}. Copy its image.")
        check_fits(self.disk, image)

    async def swap(self, image: Image) -> None:
        """Serve another image from now on; what is under way goes to the one before, which is flushed. If the
        disk is cut off meanwhile, its next life finds the new one."""
        self.image = image
        image.watch(self._trouble, self._on_fault)
        self._offer = _offer(self.disk, image)
        await self._renew()
        self._publish("drive.changed", vdev=self.disk.vdev, target=image.path, size=image.size)
        self._announce()

    async def _renew(self) -> None:
        """Other planes for what has changed. This goes on if the caller is cancelled (the planes are stopped
        by then) and ends when the disk is cut off, as storage that hangs would let it wait for ever."""
        await asyncio.wait((self._tasks.spawn(self._renew_rings(), f"{self.disk.vdev} renewal"),))

    async def _renew_rings(self) -> None:
        async with self._renewing:
            if (rings := self._rings) is None:
                return
            try:
                await rings.renew(partial(self._make_plane, rings.terms.abi))
            except GuestFault as fault:
                self._device.fail(f"the ring is broken: {fault}")
            except OSError as fault:
                self._device.fail(f"the host has not enough for it: {fault.strerror or fault}")

    def _hold_to(self, offer: Offer) -> None:
        self._offer = offer
        if self._rings is not None:
            self._rings.set_offer(offer)

    def _announce(self) -> None:
        """The image's size. Linux looks at it again whenever the state is written, even if it is the same."""
        self._hold_to(_offer(self.disk, self.image))
        self._device.announce(sectors=f"{self._offer.sectors}")
        size = self._offer.sectors * SECTOR_SIZE
        if size != self._told_size:
            self._told_size = size
            self._publish("drive.resized", vdev=self.disk.vdev, size=size)

    async def disconnect(self) -> None:
        """The VM is gone: finish what is under way, flush, and remove the nodes. The image stays open.

        Raises :class:`TimedOut` if the storage hangs; the guest's memory is then still in use.
        """
        await self._device.close()
        with contextlib.suppress(
            TimeoutError
        ):  # or the next life would begin with a size that is just changing
            async with asyncio.timeout(RESIZE_TIME), self._resizing:
                pass
        self._left = True

    def info(self) -> DriveInfo:
        stats = self._past.copy()
        terms = None
        if self._rings is not None:
            stats.update(self._rings.stats())
            terms = self._rings.terms
        return DriveInfo(
            vdev=self.disk.vdev,
            devid=self.devid,
            target=self.image.path,
            access="ro" if self.image.readonly else "rw",
            format=self.disk.format,
            size=self.image.size,
            sector_size=self._offer.sector_size,
            state=self._device.state.name,
            frontend_state=self._device.frontend_state.name,
            error=self._device.error,
            protocol=terms.abi.name if terms else None,
            rings=len(terms.queues) if terms else 0,
            cache=self.disk.cache,
            limits=self._throttle.limits,
            plane=self._rings.engine if self._rings else None,
            ring_pages=len(terms.queues[0].ring_refs) if terms else 0,
            features=self._features(terms) if terms else (),
            grants=terms.pages if terms else 0,
            stats=dict(stats),
            engine=self.image.describe(),
        )

    def _features(self, terms: Terms) -> tuple[str, ...]:
        """What both ends have of io/blkif.h; the guest tells only of the last whether it takes it."""
        return (
            "flush-cache",
            "indirect-segments",
            *(("discard",) if self._offer.discard else ()),
            *(("persistent",) if self.disk.persistent and terms.persistent else ()),
        )

    # ---- the driver's half (device.Driver)

    def on_connect(self, frontend: Frontend) -> None:
        terms = Terms.read(frontend, self._max_queues)
        self._rings = Rings(terms, self._evtchn, self._gnttab, partial(self._make_plane, terms.abi))
        self._rings.start()

    async def on_disconnect(self) -> None:
        await self._tasks.cancel()
        rings = self._rings
        if rings is None:
            return
        await rings.close()
        if self._rings is rings:
            self._rings = None
            self._past.update(rings.stats())

    def _make_plane(
        self, abi: Abi, pages: Sequence[SharedPage], port: EvtchnPort, index: int, ended: asyncio.Event
    ) -> AnyPlane:
        loop = asyncio.get_running_loop()
        tell: dict[str, Any] = {
            "on_trouble": partial(_call_soon, loop, self._trouble),
            "on_end": partial(_call_soon, loop, self._plane_ended, ended),
            "name": f"blkif-{self.disk.vdev}-{index}",
        }
        image = self.image.dup()
        with contextlib.ExitStack() as stack:
            stack.callback(image.close)
            plane = self._plane_for(image, pages, port, abi=abi, offer=self._offer, **tell)
            stack.pop_all()
        return plane

    def _plane_for(
        self, image: Image, pages: Sequence[SharedPage], port: EvtchnPort, **options: Any
    ) -> AnyPlane:
        try:
            if self._throttle.limits is not NO_LIMITS:
                raise Unsupported("the disk has limits", feature="native plane")
            return NativePlane(pages, port, self._gnttab.memory(), image, **options)
        except Unsupported as why:
            options["engine"] = f"python: {why}"
        return Plane(pages, port, self._gnttab, image, throttle=self._throttle, **options)

    def on_change(self) -> None:
        device = self._device
        if device.error != self._error:
            self._error = device.error
            if device.error is not None:
                self._trouble(device.error)
        shown = device.state.name, device.frontend_state.name
        if shown != self._shown:
            self._shown = shown
            self._publish("drive.state", vdev=self.disk.vdev, backend=shown[0], frontend=shown[1])

    # ---- what the plane's thread tells, in the loop

    def _plane_ended(self, ended: asyncio.Event, fault: BaseException | None) -> None:
        ended.set()
        if isinstance(fault, GuestFault):
            self._device.fail(f"the ring is broken: {fault}")
        elif isinstance(fault, OSError):  # not of the image: of a call without which there is no going on
            self._device.fail(f"the host failed it: {fault.strerror or fault}")
        elif fault is not None:
            self._device.fail(f"xenpvd failed to serve the ring: {fault!r}")
            self._on_fault(f"{self.disk.vdev} plane", fault)

    def _trouble(self, what: str) -> None:
        log.warning("%s: %s", self.disk.vdev, what)
        self._publish("drive.error", vdev=self.disk.vdev, error=what)
