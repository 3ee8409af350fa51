"""The guest: its state, its lives and the verbs on it.

What outlives a VM is here (store, console recordings, open images); what does not is a ``Domain``. All verbs
run in the loop; those that change the guest's life are done one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable

from xenpvd.backends.blkif.image import Image
from xenpvd.backends.blkif.vdev import devid
from xenpvd.backends.console.backend import Console, Viewer
from xenpvd.backends.console.history import History
from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.check import host_memory, load_image
from xenpvd.config import DiskConfig, GuestConfig
from xenpvd.domain import HOME, Domain, Surroundings
from xenpvd.errors import BadConfig, Exists, NotFound, StateError, TimedOut, XenpvdError
from xenpvd.events import Publish
from xenpvd.tasks import Tasks
from xenpvd.views import (
    ConsoleChunk,
    DriveAdded,
    DriveInfo,
    GuestStatus,
    HostInfo,
    Phase,
    Runstate,
    ShutdownResult,
    XenstoreNode,
)
from xenpvd.vmm.boot import find_shim
from xenpvd.vmm.memory import page_kind

log = logging.getLogger(__name__)

#: Bytes of the shim's own log that are kept, and of both logs that a crash event carries
XEN_LOG = 1 << 18
TAIL = 2048
#: How long hot-added or configured disks may take, in the sense of "for ever"
_FOREVER = 1e6

_ALIVE = (Runstate.STARTING, Runstate.RUNNING, Runstate.STOPPING)
_STARTABLE = (Runstate.DEFINED, Runstate.STOPPED, Runstate.CRASHED)


class Guest:
    """``on_end`` is called when the guest is over and its policy says that its daemon is, too."""

    def __init__(self, publish: Publish, on_end: Callable[[], None]) -> None:
        self.config: GuestConfig | None = None
        self.state = Runstate.DEFINED
        self.phase: Phase | None = None
        self.reason: str | None = None
        self._publish = publish
        self._on_end = on_end
        self._tasks = Tasks(self.fault)
        self._lives = asyncio.Lock()
        self._changed = asyncio.Event()
        self._domain: Domain | None = None
        self._images: dict[str, tuple[DiskConfig, Image]] = {}
        self._uuid = str(uuid.uuid4())
        self._started = 0.0
        self._boot_times: dict[str, float] = {}
        self._hypercalls = 0
        self._host: HostInfo | None = None
        self._shim: str | None = None
        self.xenstore = Xenstore(publish, self.fault)
        self.console = Console(publish, 1 << 20)
        self.xen_log = History(XEN_LOG)

    # -- life

    async def start(self, config: GuestConfig) -> None:
        """Boot. Raises what is wrong with the files, the images or the host; the guest is as before then."""
        async with self._lives:
            if self.state not in _STARTABLE:
                raise StateError(
                    f"cannot start {config.name}: it is {self.state}. Shut it down or destroy it first.",
                    self.state,
                    list(_STARTABLE),
                )
            before, self.config = self.state, config
            self.console.history.limit = config.console.history
            self._switch(Runstate.STARTING)
            try:
                await self._open_images(config)
                await self._boot(config)
            except BaseException:
                self._close_images()
                self._switch(before, "start failed")
                raise

    async def _boot(self, config: GuestConfig) -> None:
        """One life begins; the images are open."""
        host_memory(config)
        image = await asyncio.to_thread(load_image, config)
        self._shim = find_shim(config.shim.path)
        self.phase, self.reason, self._boot_times = None, None, {}
        self._started = time.monotonic()
        surroundings = Surroundings(self._uuid, self.xenstore, self.console, self._publish, self.fault)
        self._domain = domain = await Domain.create(
            config, image, self._images, surroundings, _Owner(self), lambda: self._reached(Phase.XENBUS)
        )
        caps = domain.machine.xen_caps
        self._host = HostInfo(
            "kvm-xen", f"KVM_CAP_XEN_HVM {caps:#x}: events stay in the kernel", caps, *page_kind()
        )
        self._tasks.spawn(self._watch_console(domain), "console phase")
        self._tasks.spawn(self._watch_devices(domain), "devices phase")
        self._reached(Phase.CREATED)
        domain.start()
        self._switch(Runstate.RUNNING)

    async def shutdown(self, mode: str, timeout: float, then: str) -> ShutdownResult:
        """Ask the guest by control/shutdown and wait for its end, at most ``timeout`` seconds.

        Raises :class:`TimedOut` if it has not ended by then; with ``then`` "destroy" it is destroyed instead.
        """
        if mode not in ("poweroff", "reboot", "halt") or then not in ("fail", "destroy"):
            raise BadConfig("cannot shut down: mode is poweroff, reboot or halt, then is fail or destroy.")
        domain = self._running("shut down")
        begin = time.monotonic()
        node = f"{HOME}/control/shutdown"
        acknowledged: float | None = None
        watch = self.xenstore.client.watch(node)
        try:
            self.xenstore.client.write(node, mode)
            async with asyncio.timeout(timeout):
                async for _ in watch:
                    if self._domain is not domain or not self.xenstore.exists(node):
                        break
                    if not self.xenstore.client.read(node):
                        acknowledged = round(time.monotonic() - begin, 3)
                        self._publish("guest.shutdown", mode=mode, acknowledged=acknowledged)
                        break
                await self._wait_until(lambda: self._domain is not domain)
        except TimeoutError:
            if then == "destroy":
                await self.destroy()
            else:
                said = "acknowledged the request but has not ended" if acknowledged else "has not answered"
                raise TimedOut(
                    f"cannot shut down: the guest {said} after {timeout:g} s; it goes on. Try again with a "
                    "longer timeout, or destroy it.",
                    acknowledged=acknowledged,
                ) from None
        finally:
            watch.close()
        return ShutdownResult(mode, acknowledged, round(time.monotonic() - begin, 3), self.state)

    async def destroy(self) -> None:
        """End the VM now; what it has not flushed is lost to it. Nothing to do if there is none."""
        async with self._lives:
            if self._domain is not None:
                await self._end_life(Runstate.STOPPED, "destroyed")
            elif self.state is Runstate.CRASHED:
                self._switch(Runstate.STOPPED, "destroyed")
            self._close_images()
        self._on_end()

    def _machine_ended(self, domain: Domain, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        if domain is self._domain:
            self._tasks.spawn(self._after_life(domain, reason, detail, regs), "end of life")

    async def _after_life(
        self, domain: Domain, reason: str, detail: str, regs: dict[str, int] | None
    ) -> None:
        """The guest has ended by itself: do what its policy says."""
        async with self._lives:
            config = self.config
            if domain is not self._domain or config is None:
                return
            crashed = reason not in ("poweroff", "reboot")
            await self._end_life(Runstate.CRASHED if crashed else Runstate.STOPPED, reason)
            if crashed:
                self._publish(
                    "guest.crash",
                    reason=reason,
                    detail=detail,
                    regs=regs,
                    console_tail=self.console.history.tail(TAIL).decode("utf-8", "replace"),
                    xen_tail=self.xen_log.tail(TAIL).decode("utf-8", "replace"),
                )
            policy = config.on_crash if crashed else getattr(config, f"on_{reason}")
            if policy == "restart":
                self._switch(Runstate.STARTING, reason)
                try:
                    await self._boot(config)
                except XenpvdError as fault:
                    log.error("cannot restart the guest: %s", fault)
                    self._switch(Runstate.CRASHED, "restart failed")
                else:
                    return
            self._close_images()
        if policy == "destroy":
            self._on_end()

    async def _end_life(self, state: Runstate, reason: str) -> None:
        domain = self._domain
        assert domain is not None
        self._switch(Runstate.STOPPING, reason)
        await domain.end()
        self._hypercalls = domain.machine.hypercall_count
        self._domain = None
        self._switch(state, reason)

    async def close(self) -> None:
        """The daemon ends: no life after this."""
        async with self._lives:
            if self._domain is not None:
                await self._end_life(Runstate.STOPPED, "daemon ends")
            self._close_images()
        await self._tasks.cancel()
        self.console.close()
        self.xen_log.close()

    # -- what is seen

    def status(self, name: str) -> GuestStatus:
        config, domain = self.config, self._domain
        return GuestStatus(
            name=name,
            state=self.state,
            memory_mib=config.memory if config else 0,
            vcpus=config.vcpus if config else 0,
            domid=1,
            phase=self.phase,
            reason=self.reason,
            uptime=round(time.monotonic() - self._started, 3) if domain else None,
            boot_times=dict(self._boot_times),
            hypercalls=domain.machine.hypercall_count if domain else self._hypercalls,
            host=self._host,
            shim=self._shim,
            viewers=self.console.viewers,
        )

    async def wait(self, for_: str, timeout: float) -> None:
        """Wait for a phase, a state, or "console:TEXT" (that text on the console, from now on or before).

        Raises :class:`TimedOut`, :class:`StateError` if it cannot come any more.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._wait_for(for_)
        except TimeoutError:
            raise TimedOut(
                f"{for_} has not come after {timeout:g} s: the guest is {self.state}, phase {self.phase}. "
                "See xenpvctl log for what it printed."
            ) from None

    async def _wait_for(self, for_: str) -> None:
        if for_ in list(Runstate):
            await self._wait_until(lambda: self.state == for_)
            return
        dead = False

        def settled() -> bool:
            nonlocal dead
            dead = self.state not in _ALIVE
            return dead or (for_ in list(Phase) and self._has_reached(Phase(for_)))

        if for_.startswith("console:") and len(for_) > len("console:"):
            find = self._tasks.spawn(self.console.history.find(for_[8:].encode()), "console wait")
            end = self._tasks.spawn(self._wait_until(settled), "end wait")
            try:
                await asyncio.wait({find, end}, return_when=asyncio.FIRST_COMPLETED)
                dead = not find.done()
            finally:
                find.cancel()
                end.cancel()
        elif for_ in list(Phase):
            await self._wait_until(settled)
        else:
            names = ", ".join([*Phase, *Runstate])
            raise BadConfig(f"cannot wait for {for_!r}: it is none of {names}, console:TEXT.")
        if dead and not (for_ in list(Phase) and self._has_reached(Phase(for_))):
            tail = self.console.history.tail(TAIL) or self.xen_log.tail(TAIL)
            raise StateError(
                f"{for_} will not come: the guest is {self.state} ({self.reason}). It printed last:\n"
                + tail.decode("utf-8", "replace"),
                self.state,
                list(_ALIVE),
            )

    # -- disks

    def drive_list(self) -> list[DriveInfo]:
        return [drive.info() for drive in self._domain.drives.values()] if self._domain else []

    async def drive_add(self, disk: DiskConfig, wait: bool, timeout: float) -> DriveAdded:
        """Hot-add a disk. With ``wait`` it returns once the guest uses it; else, or on a fault, nothing of it
        is left. The very same disk again changes nothing."""
        begin = time.monotonic()
        domain = self._running(f"add {disk.vdev}")
        there = self._images.get(disk.vdev)
        if there is not None and there[0] != disk:
            raise Exists(
                f"cannot add {disk.vdev}: there is one already ({there[0].target}). Remove it first.",
                kind="drive",
                name=disk.vdev,
            )
        if there is None:
            number = devid(disk.vdev)
            if any(devid(other) == number for other in self._images):
                raise Exists(
                    f"cannot add {disk.vdev}: its number {number} is taken.", kind="drive", name=disk.vdev
                )
            image = await asyncio.to_thread(Image.open, disk.target, readonly=disk.access == "ro")
            if domain is not self._domain or disk.vdev in self._images:
                image.close()
                raise StateError(
                    f"cannot add {disk.vdev}: the guest has changed meanwhile.", self.state, ["running"]
                )
            self._images[disk.vdev] = (disk, image)
            domain.add_drive(disk, image)
        drive = domain.drives[disk.vdev]
        if not wait:
            return DriveAdded(drive.info(), there is None, None)
        try:
            await drive.wait_connected(timeout)
        except XenpvdError as fault:
            if there is None:
                end = drive.info().frontend_state
                await self._drop_drive(domain, disk.vdev, force=True, timeout=timeout)
                if isinstance(fault, TimedOut):
                    raise TimedOut(
                        f"{disk.vdev} was not taken up in {timeout:g} s (the guest's end is {end}) and was removed "
                        "again. Is the guest booted, with a block front end? Try a longer timeout."
                    ) from None
            raise
        return DriveAdded(drive.info(), there is None, round((time.monotonic() - begin) * 1000, 1))

    async def drive_remove(self, vdev: str, force: bool, missing_ok: bool, timeout: float) -> bool:
        domain = self._domain
        if domain is None or vdev not in domain.drives:
            if missing_ok:
                return False
            raise NotFound(f"cannot remove {vdev}: there is no such drive. See drive.list.", "drive", vdev)
        await self._drop_drive(domain, vdev, force=force, timeout=timeout)
        return True

    async def _drop_drive(self, domain: Domain, vdev: str, *, force: bool, timeout: float) -> None:
        await domain.drives[vdev].remove(force=force, timeout=timeout)
        domain.drives.pop(vdev, None)
        self._images.pop(vdev, None)

    async def _open_images(self, config: GuestConfig) -> None:
        for disk in config.disk:
            devid(disk.vdev)
            image = await asyncio.to_thread(Image.open, disk.target, readonly=disk.access == "ro")
            self._images[disk.vdev] = (disk, image)

    def _close_images(self) -> None:
        for _, image in self._images.values():
            image.close()
        self._images.clear()

    # -- console and store

    def console_read(self, stream: str, since: int, limit: int) -> ConsoleChunk:
        """Part of a recording: ``stream`` is "guest" (hvc0) or "xen" (the shim's log). Negative: from the end."""
        histories = {"guest": self.console.history, "xen": self.xen_log}
        if stream not in histories:
            raise NotFound(f"there is no console stream {stream!r}: guest and xen are.", "console", stream)
        history = histories[stream]
        wanted = max(0, history.end + since) if since < 0 else since
        start, data = history.read(wanted, limit)
        return ConsoleChunk(start, start + len(data), max(0, start - wanted), data)

    async def console_write(self, data: bytes) -> int:
        self._running("type")
        await self.console.type(data)
        return len(data)

    def console_attach(self, mode: str, since: int | None, who: str) -> Viewer:
        return self.console.attach(mode, since, who)

    def xenstore_tree(self, path: str, depth: int) -> Iterable[XenstoreNode]:
        return self.xenstore.tree(path, depth)

    # -- inside

    def _running(self, what: str) -> Domain:
        if self.state is not Runstate.RUNNING or self._domain is None:
            raise StateError(
                f"cannot {what}: the guest is {self.state}. It must be running.",
                self.state,
                [Runstate.RUNNING],
            )
        return self._domain

    def _switch(self, state: Runstate, reason: str | None = None) -> None:
        before, self.state, self.reason = self.state, state, reason
        self._publish("guest.state", from_=before, to=state, reason=reason)
        self._wake()

    def _reached(self, phase: Phase) -> None:
        """Announce a phase, once a life, in order: what is later implies what is earlier."""
        for step in Phase:
            if step not in self._boot_times:
                seconds = round(time.monotonic() - self._started, 3)
                self._boot_times[step] = seconds
                self.phase = step
                self._publish("guest.boot", phase=step, seconds=seconds)
                self._wake()
            if step is phase:
                return

    def _has_reached(self, phase: Phase) -> bool:
        return phase in self._boot_times

    async def _watch_console(self, domain: Domain) -> None:
        history = self.console.history
        if await history.wait(history.end) and domain is self._domain:
            self._reached(Phase.KERNEL)

    async def _watch_devices(self, domain: Domain) -> None:
        await self._wait_until(lambda: domain is not self._domain or self._has_reached(Phase.XENBUS))
        for drive in list(domain.drives.values()):
            with contextlib.suppress(XenpvdError):  # drive.error has told; the phase does not come
                await drive.wait_connected(_FOREVER)
                continue
            return
        if domain is self._domain:
            self._reached(Phase.DEVICES)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_until(self, predicate: Callable[[], bool]) -> None:
        while not predicate():
            await self._changed.wait()

    def fault(self, name: str, fault: BaseException) -> None:
        """A task of ours has failed: that is the guest's end, not the daemon's."""
        log.error("task %s failed", name, exc_info=fault)
        if self._domain is not None:
            self._domain.machine.end("fault", f"{name}: {type(fault).__name__}: {fault}", None)


class _Owner:
    """:class:`xenpvd.vmm.machine.Owner`: from the vCPU threads into the loop."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._loop = asyncio.get_running_loop()

    def machine_log(self, data: bytes) -> None:
        self._post(self._log, data)

    def machine_ended(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        self._post(self._end, reason, detail, regs)

    def _log(self, data: bytes) -> None:
        self._guest._reached(Phase.SHIM)
        self._guest.xen_log.append(data)

    def _end(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        domain = self._guest._domain
        if domain is not None:
            self._guest._machine_ended(domain, reason, detail, regs)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
            self._loop.call_soon_threadsafe(call, *args)
