"""From the daemon's events to those of QMP: the names that programs written for QEMU wait for. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xenpvd.events import Event
from xenpvd.rpc.qmp.names import Names
from xenpvd.views import Runstate

#: What is translated.
NAMES = ("guest.state", "guest.crash", "guest.shutdown", "drive.removed")

Told = tuple[str, dict[str, Any]]

#: Why a life ended, as QEMU's ShutdownCause; and whether it was the guest's own doing
_CAUSES = {
    "poweroff": ("guest-shutdown", True),
    "reboot": ("guest-reset", True),
    "watchdog": ("guest-reset", True),
    "crash": ("guest-panic", True),
    "fault": ("guest-panic", True),
    "reset": ("host-qmp-system-reset", False),
    "destroyed": ("host-qmp-quit", False),
    "daemon ends": ("host-qmp-quit", False),
}


class Translator:
    """A life's end is told as RESET or SHUTDOWN once it is known what comes: the guest's policy decides."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._ended: str | None = None  # why

    def translate(self, event: Event) -> Iterator[Told]:
        data = event.data
        if event.name == "guest.state":
            yield from self._moved(data["from"], data["to"], data["reason"])
        elif event.name == "guest.crash" and data["reason"] != "watchdog":  # a hung guest did not panic
            yield "GUEST_PANICKED", {"action": "poweroff"}
        elif event.name == "guest.shutdown" and data["mode"] != "reboot":
            yield "POWERDOWN", {}
        elif event.name == "drive.removed":
            device = self._names.forget(data["vdev"])
            yield "DEVICE_DELETED", {"device": device.id, "path": device.path}

    def _moved(self, before: str, now: str, reason: str | None) -> Iterator[Told]:
        if now == Runstate.PAUSED and before == Runstate.RUNNING:
            yield "STOP", {}
        elif now == Runstate.RUNNING and before == Runstate.PAUSED:
            yield "RESUME", {}
        elif now == Runstate.STOPPING:
            self._ended = reason
        elif now == Runstate.STARTING and before == Runstate.STOPPING:
            yield "RESET", self._cause(reason)
        elif now in (Runstate.STOPPED, Runstate.CRASHED):
            self._names.forget_devices()  # they went with the VM
            if before in (Runstate.STOPPING, Runstate.STARTING):
                yield "SHUTDOWN", self._cause(reason)

    def _cause(self, reason: str | None) -> dict[str, Any]:
        ended, self._ended = self._ended or reason or "", None
        cause, guest = _CAUSES.get(ended, ("host-error", False))
        return {"guest": guest, "reason": cause}
