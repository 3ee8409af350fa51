"""hvm_op: the guest's parameters and the vectors of its upcalls.

Not offered: HVMOP_flush_tlbs, though the shim asks for it at every remote flush. KVM has no cheap way to do
it, and success without it would corrupt memory; the shim sends IPIs instead.
"""

from __future__ import annotations

from xenpvd.abi import hvm_op as h
from xenpvd.abi import xen as x
from xenpvd.errors import XenError
from xenpvd.vmm.xen.state import Args, Caller, Handler, State

#: What Xen lets a guest write of its own parameters. None but CALLBACK_IRQ does anything here.
WRITABLE = frozenset(
    (
        h.HVM_PARAM_CALLBACK_IRQ,
        h.HVM_PARAM_STORE_EVTCHN,
        h.HVM_PARAM_CONSOLE_EVTCHN,
        h.HVM_PARAM_VM86_TSS,
        h.HVM_PARAM_VM86_TSS_SIZED,
        h.HVM_PARAM_ACPI_IOPORTS_LOCATION,
        h.HVM_PARAM_VM_GENERATION_ID_ADDR,
        h.HVM_PARAM_X87_FIP_WIDTH,
    )
)
READABLE = WRITABLE | {h.HVM_PARAM_STORE_PFN, h.HVM_PARAM_CONSOLE_PFN, h.HVM_PARAM_ALTP2M}
#: Gone from Xen, which says so by EINVAL
DEPRECATED = frozenset(
    (
        h.HVM_PARAM_PAE_ENABLED,
        h.HVM_PARAM_DM_DOMAIN,
        h.HVM_PARAM_MEMORY_EVENT_CR0,
        h.HVM_PARAM_MEMORY_EVENT_CR3,
        h.HVM_PARAM_MEMORY_EVENT_CR4,
        h.HVM_PARAM_MEMORY_EVENT_INT3,
        h.HVM_PARAM_NESTEDHVM,
        h.HVM_PARAM_MEMORY_EVENT_SINGLE_STEP,
        h.HVM_PARAM_BUFIOREQ_EVTCHN,
        h.HVM_PARAM_MEMORY_EVENT_MSR,
    )
)


def _param(state: State, caller: Caller, args: Args, allowed: frozenset[int]) -> tuple[int, int, int]:
    domid, index, value = caller.read(h.xen_hvm_param, args[1])
    if index >= h.HVM_NR_PARAMS:
        raise XenError(x.EINVAL, f"there is no HVM parameter {index}")
    state.check_self(domid)
    if index not in allowed:
        raise XenError(x.EINVAL if index in DEPRECATED else x.EPERM, f"HVM parameter {index}")
    return domid, index, value


def do_get_param(state: State, caller: Caller, args: Args) -> int:
    domid, index, _ = _param(state, caller, args, READABLE)
    caller.write(h.xen_hvm_param, args[1], domid, index, state.params.get(index, 0))
    return 0


def do_set_param(state: State, caller: Caller, args: Args) -> int:
    """CALLBACK_IRQ says how the guest wants its upcalls. Only a vector reaches the platform: the shim says
    "GSI 1", which tells a toolstack that PV drivers are there, and takes its upcalls by a vector per vCPU."""
    _, index, value = _param(state, caller, args, WRITABLE)
    if index == h.HVM_PARAM_X87_FIP_WIDTH and value not in (0, 4, 8):
        raise XenError(x.EINVAL, f"an x87 FIP of {value} bytes")
    if index == h.HVM_PARAM_CALLBACK_IRQ:
        vector = _callback_vector(value)
        if vector != _callback_vector(state.params.get(index, 0)):
            state.platform.set_callback_vector(vector)
        state.latch(caller.longmode)
    state.params[index] = value
    return 0


def _callback_vector(via: int) -> int:
    kind = via >> h.HVM_PARAM_CALLBACK_IRQ_TYPE_SHIFT
    return via & 0xFF if kind == h.HVM_PARAM_CALLBACK_TYPE_VECTOR else 0


def do_set_evtchn_upcall_vector(state: State, caller: Caller, args: Args) -> int:
    vcpu, vector = caller.read(h.xen_hvm_evtchn_upcall_vector, args[1])
    if vector < 0x10:
        raise XenError(x.EINVAL, f"vector {vector:#x} is the CPU's own")
    state.check_vcpu(vcpu)
    state.platform.set_upcall_vector(vcpu, vector)
    return 0


def do_get_time(state: State, caller: Caller, args: Args) -> int:
    caller.write(h.xen_hvm_get_time, args[1], state.platform.system_time())
    return 0


def do_flush_tlbs(state: State, caller: Caller, args: Args) -> int:
    """KVM has no cheap way to do this; success without it would corrupt memory. The shim sends IPIs."""
    return -x.ENOSYS


OPERATIONS: dict[int, Handler] = {
    h.HVMOP_set_param: do_set_param,
    h.HVMOP_get_param: do_get_param,
    h.HVMOP_flush_tlbs: do_flush_tlbs,
    h.HVMOP_get_time: do_get_time,
    h.HVMOP_set_evtchn_upcall_vector: do_set_evtchn_upcall_vector,
}
