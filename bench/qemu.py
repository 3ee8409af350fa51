"""QEMU as a peer: which one, and its monitor."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import packages
from lab.paths import asset
from lab.progress import LabError

#: QEMU plays Xen since 8.0, its disks since 8.2
MIN = (8, 2)
#: what the monitor is asked where xenpvd is asked for daemon.ping
PING = "query-status"


def version(command: Sequence[str]) -> str:
    """As "10.0.2"; nothing if it cannot be run."""
    if not command or shutil.which(command[0]) is None:
        return ""
    said = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+\.[\d.]+)", said)
    return found[1] if found else ""


def find() -> tuple[str, ...]:
    """The command of a QEMU that can play Xen: this machine's own, or Debian's backport in the cache."""
    unpacked = asset("qemu", "usr")
    firmware = ("-L", f"{unpacked}/share/qemu", "-L", f"{unpacked}/share/seabios")
    for command in (("qemu-system-x86_64",), (f"{unpacked}/bin/qemu-system-x86_64", *firmware)):
        found = version(command)
        if found and tuple(int(part) for part in found.split(".")[:2]) >= MIN:
            return command
    return ()


def get() -> tuple[str, ...]:
    """As :func:`find`, fetched if there is none. Raises LabError."""
    if not (command := find()):
        packages.install(packages.LAB_PACKAGES)  # for its libraries
        packages.fetch((packages.QEMU,))
        command = find()
    if not command:
        raise LabError("cannot run the QEMU that was fetched. Run make setup REFRESH=1.")
    return command


class Monitor:
    """A client of QMP, with one command at a time."""

    def __init__(self, path: Path, limit: float = 30) -> None:
        """Waits until there is one. Raises OSError after ``limit`` seconds."""
        end = time.monotonic() + limit
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.001)
        self._file = self._socket.makefile("rb")
        self._file.readline()  # the greeting
        self._events: list[dict[str, Any]] = []
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: Any) -> Any:
        """Its return value. Raises RuntimeError with what QEMU says against it."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while "event" in (message := json.loads(self._file.readline())):
            self._events.append(message)
        if "error" in message:
            raise RuntimeError(f"{command}: {message['error']['desc']}")
        return message["return"]

    def expect(self, event: str, **data: Any) -> None:
        """Wait for an ``event`` with these data, since the last one that was waited for."""
        while True:
            while self._events:
                one = self._events.pop(0)
                if one["event"] == event and data.items() <= one.get("data", {}).items():
                    return
            self._events.append(json.loads(self._file.readline()))

    def close(self) -> None:
        self._file.close()
        self._socket.close()
