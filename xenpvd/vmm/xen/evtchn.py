"""The event-channel ports of the guest: the 2-level ABI of include/public/event_channel.h, as a table.

The port space is flat: the shim hands its guest the very numbers we give it, and keeps a record for every
number up to the highest, so the lowest free one is always taken. Domain 0 is this process.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from xenpvd.abi.event_channel import (
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenpvd.abi.xen import (
    DOMID_SELF,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSPC,
    ESRCH,
    EVTCHN_2L_NR_CHANNELS,
    NR_VIRQS,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    VIRQ_XENOPROF,
    VIRQ_XENPMU,
)
from xenpvd.errors import XenError
from xenpvd.vmm.xen.domid import DOM0, check_self

#: Each vCPU has these of its own; the other VIRQs are bound once, to vCPU 0
_PER_VCPU = (VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU)
#: IPIs of one vCPU; guests use up to 8. KVM may take milliseconds to forget one
IPIS_MAX = 64


class Delivery(Protocol):
    """How events travel; one implementation per accelerator. Waits for the kernel at most."""

    def guest_up(self) -> None:
        """The guest takes events from now on: deliver those that were raised before."""

    def connect(self, port: int, vcpu: int) -> None:
        """From now on the guest's sends on ``port`` reach its backend, and the backend's reach ``vcpu``."""

    def connect_ipi(self, port: int, vcpu: int) -> None:
        """From now on sends on ``port`` raise the same port on ``vcpu``."""

    def connect_timer(self, port: int, vcpu: int) -> None:
        """From now on the timer of ``vcpu`` raises ``port``."""

    def retarget(self, port: int, vcpu: int) -> None:
        """Deliver ``port`` to another vCPU; raise it there if it is pending and not masked."""

    def disconnect(self, port: int) -> None:
        """Undo ``connect``, ``connect_ipi`` or ``connect_timer``; nothing if there was none."""

    def kick(self, port: int) -> None:
        """Tell the port's backend; only needed where the kernel does not do it."""

    def raise_port(self, port: int, vcpu: int) -> None: ...

    def unmask(self, port: int, vcpu: int) -> None:
        """Clear the port's mask bit; if it is pending, deliver it."""

    def clear_pending(self, port: int) -> None: ...

    def is_pending(self, port: int) -> bool: ...

    def is_masked(self, port: int) -> bool: ...


@dataclass(slots=True)
class Channel:
    """One allocated port. ``remote_port`` is domain 0's number; for a loop-back our own other port; for a
    VIRQ which one."""

    state: int
    vcpu: int = 0
    remote_dom: int = 0
    remote_port: int = 0


class EventChannels:
    """Every operation raises ``XenError`` with Xen's errno; none leaves anything half done."""

    def __init__(
        self, domid: int, vcpus: int, delivery: Delivery, changed: Callable[[], None] = lambda: None
    ) -> None:
        """``changed`` is called when :meth:`online` may say something new."""
        self._domid = domid
        self._vcpus = vcpus
        self._delivery = delivery
        self._changed = changed
        #: ports that there are; fewer for a 32-bit guest
        self.limit = EVTCHN_2L_NR_CHANNELS
        self._channels: dict[int, Channel] = {}
        self._free = list(range(1, EVTCHN_2L_NR_CHANNELS))  # a heap
        self._next_dom0_port = 1
        self._virqs: dict[tuple[int, int], int] = {}  # (virq, vCPU that it was bound to): port
        self._kept: set[int] = set()
        self._guest_up = False

    # -- for the guest

    def alloc_unbound(self, dom: int, remote_dom: int) -> int:
        check_self(dom, self._domid)
        return self._allocate(Channel(EVTCHNSTAT_unbound, remote_dom=self._real(remote_dom)))

    def bind_interdomain(self, remote_dom: int, remote_port: int) -> int:
        """The guest binds to somebody's port: only its own exist for it (a loop-back)."""
        if (dom := self._real(remote_dom)) != self._domid:
            errno = EINVAL if dom == DOM0 else ESRCH
            raise XenError(errno, f"domain {dom} has no port {remote_port} for this guest")
        remote = self._get(remote_port)
        if remote.state != EVTCHNSTAT_unbound or remote.remote_dom != self._domid:
            raise XenError(EINVAL, f"port {remote_port} is not unbound for this guest")
        port = self._allocate(Channel(EVTCHNSTAT_interdomain, 0, self._domid, remote_port))
        self._connect(port, self._delivery.raise_port)  # what was sent before anybody was there to hear it
        remote.state, remote.remote_port = EVTCHNSTAT_interdomain, port
        return port

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """VIRQ_TIMER is the vCPU's timer; the others exist, and never fire."""
        if virq >= NR_VIRQS or (virq not in _PER_VCPU and vcpu):
            raise XenError(EINVAL, f"there is no VIRQ {virq} on vCPU {vcpu}")
        self._check_vcpu(vcpu)
        if (virq, vcpu) in self._virqs:
            raise XenError(EEXIST, f"VIRQ {virq} of vCPU {vcpu} is bound")
        port = self._allocate(Channel(EVTCHNSTAT_virq, vcpu=vcpu, remote_port=virq))
        if virq == VIRQ_TIMER:
            self._connect(port, self._delivery.connect_timer)
        self._virqs[virq, vcpu] = port
        return port

    def bind_ipi(self, vcpu: int) -> int:
        self._check_vcpu(vcpu)
        ipis = (one for one in self._channels.values() if one.state == EVTCHNSTAT_ipi and one.vcpu == vcpu)
        if sum(1 for _ in ipis) >= IPIS_MAX:
            raise XenError(ENOSPC, f"vCPU {vcpu} has {IPIS_MAX} IPIs")
        port = self._allocate(Channel(EVTCHNSTAT_ipi, vcpu=vcpu))
        self._connect(port, self._delivery.connect_ipi)
        self._changed()
        return port

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        self._check_vcpu(vcpu)
        channel = self._get(port)
        if channel.state == EVTCHNSTAT_ipi or (
            channel.state == EVTCHNSTAT_virq and channel.remote_port in _PER_VCPU
        ):
            raise XenError(EINVAL, f"port {port} is an IPI or a VIRQ of its vCPU and stays there")
        channel.vcpu = vcpu
        self._delivery.retarget(port, vcpu)

    def close(self, port: int) -> None:
        self._get(port)
        self._close(port)

    def _close(self, port: int) -> None:
        channel = self._channels[port]
        self._delivery.disconnect(port)
        self._delivery.clear_pending(port)  # else whoever gets the number next has an event at once
        self._free_port(port)
        if channel.state == EVTCHNSTAT_interdomain and channel.remote_dom == self._domid:
            other = self._channels[channel.remote_port]
            other.state, other.remote_port = EVTCHNSTAT_unbound, 0
        elif channel.state == EVTCHNSTAT_virq:
            virq = channel.remote_port
            del self._virqs[virq, channel.vcpu if virq in _PER_VCPU else 0]
        elif channel.state == EVTCHNSTAT_ipi:
            self._changed()

    def send(self, port: int) -> None:
        """What the kernel does by itself for a connected port; loop-backs always come here."""
        channel = self._get(port)
        if channel.state == EVTCHNSTAT_ipi:
            self._delivery.raise_port(port, channel.vcpu)
        elif channel.state == EVTCHNSTAT_interdomain:
            if channel.remote_dom == self._domid:
                other = self._channels[channel.remote_port]
                self._delivery.raise_port(channel.remote_port, other.vcpu)
            else:
                self._delivery.kick(port)
        elif channel.state == EVTCHNSTAT_virq:
            raise XenError(EINVAL, f"port {port} is a VIRQ, which Xen sends")

    def status(self, dom: int, port: int) -> tuple[int, int, int, int]:
        """(state, vcpu, remote domid, remote port), for a VIRQ (state, vcpu, VIRQ, 0); a valid number not in
        use is closed (0)."""
        check_self(dom, self._domid)
        self._check_port(port)
        channel = self._channels.get(port)
        if channel is None:
            return 0, 0, 0, 0
        if channel.state == EVTCHNSTAT_virq:
            return channel.state, channel.vcpu, channel.remote_port, 0
        return channel.state, channel.vcpu, channel.remote_dom, channel.remote_port

    def unmask(self, port: int) -> None:
        """Not a no-op: the shim masks every port and counts on us to clear the bit and re-deliver."""
        self._check_port(port)
        channel = self._channels.get(port)
        self._delivery.unmask(port, channel.vcpu if channel else 0)

    def is_pending(self, port: int) -> bool:
        """Of any number that a port can have."""
        self._check_port(port)
        return self._delivery.is_pending(port)

    def reset(self, dom: int, let_others: Callable[[], None] = lambda: None) -> None:
        """Close all ports; those that are kept are as after the guest's start. ``let_others`` is called after
        each: domain 0 may bind and unbind meanwhile, the guest does nothing."""
        check_self(dom, self._domid)
        for port in list(self._channels):
            if port not in self._kept:
                self._close(port)
            else:
                channel = self._channels[port]
                if channel.vcpu:
                    channel.vcpu = 0
                    self._delivery.retarget(port, 0)
                self._delivery.clear_pending(port)
            let_others()

    # -- for Xen itself and domain 0

    def raise_virq(self, virq: int, vcpu: int) -> None:
        """Nothing if nobody has bound it."""
        if port := self._virqs.get((virq, vcpu)):
            self._delivery.raise_port(port, vcpu)

    def inject(self, port: int) -> None:
        """Raise the port, whoever is at the other end. Raises ``XenError`` EINVAL if it is closed."""
        self._delivery.raise_port(port, self._get(port).vcpu)

    def reserve(self) -> int:
        """A port, unbound for domain 0, that is there when the guest starts. It survives EVTCHNOP_reset
        (not a close): the guest could not make it anew."""
        port = self._take(Channel(EVTCHNSTAT_unbound, remote_dom=DOM0))
        self._kept.add(port)
        return port

    def is_bound(self, port: int) -> bool:
        """Whether the number is in use."""
        return port in self._channels

    def listing(self) -> list[tuple[int, Channel]]:
        return sorted(self._channels.items(), key=lambda item: item[0])

    def online(self) -> frozenset[int]:
        """The vCPUs that the guest sends IPIs to; it binds those when it takes a vCPU into use."""
        return frozenset(one.vcpu for one in self._channels.values() if one.state == EVTCHNSTAT_ipi)

    def bind_backend(self, port: int) -> int:
        """Domain 0 binds to a port that the guest (or the VMM for it) left unbound for it; domain 0's own
        number, which names this binding and no later one."""
        channel = self._get(port)
        if channel.state != EVTCHNSTAT_unbound or channel.remote_dom != DOM0:
            raise XenError(EINVAL, f"port {port} is not unbound for domain 0")
        self._delivery.connect(port, channel.vcpu)
        channel.state, channel.remote_port = EVTCHNSTAT_interdomain, self._next_dom0_port
        self._next_dom0_port += 1
        return channel.remote_port

    def unbind_backend(self, port: int, dom0_port: int) -> None:
        """Domain 0 closes its end: the guest's port is unbound again, as with Xen. Nothing happens if the
        guest has closed it before, and perhaps has got the same number anew."""
        channel = self._channels.get(port)
        if channel is None or channel.state != EVTCHNSTAT_interdomain:
            return
        if (channel.remote_dom, channel.remote_port) == (DOM0, dom0_port):
            self._delivery.disconnect(port)
            channel.state, channel.remote_port = EVTCHNSTAT_unbound, 0

    # -- helpers

    def _real(self, dom: int) -> int:
        return self._domid if dom == DOMID_SELF else dom

    def _check_vcpu(self, vcpu: int) -> None:
        if vcpu >= self._vcpus:
            raise XenError(ENOENT, f"there is no vCPU {vcpu}")

    def _check_port(self, port: int) -> None:
        if not 0 < port < self.limit:
            raise XenError(EINVAL, f"there is no port {port}")

    def _get(self, port: int) -> Channel:
        self._check_port(port)
        if port not in self._channels:
            raise XenError(EINVAL, f"port {port} is closed")
        return self._channels[port]

    def _allocate(self, channel: Channel) -> int:
        """For the guest. Its first one shows that it lives: a shim makes none of its own, and gives none an
        event to a guest that it is still making."""
        port = self._take(channel)
        if not self._guest_up:
            self._guest_up = True
            self._delivery.guest_up()
        return port

    def _take(self, channel: Channel) -> int:
        if not self._free or self._free[0] >= self.limit:
            raise XenError(ENOSPC, "all event channels are in use")
        port = heapq.heappop(self._free)
        self._channels[port] = channel
        return port

    def _connect(self, port: int, connect: Callable[[int, int], None]) -> None:
        """Or the port is not allocated after all."""
        try:
            connect(port, self._channels[port].vcpu)
        except BaseException:
            self._free_port(port)
            raise

    def _free_port(self, port: int) -> None:
        del self._channels[port]
        self._kept.discard(port)
        heapq.heappush(self._free, port)
