"""xen/include/public/sched.h: sched_op."""

from __future__ import annotations

from struct import Struct

from xenpvd.abi.xen import Layouts

SCHEDOP_yield = 0
SCHEDOP_block = 1
SCHEDOP_shutdown = 2
SCHEDOP_poll = 3
SCHEDOP_remote_shutdown = 4
SCHEDOP_shutdown_code = 5
SCHEDOP_watchdog = 6

SHUTDOWN_poweroff = 0
SHUTDOWN_reboot = 1
SHUTDOWN_suspend = 2
SHUTDOWN_crash = 3
SHUTDOWN_watchdog = 4
SHUTDOWN_soft_reset = 5

SHUTDOWN_NAMES = {0: "poweroff", 1: "reboot", 2: "suspend", 3: "crash", 4: "watchdog", 5: "soft_reset"}

sched_shutdown = Struct("<I")  # reason
sched_poll = Layouts(Struct("<QI4xQ"), Struct("<IIQ"))  # ports (pointer to u32) nr_ports timeout
sched_remote_shutdown = Struct("<H2xI")  # domain_id reason
sched_watchdog = Struct("<II")  # id timeout (seconds)
