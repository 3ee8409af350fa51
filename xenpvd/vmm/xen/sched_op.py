"""sched_op: the end of the guest, its watchdogs, and waiting (which here is over at once: a guest has to bear
that, since an event may come at any time)."""

from __future__ import annotations

from xenpvd.abi import sched as s
from xenpvd.abi import xen as x
from xenpvd.errors import XenError
from xenpvd.vmm.xen.domid import DOM0
from xenpvd.vmm.xen.state import Args, Caller, Handler, State

#: A refused suspend or soft reset is cancelled by the guest, which goes on
REASONS = frozenset((s.SHUTDOWN_poweroff, s.SHUTDOWN_reboot, s.SHUTDOWN_crash, s.SHUTDOWN_watchdog))
POLL_PORTS_MAX = 128
WATCHDOGS = (1, 2)
_SECOND = 1_000_000_000


def do_yield(state: State, caller: Caller, args: Args) -> int:
    return 0


def do_block(state: State, caller: Caller, args: Args) -> int:
    """An HVM guest halts instead."""
    return 0


def do_poll(state: State, caller: Caller, args: Args) -> int:
    ports, count, _ = caller.read(s.sched_poll, args[1])
    if count > POLL_PORTS_MAX:
        raise XenError(x.EINVAL, f"{count} ports to wait for")
    raw = caller.memory.read(ports, 4 * count)
    for n in range(count):
        if state.evtchn.is_pending(int.from_bytes(raw[4 * n : 4 * n + 4], "little")):
            break
    return 0


def _reason(caller: Caller, args: Args) -> int:
    (reason,) = caller.read(s.sched_shutdown, args[1])
    if reason not in REASONS:
        raise XenError(x.EINVAL, f"shutdown reason {reason} is not offered")
    return int(reason)


def do_shutdown(state: State, caller: Caller, args: Args) -> int:
    state.shutdown(_reason(caller, args))
    return 0


def do_shutdown_code(state: State, caller: Caller, args: Args) -> int:
    """What a later shutdown will have been for, however it comes."""
    reason = _reason(caller, args)
    if state.shutdown_code is None:
        state.shutdown_code = reason
    return 0


def do_remote_shutdown(state: State, caller: Caller, args: Args) -> int:
    domid, _ = caller.read(s.sched_remote_shutdown, args[1])
    known = domid in (DOM0, state.domid)  # DOMID_SELF does not name anybody here
    raise XenError(x.EPERM if known else x.ESRCH, f"domain {domid} is not this guest's to stop")


def do_watchdog(state: State, caller: Caller, args: Args) -> int:
    """Id 0 takes a free one and answers with its id; timeout 0 gives it back."""
    ident, timeout = caller.read(s.sched_watchdog, args[1])
    free = [n for n in WATCHDOGS if n not in state.watchdogs]
    answer = 0
    if not ident:
        if not free:
            raise XenError(x.ENOSPC, "both watchdogs are in use")
        answer = ident = free[0]
    elif ident not in state.watchdogs:
        raise XenError(x.EINVAL, f"watchdog {ident} is not in use")
    elif not timeout:
        state.watchdogs.remove(ident)
        state.platform.disarm(("watchdog", ident))
        return 0
    state.watchdogs.add(ident)
    deadline = state.platform.system_time() + timeout * _SECOND
    state.platform.arm(("watchdog", ident), deadline, lambda: state.shutdown(s.SHUTDOWN_watchdog))
    return answer


OPERATIONS: dict[int, Handler] = {
    s.SCHEDOP_yield: do_yield,
    s.SCHEDOP_block: do_block,
    s.SCHEDOP_shutdown: do_shutdown,
    s.SCHEDOP_poll: do_poll,
    s.SCHEDOP_remote_shutdown: do_remote_shutdown,
    s.SCHEDOP_shutdown_code: do_shutdown_code,
    s.SCHEDOP_watchdog: do_watchdog,
}
