"""xenpvctl in a terminal of its own (a pty), driven by a test."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: sys.executable may be a fake daemon's by now.
PYTHON = sys.executable

MAIN = "import sys; sys.executable = sys.argv.pop(1); from xenpvd.ctl.cli import main; main()"


class Session:
    """One run. ``seen`` is what the terminal showed so far."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, slave: int) -> None:
        self.process = process
        self._master, self._slave = master, slave
        self.before = termios.tcgetattr(slave)
        self.seen = ""

    @property
    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def reset(self) -> None:
        """As a shell does with it."""
        termios.tcsetattr(self._slave, termios.TCSANOW, self.before)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def expect(self, text: str, timeout: float = 10.0) -> None:
        """Read on until ``text`` comes, behind what was expected before."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += re.sub(r"\r+\n", "\n", os.read(self._master, 65536).decode(errors="replace"))
        self.seen = self.seen.partition(text)[2]

    def end(self) -> int:
        """The exit status, reading on so that nothing blocks; the terminal must be as it was."""
        while self.process.poll() is None:
            if select.select([self._master], [], [], 0.02)[0]:
                self.seen += os.read(self._master, 65536).decode(errors="replace")
        assert self.attributes == self.before, "the terminal is as before"
        return self.process.returncode


class Terminal:
    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    @contextlib.contextmanager
    def __call__(self, *args: str) -> Iterator[Session]:
        master, slave = pty.openpty()
        command = [PYTHON, "-c", MAIN, sys.executable, "--run-dir", str(self._run_dir), *args]
        process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        try:
            with process:
                try:
                    yield Session(process, master, slave)
                finally:
                    process.kill()
        finally:
            os.close(master)
            os.close(slave)


@contextlib.contextmanager
def late_signal() -> Iterator[None]:
    """SIGTERM comes, but Python has already looked, and looks again behind the block."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def at_once(process: subprocess.Popen[Any], *signals: signal.Signals) -> None:
    """It finds them all when it looks for one."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    for signum in signals:
        process.send_signal(signum)
    process.send_signal(signal.SIGCONT)
