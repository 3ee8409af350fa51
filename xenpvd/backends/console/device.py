"""A further console as a xenbus device, device/console/N: what Linux calls hvc1 and so on.

docs/misc/console.txt and docs/misc/channel.txt of Xen have the nodes. The guest grants a page of its own with
the ring, and offers a port; what passes there is the :class:`Console`'s, which outlives the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from xenpvd.backends.console.backend import Console
from xenpvd.backends.device import Frontend, XenbusDevice
from xenpvd.backends.ops import EvtchnOps, GnttabOps, Grant, GrantError, XenstoreOps
from xenpvd.errors import GuestFault, HostError, KvmError, XenError

#: Linux looks at one digit of the number, and 0 is hvc0, which is no device
DEVIDS = range(1, 10)


class ConsoleDevice:
    """One further console for one life of a guest; ``devid`` is one of ``DEVIDS``. Loop thread only.

    ``on_fault(name, exception)`` gets what is our own fault, as :class:`xenpvd.tasks.Tasks` says.
    """

    def __init__(
        self,
        console: Console,
        devid: int,
        *,
        domid: int,
        xenstore: XenstoreOps,
        evtchn: EvtchnOps,
        gnttab: GnttabOps,
        on_fault: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self.console = console
        self.devid = devid
        self._evtchn = evtchn
        self._gnttab = gnttab
        self._grant: Grant | None = None
        self._device = XenbusDevice(
            "console",
            devid,
            label=f"console {console.name}",
            domid=domid,
            xenstore=xenstore,
            driver=self,
            on_fault=on_fault,
        )

    def start(self) -> None:
        """Publish it to the guest, and serve it from now on."""
        frontend = {
            "name": self.console.name,
            "type": "xenpvd",
            "output": "xenpvd",
            "connection": "xenpvd",
            "limit": "1048576",
        }
        self._device.start(frontend, {"name": self.console.name, "protocol": "vt100"})

    async def wait_connected(self, timeout: float) -> None:
        """Raises :class:`TimedOut`, :class:`XenpvdError`; see :meth:`XenbusDevice.wait_connected`."""
        await self._device.wait_connected(timeout)

    async def remove(self, *, force: bool, timeout: float) -> None:
        """Take it from the guest. Raises :class:`TimedOut` if the guest does not let go; it stays then."""
        await self._device.remove(force=force, timeout=timeout)

    async def disconnect(self) -> None:
        """The VM is gone: take the last bytes, and remove the nodes."""
        await self._device.close()

    @property
    def state(self) -> str:
        """Of our end: a XenbusState's name."""
        return self._device.state.name

    @property
    def error(self) -> str | None:
        return self._device.error

    # ---- the driver's half (device.Driver)

    def on_connect(self, frontend: Frontend) -> None:
        gref, remote = frontend.number("ring-ref"), frontend.number("port")
        with contextlib.ExitStack() as stack:
            try:
                grant = self._gnttab.map(gref)
            except GrantError as fault:
                raise GuestFault(f"ring-ref {gref} cannot be mapped: {fault}") from None
            stack.callback(grant.unmap)
            try:
                port = self._evtchn.bind_interdomain(remote)
            except XenError as fault:
                raise GuestFault(f"port {remote} cannot be bound: {fault}") from None
            except (HostError, KvmError) as fault:
                raise OSError(fault.data["errno"], str(fault)) from None
            stack.callback(port.close)
            self.console.connect(grant.page, port)
            stack.pop_all()
            self._grant = grant

    async def on_disconnect(self) -> None:
        if self._grant is not None:
            await self.console.disconnect()
        if self._grant is not None:  # else another call has done it meanwhile
            grant, self._grant = self._grant, None
            grant.unmap()

    def on_change(self) -> None:
        """Whoever waits for it sees it; nobody is told."""
