"""One disk of one guest: the control side of xen-block (io/blkif.h, "Feature and Parameter Negotiation").

What crosses the ring is the plane's; here are the nodes, the connecting and cutting off, and what the
operator sees. Only what exists is advertised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from xenpvd.abi.io_blkif import ABIS, VDISK_READONLY, XEN_IO_PROTO_ABI_X86_32
from xenpvd.backends.blkif.image import SECTOR_SIZE, Image
from xenpvd.backends.blkif.plane import Plane
from xenpvd.backends.blkif.vdev import devid
from xenpvd.backends.device import Frontend, XenbusDevice
from xenpvd.backends.ops import EvtchnOps, GnttabOps, GrantError, XenstoreOps
from xenpvd.config import DiskConfig
from xenpvd.errors import GuestFault, XenError
from xenpvd.events import Publish
from xenpvd.views import DriveInfo

log = logging.getLogger(__name__)

_PHYSICAL_SECTOR_SIZE = 4096


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
        loop.call_soon_threadsafe(call, *args)


def _log_fault(name: str, fault: BaseException) -> None:
    log.error("%s failed", name, exc_info=fault)


@dataclass(frozen=True, slots=True)
class _Connection:
    """One connected ring; ``release`` gives back everything it holds, once the plane has ended."""

    plane: Plane
    ended: asyncio.Event
    release: contextlib.ExitStack


class BlockBackend:
    """One disk for one life of a guest. Loop thread only.

    ``image`` is open already and may serve the guest's next life too: who opened it closes it.
    ``on_fault(name, exception)`` gets what is our own fault, as :class:`xenpvd.tasks.Tasks` says.
    Raises :class:`BadConfig` for a vdev that has no number.

    Events: ``drive.added`` {vdev, devid, target, access, size}, ``drive.state`` {vdev, backend, frontend},
    ``drive.error`` {vdev, error}, ``drive.removed`` {vdev, forced}.
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
        self._evtchn = evtchn
        self._gnttab = gnttab
        self._publish = publish
        self._on_fault = on_fault
        self._connection: _Connection | None = None
        self._past: Counter[str] = Counter()  # the counters of the connections before
        self._shown: tuple[str, str] | None = None
        self._error: str | None = None
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
        readonly = self.image.readonly
        backend = {
            "dev": self.disk.vdev,
            "device-type": "disk",
            "mode": "r" if readonly else "w",
            "removable": "0",
            "info": f"{VDISK_READONLY if readonly else 0}",
            "sectors": f"{self.image.size // SECTOR_SIZE}",
            "sector-size": f"{SECTOR_SIZE}",
            "feature-flush-cache": "1",
        }
        if self.image.size % _PHYSICAL_SECTOR_SIZE == 0:  # what the host's page cache likes best
            backend["physical-sector-size"] = f"{_PHYSICAL_SECTOR_SIZE}"
        self._publish(
            "drive.added",
            vdev=self.disk.vdev,
            devid=self.devid,
            target=self.image.path,
            access="ro" if readonly else "rw",
            size=self.image.size,
        )
        self._device.start({"virtual-device": f"{self.devid}", "device-type": "disk"}, backend)

    async def wait_connected(self, timeout: float) -> None:
        """Wait until the guest has taken the disk up. Raises :class:`TimedOut`, :class:`XenpvdError`."""
        await self._device.wait_connected(timeout)

    async def remove(self, *, force: bool = False, timeout: float = 10.0) -> None:
        """Take the disk from the guest; nothing of it uses the image then, which stays open.

        Raises :class:`TimedOut` if the guest does not let go in ``timeout`` seconds; the disk stays then.
        ``force`` cuts it off without asking.
        """
        await self._device.remove(force=force, timeout=timeout)
        self._publish("drive.removed", vdev=self.disk.vdev, forced=force)

    async def disconnect(self) -> None:
        """The VM is gone: finish what is under way, flush, and remove the nodes. The image stays open.

        Raises :class:`TimedOut` if the storage hangs; the guest's memory is then still in use.
        """
        await self._device.close()

    def info(self) -> DriveInfo:
        stats = self._past.copy()
        if self._connection is not None:
            stats.update(self._connection.plane.stats())
        return DriveInfo(
            vdev=self.disk.vdev,
            devid=self.devid,
            target=self.image.path,
            access="ro" if self.image.readonly else "rw",
            format=self.disk.format,
            size=self.image.size,
            sector_size=SECTOR_SIZE,
            state=self._device.state.name,
            frontend_state=self._device.frontend_state.name,
            error=self._device.error,
            stats=dict(stats),
        )

    # ---- the driver's half (device.Driver)

    def on_connect(self, frontend: Frontend) -> None:
        protocol = frontend.text("protocol", XEN_IO_PROTO_ABI_X86_32)  # the default of Linux' backend on x86
        if (abi := ABIS.get(protocol)) is None:
            raise GuestFault(f"protocol {protocol[:20]!r} is not known")
        # max-ring-page-order is not offered, so one page it is; num-ring-pages is the older spelling
        if frontend.number("ring-page-order", 0) != 0 or frontend.number("num-ring-pages", 1) != 1:
            raise GuestFault("a ring of several pages was not offered")
        gref, remote_port = frontend.number("ring-ref"), frontend.number("event-channel")
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        with contextlib.ExitStack() as stack:
            try:
                grant = self._gnttab.map(gref)
            except GrantError as fault:
                raise GuestFault(f"ring-ref {gref} cannot be mapped: {fault}") from None
            stack.callback(grant.unmap)
            try:
                port = self._evtchn.bind_interdomain(remote_port)
            except XenError as fault:
                raise GuestFault(f"event-channel {remote_port} cannot be bound: {fault}") from None
            stack.callback(port.close)
            plane = Plane(
                grant.page,
                port,
                self._gnttab,
                self.image,
                abi=abi,
                size=self.image.size,
                readonly=self.image.readonly,
                on_trouble=partial(_call_soon, loop, self._trouble),
                on_end=partial(_call_soon, loop, self._plane_ended, ended),
                name=f"blkif-{self.disk.vdev}",
            )
            stack.callback(plane.join)
            plane.start()
            self._connection = _Connection(plane, ended, stack.pop_all())

    async def on_disconnect(self) -> None:
        connection = self._connection
        if connection is None:
            return
        connection.plane.stop()
        await connection.ended.wait()
        if self._connection is connection:
            self._connection = None
            connection.release.close()
            self._past.update(connection.plane.stats())

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
        elif fault is not None:
            self._device.fail(f"xenpvd failed to serve the ring: {fault!r}")
            self._on_fault(f"{self.disk.vdev} plane", fault)

    def _trouble(self, what: str) -> None:
        log.warning("%s: %s", self.disk.vdev, what)
        self._publish("drive.error", vdev=self.disk.vdev, error=what)
