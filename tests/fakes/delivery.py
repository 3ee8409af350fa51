"""FakeDelivery: notes what the event-channel table asks for; fits ``vmm.xen.evtchn.Delivery``."""

from __future__ import annotations


class FakeDelivery:
    """``calls`` has every call as a tuple; ``connected`` the ports that reach domain 0, an IPI's vCPU or a
    timer."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.connected: dict[int, int] = {}
        self.fault: Exception | None = None
        self.pending: set[int] = set()
        self.masked: set[int] = set()
        self.guests_up = 0

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        if self.fault is not None:
            raise self.fault

    def guest_up(self) -> None:
        self.guests_up += 1

    def connect(self, port: int, vcpu: int) -> None:
        assert port not in self.connected, "KVM would say EEXIST"
        self._note("connect", port, vcpu)
        self.connected[port] = vcpu

    def connect_ipi(self, port: int, vcpu: int) -> None:
        assert port not in self.connected, "KVM would say EEXIST"
        self._note("connect_ipi", port, vcpu)
        self.connected[port] = vcpu

    def connect_timer(self, port: int, vcpu: int) -> None:
        assert port not in self.connected
        self._note("connect_timer", port, vcpu)
        self.connected[port] = vcpu

    def retarget(self, port: int, vcpu: int) -> None:
        self._note("retarget", port, vcpu)

    def disconnect(self, port: int) -> None:
        self._note("disconnect", port)
        self.connected.pop(port, None)

    def kick(self, port: int) -> None:
        self._note("kick", port)

    def raise_port(self, port: int, vcpu: int) -> None:
        self._note("raise", port, vcpu)
        self.pending.add(port)

    def unmask(self, port: int, vcpu: int) -> None:
        self._note("unmask", port, vcpu)
        self.masked.discard(port)

    def clear_pending(self, port: int) -> None:
        self._note("clear", port)
        self.pending.discard(port)

    def is_pending(self, port: int) -> bool:
        return port in self.pending

    def is_masked(self, port: int) -> bool:
        return port in self.masked
