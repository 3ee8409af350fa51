"""The machine: one KVM VM with the shim, or a kernel of its own, in it. The room's public face; ``guest.py``
builds and drives it.

A machine lives once: made, started, stopped. A reboot is a new machine.

Threads: the loop's (everything public; the owner is called there, too), one per vCPU (``_Exits``), one for
timers, and backends', which notify their ports. Locks, in the order in which they may be taken together:

0. the outer Xen's gate: vCPUs only. It lets one vCPU at a time come to 1, for the whole of its hypercall.
1. the machine's (``fair_lock.py``): the outer Xen's tables. A vCPU in a hypercall, the timers and the loop
   take it in turn. Under it are ioctls, some of which wait for every CPU of the host, but no wait for another
   thread of ours. One hold is a few milliseconds at most: what a guest can ask for at once is bounded, and
   what is made of many parts (a multicall, a reset) lets others in after each.
2. a backend port's, which is never taken under 1, and under which 1 is not taken either.
3. the accelerator's (``plain.py``), the grants' (``grants.py``): no other lock but the last one under them.
4. the timers' (``timers.py``): none under it.
5. a vCPU's (``vcpu.py``): none under it; what is submitted to a vCPU runs without it.

Nobody waits for a vCPU while holding any of them, so a vCPU always comes to answer. To end or to stop a
machine takes none of 0 to 3.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from xenpvd.abi.xen import EPERM
from xenpvd.errors import HostError, KvmError
from xenpvd.figures import VcpuStats
from xenpvd.views import HypercallStats, MemoryRegion, PortInfo, VcpuInfo
from xenpvd.vmm import boot, cpuid, resident
from xenpvd.vmm.build import MachineConfig as MachineConfig
from xenpvd.vmm.build import build
from xenpvd.vmm.fair_lock import FairLock
from xenpvd.vmm.memory import Page
from xenpvd.vmm.port import BackendPort
from xenpvd.vmm.shim_log import ShimLog
from xenpvd.vmm.vcpu import VcpuThread

log = logging.getLogger(__name__)


class Owner(Protocol):
    """Whom a machine tells, in the loop's thread."""

    def machine_log(self, data: bytes) -> None:
        """A piece of the shim's own log."""

    def machine_ended(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        """The guest is over: poweroff, reboot, crash, watchdog, or fault (ours). Called once, unless
        :meth:`Machine.stop` came first. ``regs`` are the crashed vCPU's general and control registers."""

    def machine_changed(self) -> None:
        """The vCPUs that are online, or the balloon, may be others now; once for many changes."""


class Machine:
    """Making one raises :class:`KvmError`, :class:`Unsupported`, :class:`HostError`, and leaves nothing."""

    def __init__(self, config: MachineConfig, image: boot.BootImage, owner: Owner) -> None:
        self._owner = owner
        self._lock = FairLock()
        self._ended = threading.Lock()  # taken once and never let go: who ends it needs no other
        self._closed = False
        self._change_told = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log = ShimLog(partial(self._tell, self._take_log))
        self.paused = False
        vm = build(config, image, self._lock, self, _Exits(self))
        #: what the guest runs on
        self.host = vm.host
        self.memory = vm.memory
        self.grants = vm.xen.grants
        self.console_port, self.store_port = vm.xen.console_port, vm.xen.store_port
        self._xen = vm.xen
        self._accel = vm.accel
        self._timers = vm.timers
        self._vcpus = vm.vcpus
        self._vm = vm.vm

    # -- for guest.py, in the loop's thread

    def start(self, paused: bool = False) -> None:
        """In the loop that the owner lives in; ``paused``: before the guest's first instruction. Raises
        :class:`HostError`."""
        self._loop = asyncio.get_running_loop()
        if paused:
            self._hold()
        try:
            for vcpu in self._vcpus:
                vcpu.start()
        except HostError:
            self.stop()
            raise

    def pause(self) -> None:
        """No vCPU runs an instruction of the guest after this. Blocks as :meth:`stop`. Its clock runs on."""
        self._hold()
        for vcpu in self._vcpus:
            vcpu.rest()

    def _hold(self) -> None:
        self.paused = True
        self._timers.hold()
        for vcpu in self._vcpus:
            vcpu.pause()

    def resume(self) -> None:
        self.paused = False
        self._timers.release()
        for vcpu in self._vcpus:
            vcpu.resume()

    def stop(self) -> None:
        """Stop every vCPU and wait until none runs. Blocks until each has left the guest and
        has its hypercall answered: milliseconds. Any thread but a vCPU's."""
        self._ended.acquire(blocking=False)
        self._stop_all()
        for vcpu in self._vcpus:
            vcpu.join()
        self._timers.join()

    def _stop_all(self) -> None:
        self._timers.stop()
        for vcpu in self._vcpus:
            vcpu.stop()

    def close(self, *, release: bool = True) -> None:
        """Give everything back to the host. After :meth:`stop`; backends' ports may be closed later.

        Without ``release`` the guest's memory keeps its content, for who may still be reading it.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._accel.close()
        for vcpu in self._vcpus:
            vcpu.vcpu.close()
        self._vm.close()
        if release:
            self.memory.release()

    def bind_interdomain(self, remote_port: int) -> BackendPort:
        """:class:`xenpvd.backends.ops.EvtchnOps`."""
        with self._lock:
            dom0_port = self._xen.evtchn.bind_backend(remote_port)
            return self._accel.backend_port(remote_port, partial(self._unbind, remote_port, dom0_port))

    def _unbind(self, port: int, dom0_port: int) -> None:
        with self._lock:
            if not self._closed:
                self._xen.evtchn.unbind_backend(port, dom0_port)

    def page(self, gfn: int) -> Page:
        """:class:`xenpvd.backends.ops.ForeignmemOps`."""
        return self.memory.page(gfn)

    # -- for who looks, in any thread

    @property
    def online(self) -> frozenset[int]:
        """The vCPUs that the guest uses: those it sends IPIs to."""
        with self._lock:
            return self._xen.evtchn.online()

    @property
    def ballooned(self) -> int:
        """Pages that the guest has given back and not taken again."""
        return self.memory.ballooned

    def vcpus(self, regs: bool = False) -> list[VcpuInfo]:
        """With ``regs`` blocks for the time of an exit, and raises :class:`TimedOut` if one does not come."""
        online = self.online
        return [
            VcpuInfo(
                vcpu.id,
                vcpu.id in online,
                vcpu.state,
                sum(vcpu.exits.values()),
                vcpu.registers() if regs else None,
            )
            for vcpu in self._vcpus
        ]

    def vcpu_stats(self) -> list[VcpuStats]:
        """Blocking: the kernel is asked for each thread's times."""
        online = self.online
        stats = []
        for vcpu in self._vcpus:
            ran, waited = vcpu.runtime_elsewhere()
            stats.append(
                VcpuStats(vcpu.id, vcpu.id in online, vcpu.state, ran / 1e9, waited / 1e9, dict(vcpu.exits))
            )
        return stats

    def ports(self) -> list[PortInfo]:
        return self._xen.ports()

    @property
    def over(self) -> bool:
        """Whether the guest has ended, or is being stopped."""
        return self._ended.locked()

    def stuck(self, limit: float) -> str | None:
        """Why a vCPU will not go on: work of ours has kept it out of the guest for more than ``limit``
        seconds, or its thread is gone and nobody has noticed. None if there is none."""
        for vcpu in self._vcpus:
            if vcpu.over and not self.over:
                return f"the thread of vCPU {vcpu.id} is gone"
            if why := vcpu.stuck(limit):
                return why
        return None

    def inject(self, port: int) -> PortInfo:
        """Raise an event on a port of the guest's. Raises :class:`NotFound` for a closed one."""
        return self._xen.inject(port)

    def memory_regions(self) -> list[MemoryRegion]:
        """Blocking: see ``resident.py``."""
        return resident.memory_regions(self.memory.all_regions())

    def hypercall_stats(self, recent: int) -> HypercallStats:
        exits: dict[str, int] = {}
        for vcpu in self._vcpus:
            for kind, count in vcpu.exits.items():
                exits[kind] = exits.get(kind, 0) + count
        return self._xen.stats(recent, exits)

    @property
    def hypercall_count(self) -> int:
        """Hypercalls that reached Python so far, without those that only write the shim's log."""
        return sum(self._xen.hypercalls.counts.values()) - self.log_writes

    @property
    def log_writes(self) -> int:
        """CONSOLEIO_write calls so far; a line of the shim's log takes three."""
        return self._xen.hypercalls.counts["do_console_write"]

    @property
    def log_lost(self) -> int:
        """Bytes of the shim's log that were, as it wrote faster than it was read."""
        return self._log.lost

    @property
    def exit_count(self) -> int:
        """KVM exits that reached Python so far, of all kinds."""
        return sum(sum(vcpu.exits.values()) for vcpu in self._vcpus)

    # -- from any thread (:class:`xenpvd.vmm.outer_xen.Outside`)

    def end(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        """The guest is over; the first reason counts. No vCPU enters the guest again."""
        if not self._ended.acquire(blocking=False):
            return
        self._stop_all()
        self._tell(self._owner.machine_ended, reason, detail, regs)

    def log(self, data: bytes) -> None:
        self._log.put(data)

    def changed(self) -> None:
        if not self._change_told:
            self._change_told = True
            self._tell(self._tell_changed)

    def _tell_changed(self) -> None:
        self._change_told = False  # first: what changes from now on is told again
        self._owner.machine_changed()

    def fault(self, fault: BaseException) -> None:
        log.error("%s failed", threading.current_thread().name, exc_info=fault)
        self.end("fault", f"{type(fault).__name__}: {fault}", None)

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        if self._loop is None:  # no vCPU runs yet: this is the loop's thread
            call(*args)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
                self._loop.call_soon_threadsafe(call, *args)

    def _take_log(self) -> None:
        if data := self._log.take():
            self._owner.machine_log(data)


class _Exits:
    """:class:`xenpvd.vmm.vcpu.ExitHandler`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def on_hypercall(
        self, vcpu: VcpuThread, longmode: bool, cpl: int, number: int, args: tuple[int, ...]
    ) -> int:
        return -EPERM if cpl else self._machine._xen.call(vcpu, longmode, number, args)

    def on_msr_write(self, vcpu: VcpuThread, index: int, value: int) -> bool:
        return index == cpuid.HYPERCALL_MSR and self._machine._xen.write_hypercall_page(vcpu, value)

    def on_debug_port(self, data: bytes) -> None:
        self._machine.log(data)

    def on_power_off(self) -> None:
        self._machine.end("poweroff", "ACPI S5", None)

    def on_crash(self, vcpu: VcpuThread, why: str) -> None:
        regs = None
        with contextlib.suppress(KvmError):
            regs = vcpu.registers_here()
        self._machine.end("crash", why, regs)

    def on_fault(self, fault: BaseException) -> None:
        self._machine.fault(fault)
