"""A VM put together: KVM's parts in the order that KVM wants them, and what belongs to each."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from xenpvd.abi import linux_kvm as k
from xenpvd.views import HostInfo
from xenpvd.vmm import acpi, boot, cpuid, layout
from xenpvd.vmm.accel import Accelerator, choose, shows_msr_writes
from xenpvd.vmm.clock import Clock
from xenpvd.vmm.fair_lock import FairLock
from xenpvd.vmm.kvm import System, Vm
from xenpvd.vmm.kvm_xen import KvmXen
from xenpvd.vmm.memory import GuestMemory, page_kind
from xenpvd.vmm.outer_xen import OuterXen, Outside
from xenpvd.vmm.plain import Plain
from xenpvd.vmm.slots import Slots
from xenpvd.vmm.timers import Timers
from xenpvd.vmm.vcpu import ExitHandler, VcpuThread

#: how wide physical addresses are on a CPU that does not say (Intel SDM 2A, CPUID 0x80000008)
PHYS_BITS = 36


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """``ram`` in bytes; ``accel`` auto, kvm-xen or kvm."""

    ram: int
    vcpus: int
    domid: int
    xen_version: tuple[int, int]
    accel: str = "auto"


@dataclass(slots=True)
class Parts:
    host: HostInfo
    vm: Vm
    memory: GuestMemory
    timers: Timers
    accel: Accelerator
    xen: OuterXen
    vcpus: list[VcpuThread]


def build(
    config: MachineConfig,
    image: boot.BootImage,
    lock: FairLock,
    outside: Outside,
    exits: ExitHandler,
) -> Parts:
    """Everything but running threads. Raises :class:`KvmError`, :class:`Unsupported`, :class:`HostError`, and
    leaves nothing then."""
    with contextlib.closing(System()) as system, contextlib.ExitStack() as undo:
        name, why, caps = choose(system, config.accel, image)
        supported = system.supported_cpuid()
        tsc_deadline = bool(system.check_extension(k.KVM_CAP_TSC_DEADLINE_TIMER))

        vm = system.create_vm()
        undo.callback(vm.close)
        vm.set_identity_map_addr(layout.IDENTITY_MAP)
        vm.set_tss_addr(layout.TSS)
        vm.enable_split_irqchip(24)
        memory = GuestMemory()
        undo.callback(memory.release)
        slots = _add_memory(vm, memory, config.ram, supported)

        clock = Clock(vm, whole_seconds=image.shim)
        timers = Timers(clock.now, lock, outside.fault)
        accel: Accelerator
        if name == "kvm":
            msr_exits = shows_msr_writes(system)
            accel = Plain(vm, memory, config.vcpus, timers, clock.epoch, msr_exits=msr_exits, shim=image.shim)
        else:
            accel = KvmXen(vm, memory, config.vcpus, clock.epoch, caps, shim=image.shim)
        accel.configure()
        boot.load(memory, image, config.ram, accel.edit if image.shim else bytes)
        memory.write(layout.ACPI, acpi.tables(layout.ACPI, config.vcpus))

        threads = []
        for n in range(config.vcpus):
            vcpu = vm.create_vcpu(n)
            undo.callback(vcpu.close)
            vcpu.set_cpuid(
                cpuid.build(
                    supported,
                    vcpu_id=n,
                    domid=config.domid,
                    version=config.xen_version,
                    tsc_deadline=tsc_deadline,
                )
            )
            threads.append(VcpuThread(n, vcpu, exits, accel.hypercall_port))
            accel.add_vcpu(threads[-1])
        # only the boot CPU: the others wait for the guest's INIT and SIPI
        first = threads[0].vcpu
        first.set_sregs(boot.entry_sregs(first.get_sregs()))
        first.set_regs(rip=image.kernel.entry, rbx=layout.START_INFO, rflags=2)

        xen = OuterXen(
            domid=config.domid,
            version=config.xen_version,
            ram=config.ram,
            vcpus=threads,
            memory=memory,
            slots=slots,
            accel=accel,
            timers=timers,
            clock=clock.now,
            lock=lock,
            outside=outside,
        )
        undo.pop_all()
        return Parts(HostInfo(name, why, caps, *page_kind()), vm, memory, timers, accel, xen, threads)


def _add_memory(vm: Vm, memory: GuestMemory, ram: int, supported: list[cpuid.Entry]) -> Slots:
    widths = [entry[3] & 0xFF for entry in supported if entry[0] == 0x8000_0008]
    slots = Slots(vm, memory, widths[0] if widths else PHYS_BITS)
    low, high = layout.split_ram(ram)
    slots.add("ram", 0, low, ram=True)
    if high:
        slots.add("high ram", layout.HIGH_RAM, high, ram=True)
    slots.add("acpi", layout.ACPI, layout.ACPI_SIZE)
    slots.add("special", layout.SPECIAL, layout.SPECIAL_SIZE)
    return slots
