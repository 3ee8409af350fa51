"""A machine whose KVM a test drives, with who owns it."""

from __future__ import annotations

import asyncio
import struct
import threading
from typing import Any

from tests.conftest import tiny_shim
from tests.fakes.guest_memory import PRESENT, WRITE
from tests.fakes.kvm import FakeVcpu
from xenpvd.abi import linux_kvm as k
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.kernel import parse_pvh
from xenpvd.vmm.layout import GIB, MIB
from xenpvd.vmm.machine import Machine, MachineConfig

RAM = 32 * MIB
IMAGE = BootImage(parse_pvh(tiny_shim()), "pv-shim console=xen", ((b"kernel", "console=hvc0"),), True)
#: page tables at 24 MiB that map the first 2 MiB to themselves; arguments at 1 MiB
CR3 = 24 * MIB
ARG = MIB
SHARED = (4 * GIB) >> 12
EVTCHN, MEMORY, VCPU, HVM, SCHED, CONSOLE = 32, 12, 24, 34, 29, 18


class FakeOwner:
    """Notes what it is told and in which thread."""

    def __init__(self) -> None:
        self.log = b""
        self.logs = 0
        self.ends: list[tuple[str, str, dict[str, int] | None]] = []
        self.ended = asyncio.Event()
        self.spoken = asyncio.Event()
        self.threads: set[int] = set()
        self.changes = 0

    def machine_changed(self) -> None:
        self.threads.add(threading.get_ident())
        self.changes += 1

    def machine_log(self, data: bytes) -> None:
        self.threads.add(threading.get_ident())
        self.log += data
        self.logs += 1
        self.spoken.set()

    def machine_ended(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        self.threads.add(threading.get_ident())
        self.ends.append((reason, detail, regs))
        self.ended.set()


class Bench:
    """``accel``: "kvm-xen" or "kvm"; the guest's hypercalls are made accordingly."""

    def __init__(self, accel: str = "kvm-xen", vcpus: int = 2) -> None:
        self.accel = accel
        self.owner = FakeOwner()
        self.machine = Machine(MachineConfig(RAM, vcpus, 1, (4, 17), accel), IMAGE, self.owner)
        self.vm: Any = self.machine._vm
        self.vcpus: list[FakeVcpu] = self.vm.vcpus
        memory = self.machine.memory
        for level, entry in ((0, CR3 + 0x1000), (1, CR3 + 0x2000)):
            memory.write(CR3 + level * PAGE_SIZE, (entry | PRESENT | WRITE).to_bytes(8, "little"))
        memory.write(CR3 + 2 * PAGE_SIZE, (PRESENT | WRITE | 1 << 7).to_bytes(8, "little"))
        for vcpu in self.vcpus:
            vcpu.guest_mode()
            vcpu.sregs[k.KVM_SREGS_cr3 : k.KVM_SREGS_cr3 + 8] = CR3.to_bytes(8, "little")

    def call(self, number: int, *args: int, vcpu: int = 0, longmode: bool = True, cpl: int = 0) -> None:
        """A hypercall; nobody waits for its answer."""
        one = self.vcpus[vcpu]
        if self.accel == "kvm":
            one.guest_out(number, *args, longmode=longmode, cpl=cpl)
        else:
            one.guest_hypercall(number, *args, longmode=longmode, cpl=cpl)

    def answer(self, vcpu: int = 0) -> int:
        one = self.vcpus[vcpu]
        return one.guest_rax() if self.accel == "kvm" else one.guest_result()

    def ask(self, number: int, op: int, layout: str, *fields: int, vcpu: int = 0) -> int:
        """A hypercall with a struct by pointer."""
        self.machine.memory.write(ARG, struct.pack(layout, *fields))
        self.call(number, op, ARG, vcpu=vcpu)
        return self.answer(vcpu)

    def place_shared_info(self) -> None:
        assert self.ask(MEMORY, 7, "<HHIQQ", x.DOMID_SELF, 0, 0, 0, SHARED) == 0
