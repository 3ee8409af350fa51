"""xen/include/public/vcpu.h: vcpu_op."""

from __future__ import annotations

from struct import Struct

VCPUOP_register_vcpu_info = 10
vcpu_register_vcpu_info = Struct("<QII")  # mfn offset rsvd
