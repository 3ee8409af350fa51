"""An outer Xen with a guest's address space and nothing else: how the tests of the operations call them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from struct import Struct

from tests.fakes.delivery import FakeDelivery
from tests.fakes.guest_memory import PRESENT, FakeMemory, FakeUses, PageTables
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SIZE
from xenpvd.abi.vcpu import RUNSTATE_blocked, RUNSTATE_running
from xenpvd.errors import XenError
from xenpvd.vmm.xen.evtchn import EventChannels
from xenpvd.vmm.xen.gnttab import GrantTable
from xenpvd.vmm.xen.gva import LONG, PAE, VirtualMemory
from xenpvd.vmm.xen.hypercall import Caller, Hypercalls

DOMID, VCPUS = 1, 2
E820 = [(0, 0x40000, 1), (0xFC00_0000, 0x10000, 3), (0xFEFF_8000, 0x8000, 2)]
RAM_PAGES = 64
#: not RAM; a guest may claim pages up to CLAIM_END
CLAIMABLE, CLAIM_END = 0x100001, 0x200000


class FakePlatform:
    """``calls`` has what was asked for, ``breaks`` how often others were let in; ``runstates`` is what each
    vCPU's runstate says."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.log = b""
        self.now = 1_000_000_000
        self.gone: set[int] = set()
        self.breaks = 0
        self.claimed: set[int] = set()
        self.armed: dict[Hashable, tuple[int, Callable[[], None]]] = {}
        self.runstates = [(RUNSTATE_running, 5, (10, 20, 30, 40)), (RUNSTATE_blocked, 6, (11, 21, 31, 41))]

    def latch_long_mode(self, longmode: bool) -> None:
        self.calls.append(("latch", longmode))

    def set_shared_info(self, gfn: int) -> None:
        self.calls.append(("shared_info", gfn))

    def set_vcpu_info(self, vcpu: int, gpa: int) -> None:
        self.calls.append(("vcpu_info", vcpu, gpa))

    def set_time_info(self, vcpu: int, gpa: int | None) -> None:
        self.calls.append(("time_info", vcpu, gpa))

    def set_runstate_area(self, vcpu: int, gpa: int | None) -> None:
        self.calls.append(("runstate_area", vcpu, gpa))

    def runstate(self, vcpu: int) -> tuple[int, int, tuple[int, int, int, int]]:
        return self.runstates[vcpu]

    def set_upcall_vector(self, vcpu: int, vector: int) -> None:
        self.calls.append(("vector", vcpu, vector))

    def set_callback_vector(self, vector: int) -> None:
        self.calls.append(("callback", vector))

    def claim(self, gfn: int) -> None:
        if gfn >= CLAIM_END:
            raise XenError(x.EINVAL, f"no memory can be at {gfn:#x}")
        self.claimed.add(gfn)

    def is_backed(self, gfn: int) -> bool:
        return self.is_ram(gfn) or gfn in self.claimed

    def is_ram(self, gfn: int) -> bool:
        return gfn < RAM_PAGES

    def discard(self, gfn: int) -> None:
        self.calls.append(("discard", gfn))
        self.gone.add(gfn)

    def populate(self, gfn: int) -> None:
        self.calls.append(("populate", gfn))
        self.gone.discard(gfn)

    def ballooned(self) -> int:
        return len(self.gone)

    def let_others(self) -> None:
        self.breaks += 1

    def system_time(self) -> int:
        return self.now

    def set_timer(self, vcpu: int, deadline: int | None) -> None:
        self.calls.append(("timer", vcpu, deadline))

    def arm(self, key: Hashable, deadline: int, act: Callable[[], None]) -> None:
        self.armed[key] = deadline, act

    def disarm(self, key: Hashable) -> None:
        self.armed.pop(key, None)

    def console_write(self, data: bytes) -> None:
        self.log += data

    def shutdown(self, reason: int) -> None:
        self.calls.append(("shutdown", reason))

    def expire(self, key: Hashable) -> None:
        """Time goes on to what ``key`` has armed."""
        self.now, act = self.armed.pop(key)
        act()


class Bench:
    """``arg`` is the caller's stack: two pages that do not lie side by side, then one that is read-only, then
    nothing. ``last`` is where a struct crosses the first two."""

    def __init__(self, longmode: bool = True) -> None:
        self.memory = FakeMemory(RAM_PAGES)
        self.platform = FakePlatform()
        self.delivery = FakeDelivery()
        self.evtchn = EventChannels(DOMID, VCPUS, self.delivery)
        self.gnttab = GrantTable(self.memory, FakeUses())
        self.params = {0: 0, 1: 0xFEFFC, 2: 2, 17: 0xFEFFF, 18: 1}
        self.hypercalls = Hypercalls(
            domid=DOMID,
            vcpus=VCPUS,
            version=(4, 17),
            ram=RAM_PAGES * PAGE_SIZE,
            e820=E820,
            params=self.params,
            evtchn=self.evtchn,
            gnttab=self.gnttab,
            platform=self.platform,
        )
        self.arg = 0xFFFF_82D0_8060_0000 if longmode else 0xC060_0000
        self.last = self.arg + PAGE_SIZE - 2
        self.read_only = self.arg + 2 * PAGE_SIZE
        self.nowhere = self.arg + 3 * PAGE_SIZE
        tables = PageTables(self.memory, 40, PageTables.LONG if longmode else PageTables.PAE)
        tables.map(self.arg, 0x8000)
        tables.map(self.arg + PAGE_SIZE, 0x3000)
        tables.map(self.read_only, 0x5000, flags=PRESENT)
        self.tables = tables
        self.virtual = VirtualMemory(self.memory, tables.cr3, LONG if longmode else PAE)
        self.caller = Caller(0, self.virtual, longmode)

    def call(self, number: int, *args: int) -> int:
        return self.hypercalls.call(self.caller, number, (*args, 0, 0, 0, 0, 0, 0)[:6])

    def put(self, layout: Struct | x.Layouts, *fields: int | bytes, at: int = 0) -> int:
        """Write a struct where the guest has it (``arg`` if nothing else is said); its address."""
        at = at or self.arg
        raw = self.caller.layout(layout).pack(*fields)
        if at == self.read_only:
            self.memory.write(0x5000, raw)
        else:
            self.virtual.write(at, raw)
        return at

    def get(self, layout: Struct | x.Layouts, at: int = 0) -> tuple[int, ...]:
        return self.caller.read(layout, at or self.arg)

    def ask(
        self, number: int, op: int, layout: Struct | x.Layouts, *fields: int, at: int = 0
    ) -> tuple[int, ...]:
        """A call with a struct by pointer: (result, the struct's fields afterwards)."""
        at = self.put(layout, *fields, at=at)
        return self.call(number, op, at), *self.get(layout, at)

    def ulongs(self, at: int, *values: int) -> int:
        """An array of the caller's unsigned longs; its address."""
        size = self.caller.ulong
        self.virtual.write(at, b"".join(value.to_bytes(size, "little") for value in values))
        return at
