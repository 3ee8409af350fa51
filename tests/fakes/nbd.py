"""An NBD server of a raw file, on a unix socket, that can hang, go, and come back with another file."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path


class NbdServer:
    def __init__(self, raw: Path) -> None:
        self.raw, self._socket = raw, raw.with_suffix(".sock")
        self.target = f"nbd+unix:///it?socket={self._socket}"
        self.pid: int | None = None

    def start(self) -> None:
        pid_file = self.raw.with_suffix(".pid")
        words = ["qemu-nbd", "-f", "raw", "-k", f"{self._socket}", "-t", "-e", "8", "-x", "it", "--fork"]
        subprocess.run([*words, "--pid-file", pid_file, self.raw], check=True)
        self.pid = int(pid_file.read_text())

    def hang(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """At once, as by a power cut."""
        if self.pid is None:
            return
        ended = os.pidfd_open(self.pid)
        self._signal(signal.SIGKILL)
        select.select([ended], [], [], 5)
        os.close(ended)
        self._socket.unlink()
        self.pid = None

    def _signal(self, number: signal.Signals) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)
