"""The hypercalls that reach the outer Xen: a closed list, a file per family; here dispatched and counted.

The shim keeps nearly everything of the guest to itself (mmu, timers, VIRQs, versions); a PVH guest asks for
more. Anything else is -ENOSYS and counted. A pointer that leads nowhere is -EFAULT. Nothing raises out.
"""

from __future__ import annotations

import errno
from collections import Counter, deque

from xenpvd.abi import xen as x
from xenpvd.errors import KvmError, XenError
from xenpvd.views import HypercallCall, HypercallCount
from xenpvd.vmm.xen import (
    console_io,
    event_channel_op,
    grant_table_op,
    hvm_op,
    memory_op,
    sched_op,
    vcpu_op,
    version_op,
)
from xenpvd.vmm.xen.doors import GrantFrames, Platform
from xenpvd.vmm.xen.evtchn import EventChannels
from xenpvd.vmm.xen.state import Args, Caller, Handler, State

__all__ = ["Caller", "GrantFrames", "Hypercalls", "Platform"]

#: Calls of one multicall; Linux asks for at most 32
MULTICALL_MAX = 32
#: The newest calls that are kept for who looks
RECENT = 256

_FAMILIES = {
    x.HYPERVISOR_memory_op: memory_op.OPERATIONS,
    x.HYPERVISOR_xen_version: version_op.OPERATIONS,
    x.HYPERVISOR_console_io: console_io.OPERATIONS,
    x.HYPERVISOR_grant_table_op: grant_table_op.OPERATIONS,
    x.HYPERVISOR_vcpu_op: vcpu_op.OPERATIONS,
    x.HYPERVISOR_sched_op: sched_op.OPERATIONS,
    x.HYPERVISOR_event_channel_op: event_channel_op.OPERATIONS,
    x.HYPERVISOR_hvm_op: hvm_op.OPERATIONS,
}
#: (hypercall, operation in its first argument) -> what answers
OPERATIONS: dict[tuple[int, int], Handler] = {
    (number, op): handler for number, family in _FAMILIES.items() for op, handler in family.items()
}
#: How many registers a hypercall reads, where not two
_ARGS = {
    x.HYPERVISOR_console_io: 3,
    x.HYPERVISOR_grant_table_op: 3,
    x.HYPERVISOR_vcpu_op: 3,
}


class Hypercalls:
    """Answers hypercalls; its owner holds the machine's lock around :meth:`call` and :meth:`stats`, and
    begins no other call while one lets others in."""

    def __init__(
        self,
        *,
        domid: int,
        vcpus: int,
        version: tuple[int, int],
        ram: int,
        e820: list[tuple[int, int, int]],
        params: dict[int, int],
        evtchn: EventChannels,
        gnttab: GrantFrames,
        platform: Platform,
    ) -> None:
        self._state = State(domid, vcpus, version, ram, e820, params, evtchn, gnttab, platform)
        self._handlers = {key: (handler.__name__, handler) for key, handler in OPERATIONS.items()}
        #: the hypercalls without an operation in the first argument
        self._whole: dict[int, tuple[str, Handler]] = {
            x.HYPERVISOR_multicall: ("do_multicall", self._do_multicall),
            x.HYPERVISOR_set_timer_op: ("do_set_timer", vcpu_op.do_set_timer),
        }
        self._in_multicall = False
        names = [name for name, _ in (*self._handlers.values(), *self._whole.values())]
        #: handler's name: count. The keys are never more, so another thread may look at it
        self.counts = dict.fromkeys(["unknown", *names], 0)
        self._results: Counter[tuple[str, int]] = Counter()  # (name, errno or 0)
        self._total = 0
        self._recent: deque[tuple[int, int, int, Args, int]] = deque(maxlen=RECENT)

    def call(self, caller: Caller, number: int, args: Args) -> int:
        """The value for RAX: 0 or more, or a negative errno. ``args``: the six registers of the ABI."""
        found = self._handlers.get((number, args[0] & 0xFFFF_FFFF)) or self._whole.get(number)
        if found is None:
            name, result = "unknown", -x.ENOSYS
        else:
            name, handler = found
            try:
                result = handler(self._state, caller, args)
            except XenError as fault:
                result = -fault.errno
            except KvmError:
                # KVM does not take what the guest has asked for: that is the guest's affair, and its error
                result = -x.EINVAL
        self.counts[name] += 1
        self._results[name, min(result, 0)] += 1
        self._total += 1
        self._recent.append((self._total, caller.vcpu, number, args, result))
        return result

    def _do_multicall(self, state: State, caller: Caller, args: Args) -> int:
        """Each entry is a call, and gets its result; more than a slice of them is refused."""
        entries, count = args[0], args[1] & 0xFFFF_FFFF
        if self._in_multicall or count > MULTICALL_MAX:
            raise XenError(x.EINVAL, f"{count} calls in one{', inside of one' if self._in_multicall else ''}")
        layout = caller.layout(x.multicall_entry)
        ones = (1 << 8 * caller.ulong) - 1
        self._in_multicall = True
        try:
            for n in range(count):
                if n:
                    state.platform.let_others()
                at = entries + n * layout.size
                number, _, *its_args = caller.read(layout, at)
                result = self.call(caller, number, tuple(its_args))
                caller.memory.write(at + caller.ulong, (result & ones).to_bytes(caller.ulong, "little"))
        finally:
            self._in_multicall = False
        return 0

    # -- for who looks

    def stats(self, recent: int) -> tuple[int, tuple[HypercallCount, ...], tuple[HypercallCall, ...]]:
        """(calls so far, operations by frequency, the ``recent`` newest calls with the oldest first)."""
        results: dict[str, dict[str, int]] = {}
        for (name, code), count in self._results.items():
            results.setdefault(name, {})[_result(code)] = count
        counts = (HypercallCount(_name(name), self.counts[name], its) for name, its in results.items())
        newest = list(self._recent)[-recent:] if recent > 0 else []
        return (
            self._total,
            tuple(sorted(counts, key=lambda one: (-one.count, one.name))),
            tuple(self._decoded(*call) for call in newest),
        )

    def _decoded(self, seq: int, vcpu: int, number: int, args: Args, result: int) -> HypercallCall:
        found = self._handlers.get((number, args[0] & 0xFFFF_FFFF)) or self._whole.get(number)
        name = _name(found[0]) if found else f"unknown {number}"
        return HypercallCall(seq, vcpu, name, tuple(args[: _ARGS.get(number, 2)]), result)


def _name(handler: str) -> str:
    return handler.removeprefix("do_")


def _result(code: int) -> str:
    return errno.errorcode.get(-code, str(code)) if code else "ok"
