"""A machine without KVM: the doors of ``vmm.machine.Machine``, and a guest's half for tests to play.

``machines`` (a fixture in tests/conftest.py) puts it in the real one's place and collects every life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from tests.fakes.blkfront import Blkfront
from tests.fakes.evtchn import FakeEvtchnOps
from tests.fakes.gnttab import FakeGnttab
from tests.fakes.page import FakePage
from tests.fakes.xenstore_frontend import XenstoreFrontend
from xenpvd.errors import NotFound
from xenpvd.figures import VcpuStats
from xenpvd.views import (
    GrantInfo,
    HostInfo,
    HypercallCall,
    HypercallCount,
    HypercallStats,
    MemoryRegion,
    PortInfo,
    VcpuInfo,
)
from xenpvd.vmm import layout
from xenpvd.vmm.boot import BootImage
from xenpvd.vmm.machine import MachineConfig, Owner
from xenpvd.vmm.memory import GuestMemory

WRITE = 11
WATCH = 4


class FakeGrants(FakeGnttab):
    """With what ``vmm.grants.Grants`` tells of itself."""

    @property
    def active(self) -> int:
        return len(self.mapped)

    def listing(self) -> list[GrantInfo]:
        return [
            GrantInfo(
                gref,
                0x1000 + gref,
                entry.domid,
                entry.readonly,
                maps > 0,
                maps > 0 and not entry.readonly,
                maps,
            )
            for gref, entry in sorted(self.entries.items())
            for maps in [self.mapped[gref]]
        ]


class FakeMachine:
    """One life. ``guest_*`` is what the guest inside would do."""

    host = HostInfo("kvm-xen", "a machine without KVM", 0x1FF, "4k", "nothing is allocated")
    hypercall_count = 31
    log_writes = 3
    exit_count = 100
    log_lost = 7

    def __init__(self, config: MachineConfig, image: BootImage, owner: Owner) -> None:
        self.config, self.image, self.owner = config, image, owner
        self.evtchn = FakeEvtchnOps()
        self.grants = FakeGrants()
        self.console_port = self.evtchn.alloc_unbound()
        self.store_port = self.evtchn.alloc_unbound()
        self.pages = {layout.CONSOLE_PFN: FakePage(), layout.STORE_PFN: FakePage()}
        self.over = False
        self.started = asyncio.Event()
        self.stopped = self.closed = self.paused = False
        self.online = frozenset[int]()
        self.ballooned = 0
        self.injected: list[int] = []
        self.stuck_by: str | None = None
        self.memory = GuestMemory()
        self.memory.add("ram", 0, 4 * layout.MIB, ram=True)

    def page(self, gfn: int) -> FakePage:
        return self.pages[gfn]

    def bind_interdomain(self, remote_port: int) -> object:
        return self.evtchn.bind_interdomain(remote_port)

    def start(self, paused: bool = False) -> None:
        self.paused = paused
        self.started.set()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def stop(self) -> None:
        self.stopped = True

    def close(self, *, release: bool = True) -> None:
        assert self.stopped
        self.closed = True
        self.released = release

    def end(self, reason: str, detail: str = "", regs: dict[str, int] | None = None) -> None:
        self.over = True
        self.owner.machine_ended(reason, detail, regs)

    # -- introspection

    def stuck(self, limit: float) -> str | None:
        return self.stuck_by

    def vcpus(self, regs: bool = False) -> list[VcpuInfo]:
        state = "stopped" if self.stopped else "paused" if self.paused else "running"
        known = {"rip": 0x1234, "cr3": 0x5000, "efer": 0x500} if regs else None
        return [VcpuInfo(n, n in self.online, state, 50, known) for n in range(self.config.vcpus)]

    def vcpu_stats(self) -> list[VcpuStats]:
        return [
            VcpuStats(vcpu.id, vcpu.online, vcpu.state, 1.5 + vcpu.id, 0.25, {"hypercall": 31, "io": 19})
            for vcpu in self.vcpus()
        ]

    def ports(self) -> list[PortInfo]:
        return [
            PortInfo(port, 0, "interdomain" if port in self.evtchn.ports else "unbound", "0", 1, False, False)
            for port in (self.console_port, self.store_port)
        ]

    def inject(self, port: int) -> PortInfo:
        for info in self.ports():
            if info.port == port:
                self.injected.append(port)
                return info
        raise NotFound(f"cannot raise port {port}: it is closed. See evtchn.list.", "port", str(port))

    def hypercall_stats(self, recent: int) -> HypercallStats:
        calls = (HypercallCall(1, 0, "sched_op yield", (0,), 0),)[:recent]
        return HypercallStats(31, (HypercallCount("sched_op yield", 31, {"ok": 31}),), calls, {"io": 69})

    def memory_regions(self) -> list[MemoryRegion]:
        return [MemoryRegion("ram", 0, self.config.ram, self.config.ram // 2, 0)]

    # -- the guest's half

    def guest_onlines(self, vcpus: Collection[int]) -> None:
        """The guest uses these vCPUs from now on."""
        self.online = frozenset(vcpus)
        self.owner.machine_changed()

    def guest_balloons(self, pages: int) -> None:
        """The guest has given back so many pages in all."""
        self.ballooned = pages
        self.owner.machine_changed()

    def guest_prints(self, data: bytes) -> None:
        """Into hvc0's ring, with a kick; at most what fits."""
        page = self.pages[layout.CONSOLE_PFN]
        prod = page.load32(3084)
        for n, byte in enumerate(data):
            page.write(1024 + (prod + n) % 2048, bytes([byte]))
        page.store32(3084, prod + len(data))
        if (port := self.evtchn.ports.get(self.console_port)) is not None and not port.closed:
            port.guest_kick()

    def guest_typed(self) -> bytes:
        """What waits in hvc0's input, taken."""
        page = self.pages[layout.CONSOLE_PFN]
        cons, prod = page.load32(3072), page.load32(3076)
        data = b"".join(page.read((cons + n) % 1024, 1) for n in range((prod - cons) % 2**32))
        page.store32(3072, prod)
        return data

    def guest_store(self) -> XenstoreFrontend:
        return XenstoreFrontend(self.pages[layout.STORE_PFN], self.evtchn.ports[self.store_port])

    def guest_disk(self, store: object, devid: int) -> Blkfront:
        """``store``: any connection that may write the front end's nodes."""
        return Blkfront(store, self.evtchn, self.grants, devid)  # type: ignore[arg-type]

    async def guest_obeys_shutdown(self) -> str:
        """Wait for control/shutdown, acknowledge it, end as told; returns what was asked."""
        store = self.guest_store()
        assert await store.ask(WATCH, b"control/shutdown\0t\0") == b"OK\0"
        while True:
            await store.event()
            asked = await store.ask(2, b"control/shutdown\0")
            assert isinstance(asked, bytes)
            if asked:
                break
        assert await store.ask(WRITE, b"control/shutdown\0") == b"OK\0"
        self.end("reboot" if asked == b"reboot" else "poweroff")
        return asked.decode()
