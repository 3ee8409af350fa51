"""vcpu_op and set_timer_op: where a vCPU's shared structures lie, and its timers.

Other vCPUs are started by INIT and SIPI, as a PVH guest does it: VCPUOP_initialise and VCPUOP_down are not
offered.
"""

from __future__ import annotations

from xenpvd.abi import vcpu as v
from xenpvd.abi import xen as x
from xenpvd.abi.page import PAGE_SHIFT, PAGE_SIZE
from xenpvd.errors import XenError
from xenpvd.vmm.xen.state import Args, Caller, Handler, State

_MS = 1_000_000
#: Shortest and longest period of a periodic timer, as in Xen
PERIOD_MIN, PERIOD_MAX = _MS, (1 << 62) - 1
#: set_timer_op takes a deadline farther away (or negative) for a mistake in the guest's arithmetic: about 13
#: days; as Xen, it fires soon, but not so soon that a guest without timers spins
TIMER_FAR, TIMER_SOON = 1 << 50, 100 * _MS
_S64_MAX = (1 << 63) - 1


def _vcpu(state: State, args: Args) -> int:
    vcpu = args[1] & 0xFFFF_FFFF
    state.check_vcpu(vcpu)
    return vcpu


# -- shared structures


def do_register_vcpu_info(state: State, caller: Caller, args: Args) -> int:
    vcpu = _vcpu(state, args)
    gfn, offset, _ = caller.read(v.vcpu_register_vcpu_info, args[2])
    if offset > PAGE_SIZE - x.VCPU_INFO_SIZE or offset % caller.ulong:
        raise XenError(x.ENXIO, f"vcpu_info does not fit at offset {offset:#x} of a page")
    if vcpu in state.registered or not state.platform.is_backed(gfn):
        raise XenError(x.EINVAL, f"vcpu_info of vCPU {vcpu} cannot lie at frame {gfn:#x}")
    state.platform.set_vcpu_info(vcpu, (gfn << PAGE_SHIFT) + offset)
    state.registered.add(vcpu)
    return 0


def do_register_vcpu_time_memory_area(state: State, caller: Caller, args: Args) -> int:
    vcpu = _vcpu(state, args)
    (gva,) = caller.read(v.vcpu_register_memory_area, args[2])
    state.platform.set_time_info(vcpu, _area(state, caller, gva, v.vcpu_time_info_SIZE))
    return 0


def do_register_runstate_memory_area(state: State, caller: Caller, args: Args) -> int:
    vcpu = _vcpu(state, args)
    (gva,) = caller.read(v.vcpu_register_memory_area, args[2])
    gpa = _area(state, caller, gva, caller.layout(v.vcpu_runstate_info).size)
    state.platform.set_runstate_area(vcpu, gpa)
    if gpa is not None:
        _write_runstate(state, caller, vcpu, gva)
    return 0


def _area(state: State, caller: Caller, gva: int, size: int) -> int | None:
    """The physical address of a structure that is kept up to date from now on; None for a null pointer."""
    if not gva:
        return None
    first = caller.memory.translate(gva, write=True)
    last = caller.memory.translate(gva + size - 1, write=True)
    if last - first != size - 1 or not all(
        state.platform.is_backed(gpa >> PAGE_SHIFT) for gpa in (first, last)
    ):
        raise XenError(x.EFAULT, f"{size} bytes at {gva:#x} are not one piece of memory")
    return first


def do_get_runstate_info(state: State, caller: Caller, args: Args) -> int:
    _write_runstate(state, caller, _vcpu(state, args), args[2])
    return 0


def _write_runstate(state: State, caller: Caller, vcpu: int, gva: int) -> None:
    what, since, times = state.platform.runstate(vcpu)
    caller.write(v.vcpu_runstate_info, gva, what, since, *times)


# -- up and down


def do_is_up(state: State, caller: Caller, args: Args) -> int:
    return int(state.platform.runstate(_vcpu(state, args))[0] != v.RUNSTATE_offline)


def do_up(state: State, caller: Caller, args: Args) -> int:
    """Nothing for a vCPU that runs; one that does not has never been initialised by VCPUOP_initialise."""
    if not do_is_up(state, caller, args):
        raise XenError(x.EINVAL, "a vCPU is started by INIT and SIPI")
    return 0


def do_get_physid(state: State, caller: Caller, args: Args) -> int:
    """Only for domain 0 with its vCPUs pinned."""
    raise XenError(x.EINVAL, f"vCPU {_vcpu(state, args)} is not pinned to a CPU")


# -- timers


def do_set_periodic_timer(state: State, caller: Caller, args: Args) -> int:
    vcpu = _vcpu(state, args)
    (period,) = caller.read(v.vcpu_set_periodic_timer, args[2])
    if not PERIOD_MIN <= period <= PERIOD_MAX:
        raise XenError(x.EINVAL, f"a period of {period} ns")

    def tick() -> None:
        state.platform.arm(("periodic", vcpu), state.platform.system_time() + period, tick)
        state.evtchn.raise_virq(x.VIRQ_TIMER, vcpu)

    state.platform.arm(("periodic", vcpu), state.platform.system_time() + period, tick)
    return 0


def do_stop_periodic_timer(state: State, caller: Caller, args: Args) -> int:
    state.platform.disarm(("periodic", _vcpu(state, args)))
    return 0


def do_set_singleshot_timer(state: State, caller: Caller, args: Args) -> int:
    vcpu = _own_vcpu(state, caller, args)
    deadline, flags = caller.read(v.vcpu_set_singleshot_timer, args[2])
    if flags & v.VCPU_SSHOTTMR_future and deadline < state.platform.system_time():
        raise XenError(x.ETIME, "the time has passed")
    state.platform.set_timer(vcpu, min(deadline, _S64_MAX))
    return 0


def do_stop_singleshot_timer(state: State, caller: Caller, args: Args) -> int:
    state.platform.set_timer(_own_vcpu(state, caller, args), None)
    return 0


def _own_vcpu(state: State, caller: Caller, args: Args) -> int:
    if _vcpu(state, args) != caller.vcpu:
        raise XenError(x.EINVAL, "a one-shot timer is a vCPU's own affair")
    return caller.vcpu


def do_set_timer(state: State, caller: Caller, args: Args) -> int:
    """set_timer_op: the deadline in one register, or in two of 32 bits; 0 stops the timer."""
    deadline = args[0] if caller.longmode else args[1] << 32 | args[0]
    if not deadline:
        state.platform.set_timer(caller.vcpu, None)
        return 0
    now = state.platform.system_time()
    if deadline > _S64_MAX or deadline - now >= TIMER_FAR:
        deadline = now + TIMER_SOON
    state.platform.set_timer(caller.vcpu, deadline)
    return 0


OPERATIONS: dict[int, Handler] = {
    v.VCPUOP_up: do_up,
    v.VCPUOP_is_up: do_is_up,
    v.VCPUOP_get_runstate_info: do_get_runstate_info,
    v.VCPUOP_register_runstate_memory_area: do_register_runstate_memory_area,
    v.VCPUOP_set_periodic_timer: do_set_periodic_timer,
    v.VCPUOP_stop_periodic_timer: do_stop_periodic_timer,
    v.VCPUOP_set_singleshot_timer: do_set_singleshot_timer,
    v.VCPUOP_stop_singleshot_timer: do_stop_singleshot_timer,
    v.VCPUOP_register_vcpu_info: do_register_vcpu_info,
    v.VCPUOP_get_physid: do_get_physid,
    v.VCPUOP_register_vcpu_time_memory_area: do_register_vcpu_time_memory_area,
}
