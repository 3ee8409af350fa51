"""What became of a vCPU's time, for VCPUOP_get_runstate_info (include/public/vcpu.h: vcpu_runstate_info).

Made of what the host's scheduler knows of the vCPU's thread. All in ns; the times never go back and add up to
the guest's system time.
"""

from __future__ import annotations

from xenpvd.vmm.vcpu import VcpuThread

RUNSTATE_running = 0

Runstate = tuple[int, int, tuple[int, int, int, int]]


class RunstateClock:
    """One vCPU's. ``started`` is the system time at which its thread began: it was offline before."""

    def __init__(self, vcpu: VcpuThread) -> None:
        self._vcpu = vcpu
        self._ran = self._waited = self._now = 0
        self._blocked = 0

    def read(self, now: int) -> Runstate:
        """(state, since when, (running, runnable, blocked, offline)) at system time ``now``.

        Who asks is running, and a vCPU that does not is called so, too: an idle one is idle in the kernel,
        where we do not see it. A vCPU that has not been started by the guest counts as blocked.
        """
        ran, waited = self._vcpu.runtime()
        # the host's clocks are read one after the other: what does not fit is taken from what waited
        now = max(now, self._now)
        passed = now - self._now
        ran_more = min(max(0, ran - self._ran), passed)
        waited_more = min(max(0, waited - self._waited), passed - ran_more)
        self._ran, self._waited, self._now = self._ran + ran_more, self._waited + waited_more, now
        self._blocked += passed - ran_more - waited_more
        return RUNSTATE_running, now, (self._ran, self._waited, self._blocked, 0)
