"""The machine: one KVM VM with the shim in it. The room's public face; ``guest.py`` builds and drives it.

A machine lives once: made, started, stopped. A reboot is a new machine.

Threads: the loop's (everything public; the owner is called there, too) and one per vCPU (``_VcpuExits``).
One lock guards the outer Xen's tables, and nothing under it blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from xenpvd.abi import hvm_op as h
from xenpvd.abi import linux_kvm as k
from xenpvd.abi.sched import SHUTDOWN_NAMES
from xenpvd.abi.xen import DOMID_SELF, EINVAL, ENOSYS, EPERM
from xenpvd.errors import HostError, KvmError, Unsupported
from xenpvd.vmm import acpi, boot, cpuid, layout
from xenpvd.vmm.delivery import BackendPort, KvmXenDelivery
from xenpvd.vmm.grants import Grants
from xenpvd.vmm.kvm import System, Vm
from xenpvd.vmm.memory import GuestMemory, Page
from xenpvd.vmm.shim_log import ShimLog
from xenpvd.vmm.vcpu import VcpuThread
from xenpvd.vmm.xen.evtchn import EventChannels
from xenpvd.vmm.xen.gva import VirtualMemory
from xenpvd.vmm.xen.hypercall import Caller, Hypercalls

log = logging.getLogger(__name__)

XEN_CAPS_NEEDED = (
    k.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
    | k.KVM_XEN_HVM_CONFIG_SHARED_INFO
    | k.KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL
    | k.KVM_XEN_HVM_CONFIG_EVTCHN_SEND
)


class Owner(Protocol):
    """Whom a machine tells, in the loop's thread."""

    def machine_log(self, data: bytes) -> None:
        """A piece of the shim's own log."""

    def machine_ended(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        """The guest is over: poweroff, reboot, crash, watchdog, or fault (ours). Called once, unless
        :meth:`Machine.stop` came first. ``regs`` are the crashed vCPU's general registers."""


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """``ram`` in bytes."""

    ram: int
    vcpus: int
    domid: int
    xen_version: tuple[int, int]


def probe(system: System) -> int:
    """KVM_CAP_XEN_HVM's bits; raises :class:`Unsupported` if this host's KVM cannot play Xen."""
    caps = system.check_extension(k.KVM_CAP_XEN_HVM)
    if caps & XEN_CAPS_NEEDED != XEN_CAPS_NEEDED:
        raise Unsupported(
            f"cannot run a Xen guest on this host: its KVM has Xen capabilities {caps:#x} and "
            f"{XEN_CAPS_NEEDED:#x} are needed. Use hardware virtualization and a kernel with CONFIG_KVM_XEN "
            "(Linux 5.19 or newer; Debian 13's has it).",
            feature="KVM_CAP_XEN_HVM",
            caps=caps,
        )
    if not system.check_extension(k.KVM_CAP_IMMEDIATE_EXIT):
        raise Unsupported(
            "cannot run on this host: its KVM has no immediate exit (Linux 4.11 or newer has).", feature="KVM"
        )
    return caps


class Machine:
    """Making one raises :class:`KvmError`, :class:`Unsupported`, :class:`HostError`, and leaves nothing."""

    def __init__(self, config: MachineConfig, image: boot.BootImage, owner: Owner) -> None:
        self._owner = owner
        self._lock = threading.RLock()
        self._ended = False
        self._closed = False
        self._vcpus: list[VcpuThread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log = ShimLog(partial(self._tell, self._take_log))
        self.memory = GuestMemory()
        system = System()
        try:
            self.xen_caps = probe(system)
            self._vm = system.create_vm()
            try:
                self._build(system, self._vm, config, image)
            except BaseException:
                self.close()
                raise
        finally:
            system.close()

    def _build(self, system: System, vm: Vm, config: MachineConfig, image: boot.BootImage) -> None:
        vm.set_identity_map_addr(layout.IDENTITY_MAP)
        vm.set_tss_addr(layout.TSS)
        vm.enable_split_irqchip(24)
        self._add_memory(vm, config)
        self._delivery = KvmXenDelivery(vm, self.memory)
        self._delivery.configure()
        self._evtchn = EventChannels(config.domid, config.vcpus, self._delivery)
        self.grants = Grants(self.memory)
        #: the guest's ends of the two primary channels, left unbound for domain 0
        self.console_port = self._evtchn.alloc_unbound(DOMID_SELF, 0)
        self.store_port = self._evtchn.alloc_unbound(DOMID_SELF, 0)
        self.hypercalls = Hypercalls(
            domid=config.domid,
            vcpus=config.vcpus,
            e820=boot.memory_map(config.ram),
            params={
                h.HVM_PARAM_CALLBACK_IRQ: 0,
                h.HVM_PARAM_STORE_PFN: layout.STORE_PFN,
                h.HVM_PARAM_STORE_EVTCHN: self.store_port,
                h.HVM_PARAM_CONSOLE_PFN: layout.CONSOLE_PFN,
                h.HVM_PARAM_CONSOLE_EVTCHN: self.console_port,
            },
            evtchn=self._evtchn,
            gnttab=self.grants,
            platform=_Platform(self),
        )
        boot.load(self.memory, image, config.ram)
        self.memory.write(layout.ACPI, acpi.tables(layout.ACPI, config.vcpus))
        self._add_vcpus(system, vm, config, image.shim.entry)

    def _add_memory(self, vm: Vm, config: MachineConfig) -> None:
        low, high = layout.split_ram(config.ram)
        self.memory.add("ram", 0, low, ram=True)
        if high:
            self.memory.add("high ram", layout.HIGH_RAM, high, ram=True)
        self.memory.add("acpi", layout.ACPI, layout.ACPI_SIZE)
        self.memory.add("special", layout.SPECIAL, layout.SPECIAL_SIZE)
        self.memory.add("hole", layout.hole(config.ram), layout.HOLE_SIZE)
        for slot, region in enumerate(self.memory.regions):
            vm.set_memory_region(slot, region.gpa, region.size, region.address)

    def _add_vcpus(self, system: System, vm: Vm, config: MachineConfig, entry: int) -> None:
        supported = system.supported_cpuid()
        tsc_deadline = bool(system.check_extension(k.KVM_CAP_TSC_DEADLINE_TIMER))
        exits = _VcpuExits(self)
        for n in range(config.vcpus):
            thread = VcpuThread(n, vm.create_vcpu(n), exits)
            self._vcpus.append(thread)
            thread.vcpu.set_cpuid(
                cpuid.build(
                    supported,
                    vcpu_id=n,
                    domid=config.domid,
                    version=config.xen_version,
                    tsc_deadline=tsc_deadline,
                )
            )
            self._delivery.add_vcpu(thread)
        # only the boot CPU: the others wait for the shim's INIT and SIPI
        first = self._vcpus[0].vcpu
        first.set_sregs(boot.entry_sregs(first.get_sregs()))
        first.set_regs(rip=entry, rbx=layout.START_INFO, rflags=2)

    # -- for guest.py, in the loop's thread

    def start(self) -> None:
        """In the loop that the owner lives in. Raises :class:`HostError`."""
        self._loop = asyncio.get_running_loop()
        try:
            for vcpu in self._vcpus:
                vcpu.start()
        except HostError:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop every vCPU and wait until none runs. Blocks for the time of an exit: milliseconds. Any thread
        but a vCPU's."""
        with self._lock:
            self._ended = True
        for vcpu in self._vcpus:
            vcpu.stop()
        for vcpu in self._vcpus:
            vcpu.join()

    def close(self, *, release: bool = True) -> None:
        """Give everything back to the host. After :meth:`stop`; backends' ports may be closed later.

        Without ``release`` the guest's memory keeps its content, for who may still be reading it.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for vcpu in self._vcpus:
            vcpu.vcpu.close()
        self._vm.close()
        if release:
            self.memory.release()

    def bind_interdomain(self, remote_port: int) -> BackendPort:
        """:class:`xenpvd.backends.ops.EvtchnOps`."""
        with self._lock:
            dom0_port = self._evtchn.bind_backend(remote_port)
            kick_fd, irq_fd = self._delivery.fds(remote_port)
        return BackendPort(remote_port, kick_fd, irq_fd, partial(self._unbind, remote_port, dom0_port))

    def _unbind(self, port: int, dom0_port: int) -> None:
        with self._lock:
            if not self._closed:
                self._evtchn.unbind_backend(port, dom0_port)

    def page(self, gfn: int) -> Page:
        """:class:`xenpvd.backends.ops.ForeignmemOps`."""
        return self.memory.page(gfn)

    @property
    def hypercall_count(self) -> int:
        """Hypercalls that reached Python so far, without those that only write the shim's log."""
        return sum(self.hypercalls.counts.values()) - self.log_writes

    @property
    def log_writes(self) -> int:
        """CONSOLEIO_write calls so far; a line of the shim's log takes three."""
        return self.hypercalls.counts["do_console_write"]

    @property
    def exit_count(self) -> int:
        """KVM exits that reached Python so far, of all kinds."""
        return sum(vcpu.exits for vcpu in self._vcpus)

    # -- from any thread

    def end(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        """The guest is over; the first reason counts. No vCPU enters the guest again."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        for vcpu in self._vcpus:
            vcpu.stop()
        self._tell(self._owner.machine_ended, reason, detail, regs)

    def log(self, data: bytes) -> None:
        self._log.put(data)

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        if self._loop is None:  # no vCPU runs yet: this is the loop's thread
            call(*args)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
                self._loop.call_soon_threadsafe(call, *args)

    def _take_log(self) -> None:
        if data := self._log.take():
            self._owner.machine_log(data)

    # -- for this file, on vCPU threads

    def hypercall(self, vcpu: VcpuThread, number: int, args: tuple[int, ...]) -> int:
        sregs = vcpu.vcpu.get_sregs()
        cr3 = int.from_bytes(sregs[k.KVM_SREGS_cr3 : k.KVM_SREGS_cr3 + 8], "little")
        caller = Caller(vcpu.id, VirtualMemory(self.memory, cr3))
        with self._lock:
            try:
                return self.hypercalls.call(caller, number, args)
            except KvmError as fault:
                # KVM does not take what the guest has asked for: that is the guest's affair, and its error
                log.debug("hypercall %d %#x refused: %s", number, args[0], fault)
                return -EINVAL


class _VcpuExits:
    """:class:`xenpvd.vmm.vcpu.ExitHandler`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def on_hypercall(
        self, vcpu: VcpuThread, longmode: int, cpl: int, number: int, args: tuple[int, ...]
    ) -> int:
        if cpl:
            return -EPERM
        if not longmode:
            return -ENOSYS
        return self._machine.hypercall(vcpu, number, args)

    def on_debug_port(self, data: bytes) -> None:
        self._machine.log(data)

    def on_crash(self, vcpu: VcpuThread, why: str) -> None:
        self._machine.end("crash", why, vcpu.vcpu.get_regs())

    def on_fault(self, fault: BaseException) -> None:
        log.error("a vCPU thread failed", exc_info=fault)
        self._machine.end("fault", f"{type(fault).__name__}: {fault}", None)


class _Platform:
    """:class:`xenpvd.vmm.xen.hypercall.Platform`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        delivery = machine._delivery
        self.set_shared_info = delivery.set_shared_info
        self.set_vcpu_info = delivery.set_vcpu_info
        self.set_upcall_vector = delivery.set_upcall_vector
        self.is_ram = machine.memory.is_ram
        self.discard = machine.memory.discard
        self.console_write = machine.log

    def is_backed(self, gfn: int) -> bool:
        memory = self._machine.memory
        return memory.is_ram(gfn) or memory.region_of(gfn) == "hole"

    def shutdown(self, reason: int) -> None:
        name = SHUTDOWN_NAMES[reason]
        self._machine.end(name, f"SCHEDOP_shutdown({name})", None)
