"""The guest's memory: what it has, what it has given back, and asking it for more or less.

A target is a size of the VM. What memory/target holds for it depends on the guest: Linux in the shim takes
the figure as its own size, smaller than the VM's by what the shim keeps; elsewhere it counts down from
memory/static-max, the VM's (drivers/xen/xen-balloon.c).
"""

from __future__ import annotations

import re
from functools import partial

from xenpvd.domain import HOME, READABLE, Domain
from xenpvd.errors import BadConfig, TimedOut, Unsupported
from xenpvd.events import Publish
from xenpvd.requests import Lives, until_met
from xenpvd.tasks import in_thread
from xenpvd.views import MemoryInfo, MemoryTarget

PAGE = 4096
MIB = 1 << 20
#: What a target leaves a guest at least, MiB
GUEST_MIN = 64

#: The shim's line at boot, its numbers in pages. Only the shim's own lines begin so; the guest's have (dN).
_SHIM_USED = re.compile(
    rb"^\(XEN\) (?:\[[^]\n]*\] )?shim used pages 0x([0-9a-f]{1,12}) reserving (?:0x)?([0-9a-f]{1,12}) free",
    re.M,
)
_LINE = 256
#: Pages that the line counts as used and the guest has all the same (measured: 4.17, 4.20; 256-2048 MiB)
_SHIM_EXTRA = 2


class ShimLine:
    """Looks for the shim's line in its log, which comes in pieces. Keeps a line's length of it at most."""

    def __init__(self, ram: int) -> None:
        self._ram = ram
        self._seen = b"\n"
        #: bytes that the guest's kernel was given, once known
        self.guest: int | None = None

    def feed(self, data: bytes) -> bool:
        """True if the line came with this piece."""
        if self.guest is not None:
            return False
        self._seen += data
        if found := _SHIM_USED.search(self._seen):
            used, reserved = (int(number, 16) for number in found.groups())
            guest = self._ram - (used + reserved - _SHIM_EXTRA) * PAGE
            if 0 < guest <= self._ram:
                self.guest = guest
                self._seen = b""
                return True
        self._seen = self._seen[-_LINE:]
        return False


class Balloon:
    """Loop thread only. A target outlives reboots, as xl keeps it."""

    def __init__(self, lives: Lives, publish: Publish) -> None:
        self._lives = lives
        self._publish = publish
        self._target: int | None = None  # MiB
        self._told = True  # of the target: that it was reached
        self._shim: ShimLine | None = None  # of this life; None without a shim

    def forget(self) -> None:
        """A guest begins anew by its definition."""
        self._target = None

    def begin_life(self, domain: Domain) -> None:
        """No vCPU runs yet."""
        self._shim = ShimLine(domain.config.memory * MIB) if domain.config.type == "pv" else None
        self._told = self._target is None
        if self._shim is None and self._target is not None:
            self._tell(domain, self._target)

    def take_log(self, data: bytes) -> None:
        """A piece of the shim's log. It comes before the guest's kernel runs, which thus finds its target."""
        domain = self._lives.domain
        if (
            self._shim is not None
            and self._shim.feed(data)
            and domain is not None
            and self._target is not None
        ):
            self._tell(domain, self._target)

    def changed(self) -> None:
        """The guest may have given memory back, or taken it. Tells once when the target is reached."""
        domain = self._lives.domain
        if domain is not None and not self._told and self._met(domain):
            self._told = True
            self._publish("memory.target", asked_mib=self._target, reached_mib=_reached(domain))

    async def info(self, domain: Domain) -> MemoryInfo:
        machine = domain.machine
        regions = await in_thread(machine.memory_regions)
        return MemoryInfo(
            ram=domain.config.memory * MIB,
            guest=self._guest(domain),
            ballooned=machine.ballooned * PAGE,
            target=None if self._target is None else self._target * MIB,
            resident=sum(region.resident for region in regions),
            pages=machine.host.pages,
            regions=tuple(regions),
        )

    async def set_target(self, mib: int, wait: bool, timeout: float) -> MemoryTarget:
        """Have the guest make the VM ``mib`` MiB large.

        Raises :class:`BadConfig`, :class:`StateError`, :class:`Unsupported` if the guest's size is not known,
        :class:`TimedOut` with what was ``reached_mib``; the guest goes on trying.
        """
        domain = self._lives.running("set the memory target")
        self._check(domain, mib)
        self._target, self._told = mib, False
        self._tell(domain, mib)
        self.changed()
        self._lives.progress.wake()  # who waits for another target
        if not wait:
            return MemoryTarget(mib, _reached(domain), None)
        try:
            took = await until_met(
                self._lives,
                domain,
                "setting the memory target",
                timeout,
                met=partial(self._met, domain),
                wanted=lambda: self._target == mib,
            )
        except TimeoutError:
            reached = _reached(domain)
            self._publish("memory.target", asked_mib=mib, reached_mib=reached)
            raise TimedOut(
                f"cannot make it {mib} MiB: after {timeout:g} s the guest is at {reached}. It was told, and "
                "goes on trying: is its balloon driver there, and enough of its memory free?",
                reached_mib=reached,
            ) from None
        return MemoryTarget(mib, _reached(domain), took)

    def _check(self, domain: Domain, mib: int) -> None:
        most = domain.config.memory
        guest = self._guest(domain)
        if guest is None:
            raise Unsupported(
                "cannot set a memory target: the shim has not told how much it keeps of the guest's memory. "
                "It does while it boots; if it has, leave out of shim.extra what makes its log quieter.",
                feature="memory.target",
            )
        least = min(most, GUEST_MIN + (most * MIB - guest + MIB - 1) // MIB)
        if not least <= mib <= most:
            raise BadConfig(
                f"cannot make it {mib} MiB: it takes {least} to {most}. More than it has at boot a guest "
                f"cannot get, and with less than {GUEST_MIN} MiB for itself it would not go on.",
                [("mib", f"{least} to {most}")],
            )

    def _guest(self, domain: Domain) -> int | None:
        return domain.config.memory * MIB if self._shim is None else self._shim.guest

    def _tell(self, domain: Domain, mib: int) -> None:
        guest = self._guest(domain)
        assert guest is not None
        kib = (guest - (domain.config.memory - mib) * MIB) // 1024
        with self._lives.xenstore.client.transaction() as tx:
            tx.write(f"{HOME}/memory/target", f"{kib}")
            tx.set_perms(f"{HOME}/memory/target", READABLE)

    def _met(self, domain: Domain) -> bool:
        """To the page: a guest that stops short has not done it."""
        if self._target is None:
            return False
        return domain.machine.ballooned * PAGE == (domain.config.memory - self._target) * MIB


def _reached(domain: Domain) -> int:
    """MiB that the VM holds now, rounded up."""
    return domain.config.memory - domain.machine.ballooned * PAGE // MIB
