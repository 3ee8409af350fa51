"""How late the event loop comes to what is due: whatever blocks it, or makes the host's CPUs scarce, is seen
there; and what is done against the latter."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import time
from struct import Struct

from xenpvd.counts import Durations

log = logging.getLogger(__name__)

# linux/sched/types.h: size, sched_policy, sched_flags, sched_nice, sched_priority, sched_runtime, ...
_SCHED_ATTR = Struct("=IIQiIQQQ")
_SYS_sched_setattr = 314  # x86_64
_SCHED_FLAG_RESET_ON_FORK = 1
#: Nanoseconds, the shortest there is
SLICE = 100_000

#: Seconds between two looks, and how late one must come to be told
PERIOD = 0.4
LATE = 0.5


def come_first() -> None:
    """Let this thread run as soon as it wants to, however busy vCPUs and disks are; not those that it begins.

    Who wants little of a CPU gets it (EEVDF, Linux 6.6), but would wait until others' slices of some 3 ms
    are over. By a shorter one of its own it comes first, and gets no more CPU (sched_setattr(2), Linux 6.12).
    It needs no privilege; where it is refused all is as before.
    """
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    if policy != os.SCHED_OTHER or nice < 0:
        return  # who has started us has decided otherwise; and vCPUs and disks would lose that by our flag
    attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, _SCHED_FLAG_RESET_ON_FORK, nice, 0, SLICE, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(_SYS_sched_setattr), 0, attr, 0):
        log.debug("no shorter time slice: %s", os.strerror(ctypes.get_errno()))


async def watch(lag: Durations, period: float = PERIOD) -> None:
    """Note in ``lag`` how late each of a row of wake-ups came, until cancelled.

    When the loop has stood still for long it is logged: no client and no device was served meanwhile. How
    much of that time this thread was at work tells a mistake of ours from a busy host, or from a SIGSTOP.
    """
    while True:
        due, worked = time.monotonic_ns() + int(period * 1e9), time.thread_time()
        await asyncio.sleep(period)
        late = max(0, time.monotonic_ns() - due)
        lag.note(late)
        if late > LATE * 1e9:
            worked = time.thread_time() - worked
            log.warning(
                "nobody was served for %.1f s, of which %.1f s were work of the loop", late / 1e9, worked
            )
