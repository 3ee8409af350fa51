"""Event channels without Xen: a pair of eventfds a port, with the guest's end within reach."""

from __future__ import annotations

import asyncio
import contextlib
import os

from xenpvd.errors import HostError, XenError
from xenpvd.vmm.port import eventfd

EINVAL = 22


class FakeEvtchnPort:
    """Fits ``backends.ops.EvtchnPort``; the ``guest_*`` methods are the guest's end. Close it after use."""

    def __init__(self, port: int = 1) -> None:
        self.port = port
        self.kick_fd = eventfd()
        try:
            self.irq_fd = eventfd()
        except HostError:
            os.close(self.kick_fd)
            raise
        self.closed = False
        self.notified = 0

    def notify(self) -> None:
        self.notified += 1
        if not self.closed:
            with contextlib.suppress(BlockingIOError):  # as vmm/port.py
                os.eventfd_write(self.irq_fd, 1)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self.kick_fd)
            os.close(self.irq_fd)

    def guest_kick(self) -> None:
        """The guest sends on its port."""
        os.eventfd_write(self.kick_fd, 1)

    def guest_pending(self) -> bool:
        """Has the backend notified since the last time this, or :meth:`guest_wait`, was asked?"""
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self.irq_fd) > 0
        return False

    async def guest_wait(self) -> None:
        """Wait for the backend's notify; raises TimeoutError after 5 seconds."""
        loop = asyncio.get_running_loop()
        raised = asyncio.Event()
        loop.add_reader(self.irq_fd, raised.set)
        try:
            async with asyncio.timeout(5):
                await raised.wait()
        finally:
            loop.remove_reader(self.irq_fd)
        self.guest_pending()


class FakeEvtchnOps:
    """Fits ``backends.ops.EvtchnOps``: the guest ``alloc_unbound``s a port, a backend binds to it."""

    def __init__(self) -> None:
        self._unbound: set[int] = set()
        self._next = 1
        self.ports: dict[int, FakeEvtchnPort] = {}

    def alloc_unbound(self) -> int:
        port, self._next = self._next, self._next + 1
        self._unbound.add(port)
        return port

    def bind_interdomain(self, remote_port: int) -> FakeEvtchnPort:
        if remote_port not in self._unbound:
            raise XenError(EINVAL, f"port {remote_port} is not unbound for domain 0")
        self.ports[remote_port] = FakeEvtchnPort(remote_port)
        self._unbound.remove(remote_port)
        return self.ports[remote_port]

    def close(self) -> None:
        """Close every port that was ever bound."""
        for port in self.ports.values():
            port.close()
