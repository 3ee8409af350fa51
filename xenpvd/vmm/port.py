"""A backend's end of an event channel, with whichever accelerator."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from xenpvd.errors import HostError


class BackendPort:
    """:class:`xenpvd.backends.ops.EvtchnPort`. ``raise_event`` reaches the guest, ``on_close`` the port
    table; the descriptors are closed with it."""

    def __init__(
        self,
        port: int,
        kick_fd: int,
        irq_fd: int | None,
        raise_event: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        self.port = port
        self.kick_fd = kick_fd
        #: None where events do not go through the kernel
        self.irq_fd = irq_fd
        self._raise_event = raise_event
        self._on_close = on_close
        self._closed = False
        self._lock = threading.Lock()  # else notify() could write into whatever has got the number since

    def notify(self) -> None:
        with self._lock:
            if not self._closed:
                self._raise_event()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._on_close()
        os.close(self.kick_fd)
        if self.irq_fd is not None:
            os.close(self.irq_fd)


def eventfd() -> int:
    """Raises :class:`HostError`."""
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as fault:
        raise HostError(
            f"cannot make an event channel: {fault.strerror}. Raise the limit on open files (ulimit -n).",
            fault.errno or 0,
            "eventfd",
        ) from None


def signal(fd: int) -> None:
    # full only after 2^64 - 2 unseen signals; then one more says nothing new
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
