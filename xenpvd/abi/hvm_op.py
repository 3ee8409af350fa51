"""xen/include/public/hvm/hvm_op.h: hvm_op; hvm/params.h: the parameters."""

from __future__ import annotations

from struct import Struct

HVMOP_set_param = 0
HVMOP_get_param = 1
HVMOP_flush_tlbs = 5
HVMOP_set_evtchn_upcall_vector = 23

xen_hvm_param = Struct("<H2xIQ")  # domid index value
xen_hvm_evtchn_upcall_vector = Struct("<IB3x")  # vcpu vector

HVM_PARAM_CALLBACK_IRQ = 0
HVM_PARAM_STORE_PFN = 1
HVM_PARAM_STORE_EVTCHN = 2
HVM_PARAM_CONSOLE_PFN = 17
HVM_PARAM_CONSOLE_EVTCHN = 18
