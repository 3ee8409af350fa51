"""A guest's console as a pty, for programs that want a terminal's path: minicom, screen, conserver."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path

from xenpvd.ctl.console import TICK, TYPED_MAX, ended_by_signals
from xenpvd.ctl.output import Failure

#: Seconds between two looks whether somebody has opened it: the kernel tells nobody
LOOK = 0.1
#: Bytes that wait for who has opened it; of one who only writes the oldest are dropped
SHOWN_MAX = 1 << 20
#: Seconds that the daemon has to take what was typed before a close
GRACE = 2.0
#: Seconds between two looks whether it has
GLANCE = 0.01

#: A console's connection, and what came on it already
Attach = Callable[[], tuple[socket.socket, bytes]]
#: Waits so many seconds; True as soon as the daemon has left
Gone = Callable[[float], bool]


def serve(link: Path, attach: Attach, gone: Gone, told: Callable[[str], None]) -> None:
    """Keep ``link`` pointing at a new pty, and whoever opens that at a console of their own. ``told`` gets
    the pty's path.

    Returns when a console was ended at its other side, or the daemon is gone. Signals end it as SystemExit.
    Raises :class:`Failure` if there is something else at ``link``.
    """
    master, slave = os.openpty()
    path = os.ttyname(slave)
    os.close(slave)
    os.set_blocking(master, False)
    with ended_by_signals():
        try:
            _point(link, path)
            told(path)
            while _opened(master, path, gone) and _Opening(master, attach).serve():
                pass
        finally:
            os.close(master)
            if link.is_symlink() and str(link.readlink()) == path:
                link.unlink()


def _opened(master: int, path: str, gone: Gone) -> bool:
    """Wait until somebody opens it, and finds it as a new one; False if the daemon ends before."""
    slave = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        termios.tcflush(slave, termios.TCIFLUSH)  # what the one before has not read
        tty.setraw(slave, termios.TCSANOW)
    finally:
        os.close(slave)
    poller = select.poll()
    poller.register(master, select.POLLIN)
    while dict(poller.poll(0)).get(master, 0) == select.POLLHUP:
        if gone(LOOK):
            return False
    return True


class _Opening:
    """From the first open of the pty to the last close: one viewer. Neither side is waited for."""

    def __init__(self, master: int, attach: Attach) -> None:
        self._master = master
        self._attach = attach
        self._shown = bytearray()
        self._lost = 0  # of that, and not told yet
        self._typed = bytearray()

    def serve(self) -> bool:
        """False if the daemon, or somebody there, has ended the viewer."""
        poller = select.poll()
        sock, pending = self._attach()
        self._shown += pending
        with contextlib.closing(sock):
            sock.setblocking(False)
            while True:
                poller.register(self._master, self._events(len(self._typed) < TYPED_MAX, self._shown))
                poller.register(sock, self._events(True, self._typed))
                ready = dict(poller.poll(TICK * 1000))
                if not self._serve_guest(sock, ready.get(sock.fileno(), 0)):
                    return False
                if not self._serve_terminal(ready.get(self._master, 0)):
                    self._hand_in(sock)
                    return True

    def _hand_in(self, sock: socket.socket) -> None:
        """The last keys. A socket that is closed with bytes unread takes along what it has sent: so until the
        daemon has read them, and no longer, as somebody may have opened the terminal anew."""
        sock.settimeout(GRACE)
        with contextlib.suppress(OSError):
            sock.sendall(self._typed)
            sock.shutdown(socket.SHUT_WR)
            until, more = time.monotonic() + GRACE, True
            sock.settimeout(GLANCE)
            while more and _is_unread(sock) and time.monotonic() < until:
                with contextlib.suppress(TimeoutError):
                    more = bool(sock.recv(65536))

    def _events(self, reads: bool, out: bytearray) -> int:
        return (select.POLLIN if reads else 0) | (select.POLLOUT if out else 0)

    def _serve_guest(self, sock: socket.socket, events: int) -> bool:
        try:
            if events & select.POLLOUT:
                del self._typed[: sock.send(self._typed)]
            if events & ~select.POLLOUT:
                data = sock.recv(65536)
                if not data:
                    return False
                self._shown += data
                if (lost := len(self._shown) - SHOWN_MAX) > 0:
                    del self._shown[:lost]
                    self._lost += lost
        except BlockingIOError:
            pass
        except ConnectionError:
            return False
        return True

    def _serve_terminal(self, events: int) -> bool:
        """False once it is closed everywhere, and what was typed before is taken."""
        try:
            if events & select.POLLOUT:
                if self._lost:
                    self._shown[:0] = b"\r\n[%d bytes were not read in time]\r\n" % self._lost
                    self._lost = 0
                del self._shown[: os.write(self._master, self._shown)]
            if events & ~select.POLLOUT:
                self._typed += os.read(self._master, 4096)
        except BlockingIOError:
            pass
        except OSError:  # EIO
            return False
        return True


def _is_unread(sock: socket.socket) -> bool:
    """Its peer has not read all that was sent."""
    return any(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))


def _point(link: Path, path: str) -> None:
    if link.is_symlink():
        before = link.readlink()
        if before.parent != Path(path).parent or (before.exists() and str(before) != path):
            raise Failure(f"cannot make {link} a link to {path}: it is one to {before}. Choose another name.")
    elif link.exists():
        raise Failure(f"cannot make {link} a link to {path}: there is something else. Choose another name.")
    new = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        new.symlink_to(path)
        new.replace(link)
    except OSError as fault:
        with contextlib.suppress(OSError):
            new.unlink()
        raise Failure(
            f"cannot make {link} a link to {path}: {fault.strerror}. Choose another name."
        ) from None
