"""The guest: its lives, one after the other, and the verbs that change them.

What outlives a VM is kept here (the store, the console, the disks' images); one VM with all that is connected
to it is a ``Domain``. What ends or begins a life is done one at a time, under ``_lives``; nothing sleeps
there. What the running guest itself is asked is in ``requests.py`` and ``balloon.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.backends.xenstore.socket import XenstoreSocket
from xenpvd.backoff import Backoff
from xenpvd.balloon import Balloon
from xenpvd.changes import Changes, between
from xenpvd.channels import Channels
from xenpvd.check import host_memory, load_image
from xenpvd.config import DiskConfig, GuestConfig
from xenpvd.consoles import Consoles
from xenpvd.descriptors import Descriptors
from xenpvd.domain import DOMID, HOME, Domain, Surroundings
from xenpvd.drives import Drives
from xenpvd.errors import Busy, HostError, NotFound, StateError
from xenpvd.events import Publish
from xenpvd.progress import STARTABLE, Progress
from xenpvd.requests import Requests
from xenpvd.signs import shown
from xenpvd.tasks import Tasks, in_thread
from xenpvd.views import GuestStatus, Phase, Runstate, ShutdownResult
from xenpvd.vmm.boot import find_shim
from xenpvd.vmm.machine import Machine

log = logging.getLogger(__name__)

#: Bytes of each log that a crash event carries
TAIL = 4096

#: Seconds that a redefinition waits for its disks' limits
LIMITS_TIME = 2.0


class Guest:
    """``on_end`` is called when the guest is over and its policy is that its daemon is, too."""

    domid = DOMID

    def __init__(self, publish: Publish, on_end: Callable[[], None], backoff: Backoff | None = None) -> None:
        self.config: GuestConfig | None = None
        #: what a start without a definition runs
        self.next_config: GuestConfig | None = None
        self.progress = Progress(publish)
        self.descriptors = Descriptors()
        self.drives = Drives(self.descriptors)
        self.xenstore = Xenstore(publish, self.fault)
        self.consoles = Consoles(publish)
        self.channels = Channels(self.consoles, publish)
        self.requests = Requests(self, publish)
        self.balloon = Balloon(self, publish)
        self.domain: Domain | None = None
        #: of this life, or of the last: its counts can still be read
        self.machine: Machine | None = None
        self._publish = publish
        self._on_end = on_end
        self._backoff = backoff or Backoff()
        self._tasks = Tasks(self.fault)
        self._lives = asyncio.Lock()
        self._waiting: tuple[Domain, asyncio.Task[None]] | None = None  # the life before; begins the next
        self._opening: asyncio.Timeout | None = None  # files, for a life that begins
        self._last = False  # no life after this one
        self._uuid = str(uuid.uuid4())
        self._shim: str | None = None

    def xenstore_socket(self, path: Path) -> XenstoreSocket:
        """The store for the tools of domain 0; not started yet."""
        return XenstoreSocket(self.xenstore, path)

    @property
    def state(self) -> Runstate:
        return self.progress.state

    def running(self, what: str) -> Domain:
        """The domain, for a verb that needs a running guest. Raises :class:`StateError`."""
        if self.state is not Runstate.RUNNING or self.domain is None:
            cure = "; resume it first" if self.state is Runstate.PAUSED else ""
            raise self._refusal(what, f"running{cure}", [Runstate.RUNNING])
        return self.domain

    def there(self, what: str) -> Domain:
        """The domain, for a verb that needs a VM, running or paused. Raises :class:`StateError`."""
        allowed: list[str] = [Runstate.RUNNING, Runstate.PAUSED]
        if self.state not in allowed or self.domain is None:
            raise self._refusal(what, "running or paused", allowed)
        return self.domain

    def check_over(self, what: str) -> None:
        """For what a guest would not survive. Raises :class:`StateError` unless it is over, or never was."""
        if self.state not in STARTABLE:
            why = (
                f"cannot {what}: there is a guest, {self.state}. Say what becomes of it: shutdown or destroy."
            )
            raise StateError(why, self.state, list(STARTABLE))

    def _refusal(self, what: str, needs: str, allowed: list[str]) -> StateError:
        cure = (
            f" ({self.progress.reason}; reset does so at once, destroy gives it up)" if self._waiting else ""
        )
        why = f"cannot {what}: the guest is {self.state}{cure}. It must be {needs}."
        return StateError(why, self.state, allowed)

    # -- lives that the operator begins, stops and ends

    async def start(self, config: GuestConfig, paused: bool = False) -> None:
        """Boot, or with ``paused`` make all ready for :meth:`resume`.

        Raises what is wrong with the files, the images or the host; the guest is as before then. A guest that
        waits for its restart begins at once; if ``config`` is another one, by that.
        """
        async with self._lives:
            if self._last:
                raise StateError(f"cannot start {config.name}: its daemon ends.", self.state, [])
            waited = self._stop_waiting() is not None
            before = Runstate.STOPPED if waited else self.state
            if before not in STARTABLE:
                raise StateError(
                    f"cannot start {config.name}: it is {before}. Shut it down or destroy it first.",
                    before,
                    list(STARTABLE),
                )
            begun = waited and config == self.config  # its images are open, those added to it, too
            self.config = self.next_config = config
            self._backoff.forget()
            self.progress.begin_life()
            self.progress.switch(Runstate.STARTING)
            try:
                await self.consoles.configure(config.console)
                if not begun:
                    await self.channels.configure(config.channel)
                    self.requests.forget()
                    self.balloon.forget()
                    await self.drives.close_all()
                    async with self._given_up_by_an_end():
                        await self.drives.open_all(config.disk)
                await self._boot(config, paused)
            except BaseException:
                await self.drives.close_all()
                self.progress.switch(before, "start failed")
                raise

    async def pause(self) -> None:
        """No vCPU runs when it returns; the disks finish what was asked of them. No error if it is paused."""
        async with self._lives:
            if self.state is Runstate.PAUSED:
                return
            domain = self.running("pause")
            await in_thread(domain.machine.pause)
            if domain.machine.over:  # its end waits for ``_lives``
                raise StateError("cannot pause: the guest has just ended. See its status.", self.state, [])
            self.progress.switch(Runstate.PAUSED)

    async def resume(self) -> None:
        """Xen's time has gone on meanwhile, as with xl, and so has the guest's clock. No error if it runs."""
        async with self._lives:
            domain = self.there("resume")
            if self.state is Runstate.PAUSED:
                domain.machine.resume()
                self.progress.switch(Runstate.RUNNING)

    async def reset(self) -> None:
        """End this life as by a button, and begin another one, which runs even if this one was paused.

        What the guest has not flushed is lost to it. A guest that waits for its restart begins at once.
        Raises what keeps the next life from beginning.
        """
        async with self._lives:
            if self._last:
                raise StateError("cannot reset: the daemon ends, and the guest with it.", self.state, [])
            before = self._stop_waiting()
            if before is None:
                before = self.there("reset")
                await self._end_life("reset")
            self._backoff.forget()
            self._next_life("reset")
            await self._reboot(before)

    async def redefine(self, before: GuestConfig, config: GuestConfig) -> Changes:
        """Its file, which said ``before``, says ``config`` now: take what counts at once, and the rest for
        the next start. A guest that was started by another definition keeps that.

        Raises :class:`HostError` for a log that cannot be written; nothing has changed then.
        """
        async with self._lives:
            if self.config is None or self.next_config != before:
                unheard = between(before, config)
                return Changes((), unheard.applied + unheard.next_start, before)
            changes = between(self.config, config)
            if config.console != self.config.console:
                try:
                    await self.consoles.configure(config.console)
                except HostError:
                    await self.consoles.configure(self.config.console)
                    raise
            limiting = {
                self._tasks.spawn(self._limit(self.domain, disk), f"limits of {disk.vdev}")
                for number, disk in enumerate(config.disk)
                if f"disk.{number}.limits" in changes.applied
            }
            self.config, self.next_config = changes.running, config
            for domain in (self.domain, self._waiting[0] if self._waiting else None):
                if domain is not None:
                    domain.config = changes.running
        if limiting:  # a disk whose storage hangs has them when it goes on; no life's end waits for that
            await asyncio.wait(limiting, timeout=LIMITS_TIME)
        return changes

    async def _limit(self, domain: Domain | None, disk: DiskConfig) -> None:
        with contextlib.suppress(NotFound):  # it was removed
            await self.drives.set_limits(domain, disk.vdev, disk.limits)

    async def shutdown(self, mode: str, timeout: float, then: str) -> ShutdownResult:
        """See :meth:`Requests.shutdown`."""
        return await self.requests.shutdown(mode, timeout, then)

    async def destroy(self) -> None:
        """End the VM now; what it has not flushed is lost to it. No error if there is none."""
        self._give_up_opening()
        async with self._lives:
            waited = self._stop_waiting() is not None
            if self.domain is not None:
                await self._end_life("destroyed")
                waited = True
            if waited or self.state is Runstate.CRASHED:
                self.progress.switch(Runstate.STOPPED, "destroyed")
            await self.drives.close_all()
        self._on_end()

    def no_more_lives(self) -> None:
        """The daemon is about to end: this life, if there is one, is the last."""
        self._last = True

    async def close(self) -> None:
        """The daemon ends, and the guest with it."""
        self.no_more_lives()
        self._give_up_opening()
        async with self._lives:
            waited = self._stop_waiting() is not None
            if self.domain is not None:
                await self._end_life("daemon ends")
                waited = True
            if waited:
                self.progress.switch(Runstate.STOPPED, "daemon ends")
            await self.drives.close_all()
        self.descriptors.close()
        await self._tasks.cancel()
        await self.consoles.close()

    # -- one life

    async def _boot(self, config: GuestConfig, paused: bool = False) -> None:
        """One life begins; the images are open."""
        host_memory(config)
        async with self._given_up_by_an_end():
            image = await in_thread(partial(load_image, config))
        self._shim = find_shim(config.shim.path) if config.type == "pv" else None
        around = Surroundings(
            self._uuid,
            self.xenstore,
            self.consoles.main,
            self.channels.devices,
            self.progress,
            self._publish,
            self.fault,
        )
        self.domain = domain = await Domain.create(config, image, self.drives.images, around, self)
        self.machine = domain.machine
        try:
            self.requests.begin_life(domain)
            self.balloon.begin_life(domain)
            self._backoff.life_begins()
            self.progress.reached(Phase.CREATED)
            domain.machine.start(paused=paused)
        except BaseException:
            await self._end_domain(domain)
            raise
        log.info("a life begins (%s), on %s", self.progress.reason or "start", domain.machine.host.accel)
        self.progress.switch(Runstate.PAUSED if paused else Runstate.RUNNING)

    @contextlib.asynccontextmanager
    async def _given_up_by_an_end(self) -> AsyncIterator[None]:
        """Files may lie on storage that hangs: who ends the guest waits for nothing in here."""
        try:
            async with asyncio.timeout(None) as self._opening:
                yield
        except TimeoutError:
            raise StateError(
                "cannot start: the guest was ended while its files were opened. Start it again.",
                self.state,
                [],
            ) from None
        finally:
            self._opening = None

    def _give_up_opening(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.reschedule(asyncio.get_running_loop().time())

    async def _end_life(self, reason: str, detail: str = "") -> None:
        """The guest is ``stopping`` then, without a domain; who calls says what it is next."""
        assert self.domain is not None
        self.domain.ended_by = reason
        self.progress.switch(Runstate.STOPPING, reason)
        log.info("a life ends: %s", f"{reason}, {detail}" if detail else reason)
        await self._end_domain(self.domain)

    async def _end_domain(self, domain: Domain) -> None:
        try:
            await domain.end()
        except Exception as fault:  # ours; what could be ended was
            log.error("the end of a life failed", exc_info=fault)
        self.domain = None

    # -- lives that end by themselves

    def machine_log(self, data: bytes) -> None:
        """:class:`xenpvd.vmm.machine.Owner`: a piece of the shim's own log."""
        self.progress.reached(Phase.SHIM)
        self.consoles.xen.record(data)
        self.balloon.take_log(data)

    def machine_changed(self) -> None:
        """:class:`xenpvd.vmm.machine.Owner`: its CPUs or its balloon may have changed."""
        self.balloon.changed()
        self.progress.wake()

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
            policy = getattr(config, f"on_{'crash' if reason == 'fault' else reason}")
            await self._end_life(reason, detail)
            if crashed:
                self._publish("guest.crash", reason=reason, detail=detail, regs=regs, **self._tails())
            if policy == "restart" and not self._last:
                await self._restart(domain, reason)
                return
            self.progress.switch(Runstate.CRASHED if crashed else Runstate.STOPPED, reason)
            await self.drives.close_all()
        if policy == "destroy":
            self._on_end()

    async def _restart(self, domain: Domain, reason: str) -> None:
        """The next life, at once or in a while. A reboot of a guest that had come up is never late; one
        before that may be a panic, which Linux with panic=N ends by a reboot."""
        good = reason == "reboot" and self.progress.has_reached(Phase.DEVICES)
        delay = 0.0 if domain.hung else self._backoff.life_ended(good)
        self._next_life(f"restart in {delay:g} s after {reason}" if delay else reason)
        if delay:
            self._waiting = domain, self._tasks.spawn(self._restart_later(domain, delay), "restart")
        else:
            await self._restart_now(domain)

    async def _restart_later(self, domain: Domain, delay: float) -> None:
        await self._backoff.sleep(delay)
        async with self._lives:
            self._waiting = None
            self.progress.begin_life()
            await self._restart_now(domain)

    async def _restart_now(self, domain: Domain) -> None:
        try:
            await self._reboot(domain)
        except Exception as fault:
            log.error("cannot restart the guest", exc_info=fault)

    def _stop_waiting(self) -> Domain | None:
        """Nobody restarts the guest but who calls, holding ``_lives``; the life before if one would."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return None
        before, task = waiting
        task.cancel()
        return before

    def _next_life(self, reason: str) -> None:
        self.progress.begin_life()
        self.progress.switch(Runstate.STARTING, reason)

    async def _reboot(self, before: Domain) -> None:
        """The life after ``before``, with the same images. If it cannot begin the guest is ``crashed``, and
        stays so: what is missing does not come back by itself, and somebody should see it. Raises why."""
        try:
            if before.hung:
                raise Busy(
                    f"cannot restart: disk {before.hung[0]} hangs, and its image may still be written with "
                    "the last life's data. Start the guest when its storage answers.",
                    by=before.hung[0],
                )
            await self._boot(before.config)
        except Exception as fault:
            why = f"not restarted: disk {before.hung[0]} hangs" if before.hung else f"restart failed: {fault}"
            await self.drives.close_all()
            self.progress.switch(Runstate.CRASHED, why)
            raise

    def fault(self, name: str, fault: BaseException) -> None:
        """Something of ours has failed: that is the guest's end, not the daemon's."""
        log.error("%s failed", name, exc_info=fault)
        if self.domain is not None:
            self.domain.machine.end("fault", f"{name}: {type(fault).__name__}: {fault}", None)

    # -- looking at it

    def stuck(self, limit: float) -> str | None:
        """See :meth:`Machine.stuck`."""
        return self.machine.stuck(limit) if self.machine is not None else None

    def status(self, name: str) -> GuestStatus:
        config, progress, machine = self.config, self.progress, self.machine
        return GuestStatus(
            name=name,
            type=config.type if config else "pv",
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
            viewers=len(self.consoles.main.viewers),
            host=machine.host if machine else None,
            shim=self._shim,
            ready=progress.state is Runstate.RUNNING and progress.has_reached(Phase.READY),
        )

    async def wait(self, for_: str, timeout: float, since: int = 0) -> None:
        """See :meth:`Progress.wait` and ``signs.shown``.

        If it will not come because the guest is over, the fault's data has what was printed last.
        """
        try:
            history = self.consoles.main.history
            await self.progress.wait(
                for_, timeout, lambda sign: shown(sign, history, since, self.xenstore, HOME)
            )
        except StateError as fault:
            fault.data |= self._tails()
            raise

    def _tails(self) -> dict[str, str]:
        """What the guest and the shim printed last."""
        histories = {"console_tail": self.consoles.main.history, "xen_tail": self.consoles.xen.history}
        return {key: history.tail(TAIL).decode("utf-8", "replace") for key, history in histories.items()}
