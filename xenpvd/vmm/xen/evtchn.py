"""The event-channel ports of the guest: the 2-level ABI of include/public/event_channel.h, as a table.

The port space is flat: the shim hands its guest the very numbers we give it, and keeps a record for every
number up to the highest, so the lowest free one is always taken. Domain 0 is this process.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Protocol

from xenpvd.abi.event_channel import (
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
)
from xenpvd.abi.xen import DOMID_SELF, EINVAL, ENOENT, ENOSPC, EPERM, EVTCHN_2L_NR_CHANNELS
from xenpvd.errors import XenError

DOM0 = 0


class Delivery(Protocol):
    """How events travel; one implementation per accelerator. Never blocks."""

    def connect(self, port: int, vcpu: int) -> None:
        """From now on the guest's sends on ``port`` reach its backend, and the backend's reach ``vcpu``."""

    def connect_ipi(self, port: int, vcpu: int) -> None:
        """From now on sends on ``port`` raise the same port on ``vcpu``."""

    def retarget(self, port: int, vcpu: int) -> None:
        """Deliver ``port`` to another vCPU; raise it there if it is pending and not masked."""

    def disconnect(self, port: int) -> None:
        """Undo ``connect`` or ``connect_ipi``."""

    def kick(self, port: int) -> None:
        """Tell the port's backend; only needed where the kernel does not do it."""

    def raise_port(self, port: int, vcpu: int) -> None: ...

    def unmask(self, port: int, vcpu: int) -> None:
        """Clear the port's mask bit; if it is pending, deliver it."""

    def clear_pending(self, port: int) -> None: ...


@dataclass(slots=True)
class Channel:
    """One allocated port. ``remote_port`` is domain 0's number, or for a loop-back our own other port."""

    state: int
    vcpu: int = 0
    remote_dom: int = 0
    remote_port: int = 0


class EventChannels:
    """Every operation raises ``XenError`` with Xen's errno; none leaves anything half done."""

    def __init__(self, domid: int, vcpus: int, delivery: Delivery) -> None:
        self._domid = domid
        self._vcpus = vcpus
        self._delivery = delivery
        self._channels: dict[int, Channel] = {}
        self._free = list(range(1, EVTCHN_2L_NR_CHANNELS))  # a heap
        self._next_dom0_port = 1

    # -- for the guest

    def alloc_unbound(self, dom: int, remote_dom: int) -> int:
        self._check_self(dom)
        return self._allocate(Channel(EVTCHNSTAT_unbound, remote_dom=self._real(remote_dom)))

    def bind_interdomain(self, remote_dom: int, remote_port: int) -> int:
        """The guest binds to somebody's port: only its own exist for it (a loop-back)."""
        if self._real(remote_dom) != self._domid:
            raise XenError(EINVAL, f"domain {remote_dom} has no port {remote_port} for this guest")
        remote = self._get(remote_port)
        if remote.state != EVTCHNSTAT_unbound or remote.remote_dom != self._domid:
            raise XenError(EINVAL, f"port {remote_port} is not unbound for this guest")
        port = self._allocate(Channel(EVTCHNSTAT_interdomain, 0, self._domid, remote_port))
        remote.state, remote.remote_port = EVTCHNSTAT_interdomain, port
        return port

    def bind_ipi(self, vcpu: int) -> int:
        self._check_vcpu(vcpu)
        port = self._allocate(Channel(EVTCHNSTAT_ipi, vcpu=vcpu))
        try:
            self._delivery.connect_ipi(port, vcpu)
        except BaseException:
            self._free_port(port)
            raise
        return port

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        self._check_vcpu(vcpu)
        channel = self._get(port)
        if channel.state == EVTCHNSTAT_ipi:
            raise XenError(EINVAL, f"port {port} is an IPI and stays on its vCPU")
        channel.vcpu = vcpu
        self._delivery.retarget(port, vcpu)

    def close(self, port: int) -> None:
        channel = self._get(port)
        self._delivery.disconnect(port)
        self._delivery.clear_pending(port)  # else whoever gets the number next has an event at once
        self._free_port(port)
        if channel.state == EVTCHNSTAT_interdomain and channel.remote_dom == self._domid:
            other = self._channels[channel.remote_port]
            other.state, other.remote_port = EVTCHNSTAT_unbound, 0

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

    def status(self, dom: int, port: int) -> tuple[int, int, int, int]:
        """(state, vcpu, remote domid, remote port); a valid number not in use is closed (0)."""
        self._check_self(dom)
        self._check_port(port)
        channel = self._channels.get(port)
        if channel is None:
            return 0, 0, 0, 0
        return channel.state, channel.vcpu, channel.remote_dom, channel.remote_port

    def unmask(self, port: int) -> None:
        """Not a no-op: the shim masks every port and counts on us to clear the bit and re-deliver."""
        self._check_port(port)
        channel = self._channels.get(port)
        self._delivery.unmask(port, channel.vcpu if channel else 0)

    def reset(self, dom: int) -> None:
        self._check_self(dom)
        for port in list(self._channels):
            self.close(port)

    # -- for domain 0

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

    def _check_self(self, dom: int) -> None:
        if self._real(dom) != self._domid:
            raise XenError(EPERM, f"domain {dom} is not the caller")

    def _check_vcpu(self, vcpu: int) -> None:
        if vcpu >= self._vcpus:
            raise XenError(ENOENT, f"there is no vCPU {vcpu}")

    @staticmethod
    def _check_port(port: int) -> None:
        if not 0 < port < EVTCHN_2L_NR_CHANNELS:
            raise XenError(EINVAL, f"there is no port {port}")

    def _get(self, port: int) -> Channel:
        self._check_port(port)
        if port not in self._channels:
            raise XenError(EINVAL, f"port {port} is closed")
        return self._channels[port]

    def _allocate(self, channel: Channel) -> int:
        if not self._free:
            raise XenError(ENOSPC, "all event channels are in use")
        port = heapq.heappop(self._free)
        self._channels[port] = channel
        return port

    def _free_port(self, port: int) -> None:
        del self._channels[port]
        heapq.heappush(self._free, port)
