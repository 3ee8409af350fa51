"""What every hypercall is given: who calls, and what the outer Xen keeps of its guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

from xenpvd.abi.xen import (
    DOMID_SELF,
    ENOENT,
    EVTCHN_2L_NR_CHANNELS,
    EVTCHN_2L_NR_CHANNELS_compat,
    Layouts,
)
from xenpvd.errors import XenError
from xenpvd.vmm.xen import domid
from xenpvd.vmm.xen.doors import GrantFrames, Platform
from xenpvd.vmm.xen.evtchn import EventChannels
from xenpvd.vmm.xen.gva import VirtualMemory


@dataclass(slots=True)
class Caller:
    """Who calls: its vCPU, its address space, and whether it is in 64-bit mode.

    All addresses are virtual; all raise ``XenError`` EFAULT.
    """

    vcpu: int
    memory: VirtualMemory
    longmode: bool = True

    @property
    def ulong(self) -> int:
        """Bytes of an unsigned long, a frame number or a pointer."""
        return 8 if self.longmode else 4

    def layout(self, layout: Struct | Layouts) -> Struct:
        if isinstance(layout, Struct):
            return layout
        return layout.native if self.longmode else layout.compat

    def read(self, layout: Struct | Layouts, at: int) -> tuple[Any, ...]:
        """The fields of a struct: a private copy."""
        struct = self.layout(layout)
        return struct.unpack(self.memory.read(at, struct.size))

    def write(self, layout: Struct | Layouts, at: int, *fields: int | bytes) -> None:
        self.memory.write(at, self.layout(layout).pack(*fields))

    def read_ulong(self, array: int, index: int) -> int:
        """One element of an array of frame numbers or indexes."""
        return int.from_bytes(self.memory.read(array + index * self.ulong, self.ulong), "little")


@dataclass(slots=True)
class State:
    """What the outer Xen keeps of its guest, besides ports and grants. ``ram`` in bytes."""

    domid: int
    vcpus: int
    version: tuple[int, int]
    ram: int
    e820: list[tuple[int, int, int]]
    params: dict[int, int]
    evtchn: EventChannels
    gnttab: GrantFrames
    platform: Platform
    #: vCPUs that have placed their vcpu_info
    registered: set[int] = field(default_factory=set)
    watchdogs: set[int] = field(default_factory=set)
    shutdown_code: int | None = None
    ended: bool = False

    def is_self(self, asked: int) -> bool:
        return asked in (DOMID_SELF, self.domid)

    def check_self(self, asked: int) -> None:
        domid.check_self(asked, self.domid)

    def check_vcpu(self, vcpu: int) -> None:
        if vcpu >= self.vcpus:
            raise XenError(ENOENT, f"there is no vCPU {vcpu}")

    def latch(self, longmode: bool) -> None:
        """shared_info has this layout from now on; a 32-bit one has fewer ports."""
        self.platform.latch_long_mode(longmode)
        self.evtchn.limit = EVTCHN_2L_NR_CHANNELS if longmode else EVTCHN_2L_NR_CHANNELS_compat

    def shutdown(self, reason: int) -> None:
        """The guest ends once, for the first reason that was named."""
        if self.shutdown_code is None:
            self.shutdown_code = reason
        if not self.ended:
            self.ended = True
            self.platform.shutdown(self.shutdown_code)


#: The six argument registers in the ABI's order; of a 32-bit caller with zeros above
Args = Sequence[int]
#: An operation: the value for RAX. Raises ``XenError``.
Handler = Callable[[State, Caller, Args], int]
