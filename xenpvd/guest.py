"""The guest: its lives, one after the other, and the verbs that change them.

What outlives a VM is kept here (the store, the console, the disks' images); one VM with all that is connected
to it is a ``Domain``. What ends or begins a life is done one at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from functools import partial

from xenpvd.backends.console.backend import Console
from xenpvd.backends.console.history import History
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.check import host_memory, load_image
from xenpvd.config import GuestConfig
from xenpvd.domain import HOME, Domain, Surroundings
from xenpvd.drives import Drives
from xenpvd.errors import BadConfig, StateError, TimedOut, XenpvdError
from xenpvd.events import Publish
from xenpvd.progress import STARTABLE, Progress
from xenpvd.tasks import Tasks, in_thread
from xenpvd.views import GuestStatus, HostInfo, Phase, Runstate, ShutdownResult
from xenpvd.vmm.boot import find_shim
from xenpvd.vmm.machine import Machine
from xenpvd.vmm.memory import page_kind

log = logging.getLogger(__name__)

#: Bytes of the shim's own log that are kept, and of each log that a crash event carries
XEN_LOG = 1 << 18
TAIL = 4096
#: How long a configured disk may take to be used: for ever, in seconds
_FOREVER = 1e6


class Guest:
    """``on_end`` is called when the guest is over and its policy is that its daemon is, too."""

    def __init__(self, publish: Publish, on_end: Callable[[], None]) -> None:
        self.config: GuestConfig | None = None
        self.progress = Progress(publish)
        self.drives = Drives()
        self.xenstore = Xenstore(publish, self.fault)
        self.console = Console(publish, 1 << 20)
        #: the shim's own log
        self.xen_log = History(XEN_LOG)
        self.domain: Domain | None = None
        self._publish = publish
        self._on_end = on_end
        self._tasks = Tasks(self.fault)
        self._lives = asyncio.Lock()
        self._uuid = str(uuid.uuid4())
        self._machine: Machine | None = None  # of the last life, for its counts
        self._host: HostInfo | None = None
        self._shim: str | None = None

    @property
    def state(self) -> Runstate:
        return self.progress.state

    def running(self, what: str) -> Domain:
        """The domain, for a verb that needs a running guest. Raises :class:`StateError`."""
        if self.state is not Runstate.RUNNING or self.domain is None:
            raise StateError(
                f"cannot {what}: the guest is {self.state}. It must be running.",
                self.state,
                [Runstate.RUNNING],
            )
        return self.domain

    async def start(self, config: GuestConfig) -> None:
        """Boot. Raises what is wrong with the files, the images or the host; the guest is as before then."""
        async with self._lives:
            before = self.state
            if before not in STARTABLE:
                raise StateError(
                    f"cannot start {config.name}: it is {before}. Shut it down or destroy it first.",
                    before,
                    list(STARTABLE),
                )
            self.config = config
            self.console.history.limit = config.console.history
            self.progress.begin_life()
            self.progress.switch(Runstate.STARTING)
            try:
                await self.drives.open_all(config.disk)
                await self._boot(config)
            except BaseException:
                self.drives.close_all()
                self.progress.switch(before, "start failed")
                raise

    async def _boot(self, config: GuestConfig) -> None:
        """One life begins; the images are open."""
        host_memory(config)
        image = await in_thread(partial(load_image, config))
        self._shim = find_shim(config.shim.path)
        surroundings = Surroundings(self._uuid, self.xenstore, self.console, self._publish, self.fault)
        self.domain = domain = await Domain.create(
            config,
            image,
            self.drives.images,
            surroundings,
            self,
            lambda: self.progress.reached(Phase.XENBUS),
        )
        self._machine = domain.machine
        caps = domain.machine.xen_caps
        why = f"KVM_CAP_XEN_HVM {caps:#x}: events stay in the kernel"
        self._host = HostInfo("kvm-xen", why, caps, *page_kind())
        self._tasks.spawn(self._watch_console(domain), "console phase")
        self._tasks.spawn(self._watch_devices(domain), "devices phase")
        self.progress.reached(Phase.CREATED)
        try:
            domain.start()
        except BaseException:
            self.domain = None
            await domain.end()
            raise
        self.progress.switch(Runstate.RUNNING)

    async def shutdown(self, mode: str, timeout: float, then: str) -> ShutdownResult:
        """Ask the guest by control/shutdown and wait for its end, at most ``timeout`` seconds.

        Raises :class:`TimedOut` if it has not ended by then; with ``then`` "destroy" it is destroyed instead.
        """
        if mode not in ("poweroff", "reboot", "halt") or then not in ("fail", "destroy"):
            raise BadConfig("cannot shut down: mode is poweroff, reboot or halt; then is fail or destroy.")
        domain = self.running("shut down")
        begin = time.monotonic()
        acknowledged: float | None = None
        try:
            async with asyncio.timeout(timeout):
                if await self._ask(domain, mode):
                    acknowledged = round(time.monotonic() - begin, 3)
                    self._publish("guest.shutdown", mode=mode, acknowledged=acknowledged)
                await self.progress.until(lambda: self.domain is not domain)
        except TimeoutError:
            if then == "fail":
                said = "acknowledged but has not ended" if acknowledged is not None else "has not answered"
                raise TimedOut(
                    f"cannot shut down: the guest {said} after {timeout:g} s; it goes on. Try again with a "
                    "longer timeout, or destroy it.",
                    acknowledged=acknowledged,
                ) from None
            await self.destroy()
        return ShutdownResult(mode, acknowledged, round(time.monotonic() - begin, 3), self.state)

    async def _ask(self, domain: Domain, mode: str) -> bool:
        """Write control/shutdown; True once the guest has cleared it, False if it was gone before."""
        node = f"{HOME}/control/shutdown"
        store = self.xenstore.client
        watch = store.watch(node)
        try:
            store.write(node, mode)
            async for _ in watch:
                if self.domain is not domain or not self.xenstore.exists(node):
                    return False
                if not store.read(node):
                    return True
            return False
        finally:
            watch.close()

    async def destroy(self) -> None:
        """End the VM now; what it has not flushed is lost to it. No error if there is none."""
        async with self._lives:
            if self.domain is not None:
                await self._end_life(Runstate.STOPPED, "destroyed")
            elif self.state is Runstate.CRASHED:
                self.progress.switch(Runstate.STOPPED, "destroyed")
            self.drives.close_all()
        self._on_end()

    def machine_log(self, data: bytes) -> None:
        """:class:`xenpvd.vmm.machine.Owner`: a piece of the shim's own log."""
        self.progress.reached(Phase.SHIM)
        self.xen_log.append(data)

    def machine_ended(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        """:class:`xenpvd.vmm.machine.Owner`: the machine has ended by itself."""
        if self.domain is not None:
            self._tasks.spawn(self._after_life(self.domain, reason, detail, regs), "end of life")

    async def _after_life(
        self, domain: Domain, reason: str, detail: str, regs: dict[str, int] | None
    ) -> None:
        """Take the machine down and do what the guest's policy says."""
        async with self._lives:
            if domain is not self.domain:
                return
            config = domain.config
            crashed = reason not in ("poweroff", "reboot")
            policy = config.on_crash if crashed else getattr(config, f"on_{reason}")
            over = Runstate.CRASHED if crashed else Runstate.STOPPED
            await self._end_life(Runstate.STARTING if policy == "restart" else over, reason)
            if policy == "restart" and domain.hung:  # its image may still be written with the old life's data
                policy = "preserve"
                self.progress.switch(Runstate.CRASHED, f"not restarted: disk {domain.hung[0]} hangs")
            if crashed:
                self._publish("guest.crash", reason=reason, detail=detail, regs=regs, **self._tails())
            if policy == "restart" and await self._restart(config):
                return
            self.drives.close_all()
        if policy == "destroy":
            self._on_end()

    async def _restart(self, config: GuestConfig) -> bool:
        try:
            await self._boot(config)
        except Exception as fault:
            log.error("cannot restart the guest", exc_info=fault)
            self.progress.switch(Runstate.CRASHED, f"restart failed: {fault}")
            return False
        return True

    async def _end_life(self, state: Runstate, reason: str) -> None:
        domain = self.domain
        assert domain is not None
        self.progress.switch(Runstate.STOPPING, reason)
        try:
            await domain.end()
        except Exception as fault:  # ours; what could be ended was
            log.error("the end of a life failed", exc_info=fault)
        self.domain = None
        if state is Runstate.STARTING:
            self.progress.begin_life()
        self.progress.switch(state, reason)

    async def close(self) -> None:
        """The daemon ends: no life after this."""
        async with self._lives:
            if self.domain is not None:
                await self._end_life(Runstate.STOPPED, "daemon ends")
            self.drives.close_all()
        await self._tasks.cancel()
        self.console.close()
        self.xen_log.close()

    def status(self, name: str) -> GuestStatus:
        config, progress, machine = self.config, self.progress, self._machine
        return GuestStatus(
            name=name,
            state=progress.state,
            memory_mib=config.memory if config else 0,
            vcpus=config.vcpus if config else 0,
            domid=1,
            phase=progress.phase,
            reason=progress.reason,
            uptime=progress.uptime if self.domain else None,
            boot_times=dict(progress.boot_times),
            hypercalls=machine.hypercall_count if machine else 0,
            log_writes=machine.log_writes if machine else 0,
            viewers=self.console.viewers,
            host=self._host,
            shim=self._shim,
        )

    async def wait(self, for_: str, timeout: float, since: int = 0) -> None:
        """See :meth:`Progress.wait`; a text counts from offset ``since`` of the console's recording on.

        If it will not come because the guest is over, the fault's data has what was printed last.
        """
        try:
            await self.progress.wait(for_, timeout, lambda text: self.console.history.find(text, since))
        except StateError as fault:
            fault.data |= self._tails()
            raise

    def _tails(self) -> dict[str, str]:
        """What the guest and the shim printed last."""
        histories = {"console_tail": self.console.history, "xen_tail": self.xen_log}
        return {key: history.tail(TAIL).decode("utf-8", "replace") for key, history in histories.items()}

    def fault(self, name: str, fault: BaseException) -> None:
        """Something of ours has failed: that is the guest's end, not the daemon's."""
        log.error("%s failed", name, exc_info=fault)
        if self.domain is not None:
            self.domain.machine.end("fault", f"{name}: {type(fault).__name__}: {fault}", None)

    async def _watch_console(self, domain: Domain) -> None:
        history = self.console.history
        if await history.wait(history.end) and domain is self.domain:
            self.progress.reached(Phase.KERNEL)

    async def _watch_devices(self, domain: Domain) -> None:
        progress = self.progress
        await progress.until(lambda: domain is not self.domain or progress.has_reached(Phase.XENBUS))
        for drive in list(domain.drives.values()):
            try:
                await drive.wait_connected(_FOREVER)
            except XenpvdError:  # drive.error has told why; the phase does not come
                return
        if domain is self.domain:
            progress.reached(Phase.DEVICES)
