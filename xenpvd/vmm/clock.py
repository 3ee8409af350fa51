"""The guest's clock: Xen's system time, which KVM counts from the VM's start, and the wall clock beside it.

A guest's time of day is the wall clock (the time of day when system time was 0) plus system time. Xen's shim
drops the fractions of seconds of both (get_wallclock_time in xen/arch/x86/time.c) and would let its guest
lag by up to two seconds. So the VM starts in the middle of a second, and the shim is told the next whole one:
its guest is right to half a second.
"""

from __future__ import annotations

import time

from xenpvd.vmm.kvm import Vm

_SECOND = 1_000_000_000


class Clock:
    """``whole_seconds``: for a guest that drops fractions. Make it before the VM has vCPUs."""

    def __init__(self, vm: Vm, *, whole_seconds: bool) -> None:
        self._vm = vm
        self._whole_seconds = whole_seconds
        if whole_seconds:
            vm.set_clock((time.time_ns() + _SECOND // 2) % _SECOND)

    def now(self) -> int:
        """Xen's system time in ns."""
        return self._vm.clock()[0]

    def epoch(self) -> int:
        """The time of day to be told for system time 0: ns of the Unix epoch."""
        now, realtime = self._vm.clock()
        epoch = (time.time_ns() if realtime is None else realtime) - now
        return (epoch // _SECOND + 1) * _SECOND if self._whole_seconds else epoch
