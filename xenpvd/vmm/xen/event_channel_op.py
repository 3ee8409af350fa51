"""event_channel_op: the hypercalls in front of :class:`EventChannels`.

The FIFO ABI (init_control, expand_array, set_priority) is not offered: a guest that is told ENOSYS uses the
2-level one.
"""

from __future__ import annotations

from struct import Struct

from xenpvd.abi import event_channel as e
from xenpvd.abi import xen as x
from xenpvd.errors import XenError
from xenpvd.vmm.xen.state import Args, Caller, Handler, State


def do_evtchn_alloc_unbound(state: State, caller: Caller, args: Args) -> int:
    dom, remote, _ = caller.read(e.evtchn_alloc_unbound, args[1])
    port = state.evtchn.alloc_unbound(dom, remote)
    return _tell(state, caller, args, e.evtchn_alloc_unbound, dom, remote, port)


def do_evtchn_bind_interdomain(state: State, caller: Caller, args: Args) -> int:
    dom, remote, _ = caller.read(e.evtchn_bind_interdomain, args[1])
    port = state.evtchn.bind_interdomain(dom, remote)
    return _tell(state, caller, args, e.evtchn_bind_interdomain, dom, remote, port)


def do_evtchn_bind_virq(state: State, caller: Caller, args: Args) -> int:
    virq, vcpu, _ = caller.read(e.evtchn_bind_virq, args[1])
    port = state.evtchn.bind_virq(virq, vcpu)
    return _tell(state, caller, args, e.evtchn_bind_virq, virq, vcpu, port)


def do_evtchn_bind_ipi(state: State, caller: Caller, args: Args) -> int:
    vcpu, _ = caller.read(e.evtchn_bind_ipi, args[1])
    port = state.evtchn.bind_ipi(vcpu)
    return _tell(state, caller, args, e.evtchn_bind_ipi, vcpu, port)


def _tell(state: State, caller: Caller, args: Args, layout: Struct, *answer: int) -> int:
    """All these end with the new port."""
    try:
        caller.write(layout, args[1], *answer)
    except XenError:
        state.evtchn.close(answer[-1])  # nobody would know of it
        raise
    return 0


def do_evtchn_bind_pirq(state: State, caller: Caller, args: Args) -> int:
    pirq, *_ = caller.read(e.evtchn_bind_pirq, args[1])
    raise XenError(x.EINVAL, f"there is no physical interrupt {pirq}")


def do_evtchn_bind_vcpu(state: State, caller: Caller, args: Args) -> int:
    port, vcpu = caller.read(e.evtchn_bind_vcpu, args[1])
    state.evtchn.bind_vcpu(port, vcpu)
    return 0


def do_evtchn_close(state: State, caller: Caller, args: Args) -> int:
    state.evtchn.close(_port(caller, args))
    return 0


def do_evtchn_send(state: State, caller: Caller, args: Args) -> int:
    state.evtchn.send(_port(caller, args))
    return 0


def do_evtchn_unmask(state: State, caller: Caller, args: Args) -> int:
    state.evtchn.unmask(_port(caller, args))
    return 0


def _port(caller: Caller, args: Args) -> int:
    return int(caller.read(e.evtchn_port, args[1])[0])


def do_evtchn_status(state: State, caller: Caller, args: Args) -> int:
    dom, port, *_ = caller.read(e.evtchn_status, args[1])
    caller.write(e.evtchn_status, args[1], dom, port, *state.evtchn.status(dom, port))
    return 0


def do_evtchn_reset(state: State, caller: Caller, args: Args) -> int:
    (dom,) = caller.read(e.evtchn_reset, args[1])
    state.evtchn.reset(dom, state.platform.let_others)
    return 0


OPERATIONS: dict[int, Handler] = {
    e.EVTCHNOP_bind_interdomain: do_evtchn_bind_interdomain,
    e.EVTCHNOP_bind_virq: do_evtchn_bind_virq,
    e.EVTCHNOP_bind_pirq: do_evtchn_bind_pirq,
    e.EVTCHNOP_close: do_evtchn_close,
    e.EVTCHNOP_send: do_evtchn_send,
    e.EVTCHNOP_status: do_evtchn_status,
    e.EVTCHNOP_alloc_unbound: do_evtchn_alloc_unbound,
    e.EVTCHNOP_bind_ipi: do_evtchn_bind_ipi,
    e.EVTCHNOP_bind_vcpu: do_evtchn_bind_vcpu,
    e.EVTCHNOP_unmask: do_evtchn_unmask,
    e.EVTCHNOP_reset: do_evtchn_reset,
}
