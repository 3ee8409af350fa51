"""xen/include/public/hvm/hvm_op.h: hvm_op; hvm/params.h: the parameters. The same for both widths."""

from __future__ import annotations

from struct import Struct

HVMOP_set_param = 0
HVMOP_get_param = 1
HVMOP_flush_tlbs = 5
HVMOP_pagetable_dying = 9
HVMOP_get_time = 10
HVMOP_set_evtchn_upcall_vector = 23

xen_hvm_param = Struct("<H2xIQ")  # domid index value
xen_hvm_get_time = Struct("<Q")  # now(OUT)
xen_hvm_evtchn_upcall_vector = Struct("<IB3x")  # vcpu vector

HVM_PARAM_CALLBACK_IRQ = 0
HVM_PARAM_STORE_PFN = 1
HVM_PARAM_STORE_EVTCHN = 2
HVM_PARAM_PAE_ENABLED = 4
HVM_PARAM_DM_DOMAIN = 13
HVM_PARAM_VM86_TSS = 15
HVM_PARAM_CONSOLE_PFN = 17
HVM_PARAM_CONSOLE_EVTCHN = 18
HVM_PARAM_ACPI_IOPORTS_LOCATION = 19
HVM_PARAM_MEMORY_EVENT_CR0 = 20
HVM_PARAM_MEMORY_EVENT_CR3 = 21
HVM_PARAM_MEMORY_EVENT_CR4 = 22
HVM_PARAM_MEMORY_EVENT_INT3 = 23
HVM_PARAM_NESTEDHVM = 24
HVM_PARAM_MEMORY_EVENT_SINGLE_STEP = 25
HVM_PARAM_BUFIOREQ_EVTCHN = 26
HVM_PARAM_MEMORY_EVENT_MSR = 30
HVM_PARAM_VM_GENERATION_ID_ADDR = 34
HVM_PARAM_ALTP2M = 35
HVM_PARAM_X87_FIP_WIDTH = 36
HVM_PARAM_VM86_TSS_SIZED = 37
HVM_NR_PARAMS = 39

#: HVM_PARAM_CALLBACK_IRQ: bits 63:56 say how an upcall is delivered
HVM_PARAM_CALLBACK_IRQ_TYPE_SHIFT = 56
HVM_PARAM_CALLBACK_TYPE_VECTOR = 2  # bits 7:0: the vector, on every vCPU
