"""What the guest is asked through xenstore, and how it answers: shutdown, SysRq, its CPUs.

The guest may be deaf: every request has its time, and says what came of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from xenpvd.backends.xenstore.server import Xenstore
from xenpvd.domain import HOME, Domain
from xenpvd.errors import BadConfig, Busy, StateError, TimedOut
from xenpvd.events import Publish
from xenpvd.progress import Progress
from xenpvd.views import Phase, Runstate, ShutdownResult, VcpusSet

#: what may be asked for, and how the guest ends then
_MODES = {"poweroff": "poweroff", "reboot": "reboot", "halt": "poweroff"}
#: what has become of a guest by ``Domain.ended_by``; by any other it has crashed
_ENDS = {
    "poweroff": "has powered off",
    "reboot": "has rebooted",
    "reset": "was reset",
    "destroyed": "was destroyed",
    "daemon ends": "was ended with its daemon",
}
_SHUTDOWN = "control/shutdown"


class Lives(Protocol):
    """Whose life a request is for; ``Guest`` fits."""

    domain: Domain | None
    xenstore: Xenstore
    progress: Progress

    def running(self, what: str) -> Domain: ...

    async def destroy(self) -> None: ...


async def until_met(
    lives: Lives,
    domain: Domain,
    what: str,
    timeout: float,
    *,
    met: Callable[[], bool],
    wanted: Callable[[], bool],
) -> float:
    """Wait until the guest has ``met`` a wish, as long as that is the one ``wanted``; the seconds it took.

    Raises :class:`StateError` if its life ends first, :class:`Busy` if something else is asked for meanwhile,
    ``TimeoutError``.
    """
    begin = time.monotonic()
    async with asyncio.timeout(timeout):
        await lives.progress.until(lambda: lives.domain is not domain or not wanted() or met())
    if lives.domain is not domain:
        raise over(lives, what)
    if not wanted():
        raise Busy(
            f"{what} was given up: something else was asked for meanwhile. That counts now; ask again if "
            "this is what you want.",
            by="a later call",
        )
    return round(time.monotonic() - begin, 3)


def over(lives: Lives, what: str) -> StateError:
    state = lives.progress.state
    return StateError(f"{what} came to nothing: the guest has ended meanwhile.", state, [Runstate.RUNNING])


class Requests:
    """Loop thread only. What is refused of a paused guest says so: it could not answer."""

    def __init__(self, lives: Lives, publish: Publish) -> None:
        self._lives = lives
        self._publish = publish
        self._sysrq = asyncio.Lock()  # one key at a time: a second one would take the first one's place
        self._online: int | None = None
        self._shutdowns = 0  # under way

    def forget(self) -> None:
        """A guest begins anew by its definition: all its CPUs are online."""
        self._online = None

    def begin_life(self, domain: Domain) -> None:
        """No vCPU runs yet. A reboot keeps the CPUs that were asked for, as xl does."""
        if self._online is not None:
            self._tell_cpus(domain, self._online)

    async def shutdown(self, mode: str, timeout: float, then: str) -> ShutdownResult:
        """Ask the guest by control/shutdown and wait for its end, at most ``timeout`` seconds.

        There is no mode ``suspend``: what a guest leaves behind cannot be kept, and one that suspends by
        itself is refused by the hypercall and goes on. Pausing is what stops a guest for a while.

        Raises :class:`TimedOut` if it has not ended by then, and a request that it has not even acknowledged
        is taken back; with ``then`` "destroy" it is destroyed instead. Raises :class:`StateError` if it has
        ended otherwise than asked: it has crashed, or somebody has reset it.
        """
        if mode not in _MODES or then not in ("fail", "destroy"):
            raise BadConfig("cannot shut down: mode is poweroff, reboot or halt; then is fail or destroy.")
        lives = self._lives
        verb = "reboot" if mode == "reboot" else "shut down"
        domain = lives.running(verb)
        begin = time.monotonic()
        acknowledged: float | None = None
        self._shutdowns += 1
        try:
            async with asyncio.timeout(timeout):
                if await self._taken(domain, _SHUTDOWN, mode):
                    acknowledged = round(time.monotonic() - begin, 3)
                    self._publish("guest.shutdown", mode=mode, acknowledged=acknowledged)
                await lives.progress.until(lambda: lives.domain is not domain)
        except TimeoutError:
            if then == "fail":
                said = "has not answered" if acknowledged is None else "acknowledged but has not ended"
                goes_on = "it goes on"
                # a guest that still boots would obey minutes later; another call's request is left alone
                if acknowledged is None and self._shutdowns == 1:
                    self._take_back(domain, f"{HOME}/{_SHUTDOWN}")
                    goes_on += " and is not asked any more"
                raise TimedOut(
                    f"cannot {verb}: the guest {said} after {timeout:g} s; {goes_on}. Try again with a "
                    "longer timeout, or destroy it.",
                    acknowledged=acknowledged,
                ) from None
            if lives.domain is domain:
                await lives.destroy()
        finally:
            self._shutdowns -= 1
        destroyed = domain.ended_by == "destroyed"
        if domain.ended_by != _MODES[mode] and not (destroyed and then == "destroy"):
            ended = _ENDS.get(domain.ended_by or "", "has crashed")
            raise StateError(
                f"cannot {verb}: the guest {ended} meanwhile. See its status, and try again if it runs.",
                lives.progress.state,
                [Runstate.RUNNING],
            )
        took = round(time.monotonic() - begin, 3)
        return ShutdownResult(mode, acknowledged, took, lives.progress.state, destroyed)

    async def sysrq(self, key: str, timeout: float) -> None:
        """Press one key of Linux's SysRq by control/sysrq; returns when the guest has taken it.

        A key that is not taken within ``timeout`` seconds (:class:`TimedOut`) is taken back: nobody wants a
        forgotten ``b`` pressed later. Raises :class:`BadConfig`, :class:`StateError`.
        """
        if len(key) != 1 or not key.isascii() or not key.isprintable():
            raise BadConfig(f"cannot press {key!r}: SysRq takes one printable key, as h for help.")
        try:
            async with asyncio.timeout(timeout), self._sysrq:
                domain = self._lives.running("press a key")
                if not await self._taken(domain, "control/sysrq", key, take_back=True):
                    raise over(self._lives, "pressing a key")
        except TimeoutError:
            raise TimedOut(
                f"cannot press {key}: the guest has not taken it in {timeout:g} s, and it was taken back. "
                "Is the guest booted, with a kernel that has CONFIG_MAGIC_SYSRQ?"
            ) from None

    async def set_online(self, count: int, wait: bool, timeout: float) -> VcpusSet:
        """Have the guest use its first ``count`` CPUs, by cpu/N/availability. CPU 0 always stays.

        What it uses is seen by the IPI ports that it keeps. Raises :class:`BadConfig`, :class:`StateError`,
        :class:`TimedOut` with who is ``online``; the guest may follow later.
        """
        lives = self._lives
        domain = lives.running("set the CPUs")
        if not 1 <= count <= domain.config.vcpus:
            raise BadConfig(
                f"cannot set {count} CPUs online: the guest has {domain.config.vcpus}. Choose from 1 to "
                f"{domain.config.vcpus}.",
                [("count", f"1 to {domain.config.vcpus}")],
            )
        self._online = count
        self._tell_cpus(domain, count)
        lives.progress.wake()  # who waits for another wish
        machine, wish = domain.machine, frozenset(range(count))
        if not wait:
            return VcpusSet(count, tuple(sorted(machine.online)), None)
        try:
            took = await until_met(
                lives,
                domain,
                "setting the CPUs",
                timeout,
                # before xenbus is up, CPUs that are still to be started look as if they were offline
                met=lambda: lives.progress.has_reached(Phase.XENBUS) and machine.online == wish,
                wanted=lambda: self._online == count,
            )
        except TimeoutError:
            online = sorted(machine.online)
            why = (
                f"the guest uses {online}. It was told, and may still do it. A CPU that comes is only used "
                "once the guest's user space wants it: echo 1 > /sys/devices/system/cpu/cpu1/online there."
            )
            if not lives.progress.has_reached(Phase.XENBUS):
                why = (
                    f"the guest is still booting, phase {lives.progress.phase}. It was told, and does it "
                    "when its boot is past xenbus: see then with xenpvctl status."
                )
            raise TimedOut(
                f"cannot set {count} CPUs online: after {timeout:g} s {why}", online=online
            ) from None
        return VcpusSet(count, tuple(sorted(machine.online)), took)

    def _tell_cpus(self, domain: Domain, count: int) -> None:
        with self._lives.xenstore.client.transaction() as tx:
            for n in range(1, domain.config.vcpus):
                tx.write(f"{HOME}/cpu/{n}/availability", "online" if n < count else "offline")

    async def _taken(self, domain: Domain, leaf: str, value: str, take_back: bool = False) -> bool:
        """Write a node of the guest's; True once the guest has emptied it, False if it was gone before."""
        node = f"{HOME}/{leaf}"
        lives, store = self._lives, self._lives.xenstore.client
        watch = store.watch(node)
        try:
            store.write(node, value)
            async for _ in watch:
                if not self._waits(domain, node):
                    break
            return lives.domain is domain and lives.xenstore.exists(node)
        finally:
            watch.close()
            if take_back:
                self._take_back(domain, node)

    def _waits(self, domain: Domain, node: str) -> bool:
        """Whether ``node`` still holds what the guest was asked."""
        lives = self._lives
        return (
            lives.domain is domain
            and lives.xenstore.exists(node)
            and bool(_text(lives.xenstore.client.read(node)))
        )

    def _take_back(self, domain: Domain, node: str) -> None:
        if self._waits(domain, node):
            self._lives.xenstore.client.write(node, "")


def _text(value: bytes) -> bytes:
    """Linux answers control/sysrq by a NUL, which may or may not get through its own string functions."""
    return value.strip(b"\0")
