"""What the daemon tells the supervisor that started it, by sd_notify(3): readiness, a line of status, and
that all is well. Without NOTIFY_SOCKET nobody wants to know, and nothing is sent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Seconds that a supervisor has to take READY=1.
READY_LIMIT = 10.0

#: Why something of ours does not work any more, None if all does; it is given the seconds that one piece of
#: work may take.
Fault = Callable[[float], str | None]


class Supervisor:
    """Never fails: the guest comes first."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._status = ""
        address = os.environ.get("NOTIFY_SOCKET", "")
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            with contextlib.suppress(OSError):
                self._socket.connect("\0" + address[1:] if address[0] == "@" else address)

    def notify(self, *lines: str) -> None:
        """One message; lost if the supervisor is gone, or takes no more just now."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send("\n".join(lines).encode())

    def status(self, text: str) -> None:
        """What ``systemctl status`` shows; told when it is another one."""
        text = " ".join(text.split())  # a message's lines are commands
        if text != self._status:
            self._status = text
            self.notify(f"STATUS={text}")

    async def ready(self) -> None:
        """READY=1. This one must not be lost, so a supervisor that is busy is waited for."""
        if self._socket is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(READY_LIMIT):
                    await asyncio.get_running_loop().sock_sendall(self._socket, b"READY=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    async def watchdog(self, fault: Fault) -> None:
        """WATCHDOG=1 twice in the time that the supervisor gives (WATCHDOG_USEC), as long as this loop turns
        and ``fault`` finds none. Returns at once if no supervisor watches this process."""
        period = watchdog_period()
        while period and self._socket is not None:
            why = fault(period)
            if why is None:
                self.notify("WATCHDOG=1")
            else:
                log.error("%s: the watchdog is not told that all is well", why)
            await asyncio.sleep(period)


def watchdog_period() -> float:
    """Half of WATCHDOG_USEC, in seconds; 0 if there is none, or it is meant for another process."""
    try:
        period = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        meant = int(os.environ.get("WATCHDOG_PID") or os.getpid()) == os.getpid()
    except ValueError:
        return 0.0
    return period if meant and period > 0 else 0.0
