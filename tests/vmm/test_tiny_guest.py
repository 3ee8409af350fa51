"""A machine with a tiny guest in it, on this host's real KVM with whatever it can: from hypercall page to
power-off, with events from a backend's thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.fakes.tiny_guest import TRIPLE_FAULT, image, running
from xenpvd.errors import KvmError, Unsupported
from xenpvd.vmm.accel import probe
from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.layout import MIB
from xenpvd.vmm.machine import Machine, MachineConfig

WAIT = 10
KVM_XEN = pytest.param("kvm-xen", marks=pytest.mark.lab)


class Owner:
    def __init__(self) -> None:
        self.log = b""
        self.ends: list[str] = []
        self.changed = asyncio.Event()

    def machine_log(self, data: bytes) -> None:
        self.log += data
        self.changed.set()

    def machine_ended(self, reason: str, detail: str, regs: dict[str, int] | None) -> None:
        self.ends.append(f"{reason}: {detail} {regs or ''}")
        self.changed.set()

    def machine_changed(self) -> None: ...

    async def until(self, log: bytes) -> None:
        async with asyncio.timeout(WAIT):
            while self.log != log and not self.ends:
                self.changed.clear()
                await self.changed.wait()
        assert self.log == log, self.ends

    async def over(self) -> None:
        async with asyncio.timeout(WAIT):
            while not self.ends:
                self.changed.clear()
                await self.changed.wait()


class Bench:
    def __init__(self, accel: str, guest: BootImage) -> None:
        try:
            probe(accel)
        except (KvmError, Unsupported) as fault:
            pytest.skip(str(fault))
        self.owner = Owner()
        config = MachineConfig(64 * MIB, 1, 1, (4, 17), accel)
        self.machine = Machine(config, guest, self.owner)
        self.port = self.machine.bind_interdomain(self.machine.console_port)


@pytest.fixture(params=[KVM_XEN, "kvm"])
def accel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["vector of the vCPU's own", "vector for all"])
async def bench(request: pytest.FixtureRequest, accel: str) -> AsyncIterator[Bench]:
    async for bench in started(accel, image(request.param)):
        yield bench


async def started(accel: str, guest: BootImage) -> AsyncIterator[Bench]:
    bench = Bench(accel, guest)
    yield bench
    await asyncio.to_thread(bench.machine.stop)
    bench.port.close()
    bench.machine.close()


async def test_from_its_first_hypercall_to_its_end(bench: Bench) -> None:
    bench.machine.start()
    await bench.owner.until(b"r")
    for n in range(1, 4):
        await asyncio.to_thread(bench.port.notify)
        await bench.owner.until(b"r" + b"e" * n)
    await bench.owner.over()
    assert bench.owner.ends == ["poweroff: SCHEDOP_shutdown(poweroff) "]
    await asyncio.to_thread(bench.machine.stop)
    assert bench.machine.hypercall_count == 4


async def test_an_event_before_the_guest_can_see_it_comes_later(bench: Bench) -> None:
    bench.port.notify()
    bench.machine.start()
    await bench.owner.until(b"re")


async def test_pause_holds_an_event_back_until_resume(bench: Bench) -> None:
    bench.machine.start(paused=True)
    bench.machine.resume()
    await bench.owner.until(b"r")
    await asyncio.to_thread(bench.machine.pause)
    (vcpu,) = bench.machine.vcpus(regs=True)
    assert vcpu.regs is not None and vcpu.regs["rip"] in range(0x200000, 0x201000)
    bench.port.notify()
    (again,) = bench.machine.vcpus(regs=True)
    assert again.regs == vcpu.regs and bench.owner.log == b"r"
    bench.machine.resume()
    await bench.owner.until(b"re")


async def test_a_triple_fault_is_the_guests_crash(accel: str) -> None:
    async for bench in started(accel, running(TRIPLE_FAULT)):
        bench.machine.start()
        await bench.owner.over()
        (end,) = bench.owner.ends
        # a KVM in software only gives up earlier, with an internal error
        assert end.startswith(("crash: vCPU 0: KVM exit shutdown", "crash: vCPU 0: KVM exit internal")), end
        assert "'rip'" in end
