"""Starts a daemon in the background and waits for its READY=1 (sd_notify(3)), without polling."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

from xenpvd.ctl.rundir import RunDir
from xenpvd.paths import open_regular

TAIL_LINES = 15
#: Seconds for which others who tidy up keep us from a log at most
TIDYING = 2.0


class NotReady(Exception):
    """The daemon ended before it was ready: ``status`` is its exit status, None if it was too late."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class Launched:
    """A daemon that was started here. Its output goes to RUN_DIR/NAME/xenpvd.log, which those that are
    started at the same time share: each holds a lock on it (flock(2), shared) until it has ended, and who
    started it until :meth:`close`."""

    def __init__(self, place: RunDir, name: str, config: Path, *options: str) -> None:
        """Start it, in a session of its own, with the working directory kept: relative paths in ``config``
        mean the same as for a daemon in the foreground. ``options`` are more of its own. Raises OSError."""
        self.name = name
        self._place = place
        self.log = place.log(name)
        place.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._log = self._open_log()
        self._log_begin = os.fstat(self._log).st_size
        self._status: int | None = None
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._ready.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._ready.bind("")  # the kernel chooses an abstract name (unix(7), autobind)
            argv = [sys.executable, "-P", "-m", "xenpvd", "--config", str(config), "--name", name]
            self.pid = self._spawn([*argv, "--run-dir", str(place.path), *options])
            self._pidfd = os.pidfd_open(self.pid)
        except BaseException:
            self._ready.close()
            os.close(self._log)
            raise

    def _open_log(self) -> int:
        deadline = time.monotonic() + TIDYING
        while True:
            try:
                self.log.parent.mkdir(mode=0o750, exist_ok=True)
                log = open_regular(self.log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
            except (FileNotFoundError, FileExistsError):  # the folder was tidied away between two of these
                if time.monotonic() > deadline:
                    raise
            else:
                with suppress(BlockingIOError):  # of who removes it
                    fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    if os.fstat(log).st_nlink:
                        return log
                if time.monotonic() > deadline:
                    return log  # somebody locks it who should not
                os.close(log)
            time.sleep(0.01)  # nobody tells when they are done

    def _spawn(self, argv: list[str]) -> int:
        address = os.fsdecode(self._ready.getsockname()[1:])
        try:
            return os.posix_spawn(
                argv[0],
                argv,
                {**os.environ, "NOTIFY_SOCKET": f"@{address}"},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self._log, 1),
                    (os.POSIX_SPAWN_DUP2, self._log, 2),
                ],
                setsid=True,
            )
        except OSError:
            self._place.tidy(self.name, self.spare_log())
            raise

    def wait_ready(self, timeout: float) -> None:
        """Raises :class:`NotReady`; a daemon that is late is ended."""
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._ready, select.POLLIN)
        poller.register(self._pidfd, select.POLLIN)
        while True:
            ready = dict(poller.poll(max(0, (deadline - time.monotonic()) * 1000)))
            if self._ready.fileno() in ready:
                if self._said_ready():
                    return
            elif self._pidfd in ready:
                status = self.wait()
                raise NotReady(f"{self.name} did not start:\n{self.tail()}", status)
            elif not ready:
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
                raise NotReady(
                    f"{self.name} was not ready after {timeout:g} s and was ended:\n{self.tail()}", None
                )

    def _said_ready(self) -> bool:
        size = struct.calcsize("iii")
        data, ancillary, _, _ = self._ready.recvmsg(4096, socket.CMSG_SPACE(size))
        pids = [
            struct.unpack("iii", cred[:size])[0]
            for _, kind, cred in ancillary
            if kind == socket.SCM_CREDENTIALS
        ]
        return b"READY=1" in data.split(b"\n") and pids == [self.pid]

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit status, waiting for it; negative for a signal, None if it still runs after ``timeout``."""
        if self._status is None and select.select([self._pidfd], [], [], timeout)[0]:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def end(self, timeout: float) -> int | None:
        """SIGTERM, and SIGKILL if it does not heed that."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if self.wait(0) is None:
                signal.pidfd_send_signal(self._pidfd, signum)
                self.wait(timeout)
        return self._status

    def close(self) -> None:
        """Let go of it; it goes on."""
        self._ready.close()
        os.close(self._pidfd)
        os.close(self._log)

    def tail(self) -> str:
        """The last lines that this daemon wrote, and where there are more."""
        lines = self._lines()
        if not lines:
            return f"(it said nothing; see {self.log})"
        more = [f"(the last lines of {self.log})"] if len(lines) > TAIL_LINES else []
        return "\n".join([*more, *lines[-TAIL_LINES:]])

    def spare_log(self, told: bool = False) -> list[Path]:
        """The log of a daemon that has ended, for :meth:`RunDir.tidy` before :meth:`close`: only if it has no
        more than :meth:`tail` tells, nor anything of an earlier daemon, or if all was ``told``; and not while
        another one writes to it."""
        if not told and (self._log_begin or len(self._lines()) > TAIL_LINES):
            return []
        with suppress(OSError):
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(self.log.lstat(), os.fstat(self._log)):
                return [self.log]
        return []

    def _lines(self) -> list[str]:
        """Also if the log is no longer in its place."""
        size = os.fstat(self._log).st_size - self._log_begin
        return os.pread(self._log, max(0, size), self._log_begin).decode(errors="replace").splitlines()
