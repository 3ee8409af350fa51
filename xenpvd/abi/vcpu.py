"""xen/include/public/vcpu.h: vcpu_op."""

from __future__ import annotations

from struct import Struct

from xenpvd.abi.xen import Layouts

VCPUOP_initialise = 0
VCPUOP_up = 1
VCPUOP_down = 2
VCPUOP_is_up = 3
VCPUOP_get_runstate_info = 4
VCPUOP_register_runstate_memory_area = 5
VCPUOP_set_periodic_timer = 6
VCPUOP_stop_periodic_timer = 7
VCPUOP_set_singleshot_timer = 8
VCPUOP_stop_singleshot_timer = 9
VCPUOP_register_vcpu_info = 10
VCPUOP_send_nmi = 11
VCPUOP_get_physid = 12
VCPUOP_register_vcpu_time_memory_area = 13

RUNSTATE_running = 0
RUNSTATE_runnable = 1
RUNSTATE_blocked = 2
RUNSTATE_offline = 3

#: state state_entry_time time[4], nanoseconds
vcpu_runstate_info = Layouts(Struct("<I4xQ4Q"), Struct("<IQ4Q"))
#: register_runstate_memory_area, register_vcpu_time_memory_area: a virtual address, 64 bits for both widths
vcpu_register_memory_area = Struct("<Q")
vcpu_time_info_SIZE = 32
vcpu_set_periodic_timer = Struct("<Q")  # period_ns
vcpu_set_singleshot_timer = Struct("<QI")  # timeout_abs_ns flags; padded to 16 for a 64-bit caller
VCPU_SSHOTTMR_future = 1
vcpu_register_vcpu_info = Struct("<QII")  # mfn offset rsvd
