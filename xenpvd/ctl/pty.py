"""A guest's console as a pty, for programs that want a terminal's path: minicom, screen, conserver."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
import tty
from collections.abc import Callable
from pathlib import Path

from xenpvd.ctl.console import TYPED_MAX, ended_by_signals
from xenpvd.ctl.output import Failure

#: Seconds between two looks whether somebody has opened it: the kernel tells nobody
LOOK = 0.1
#: Bytes that wait for who has opened it; of one who only writes the oldest are dropped
SHOWN_MAX = 1 << 20
#: Seconds that the daemon has to take what was typed before a close
GRACE = 2.0

#: A console's connection, and what came on it already
Attach = Callable[[], tuple[socket.socket, bytes]]


def serve(link: Path, attach: Attach, told: Callable[[str], None]) -> None:
    """Keep ``link`` pointing at a new pty, and whoever opens that at a console of their own. ``told`` gets
    the pty's path.

    Returns when a console was ended at its other side. Signals end it as SystemExit. Raises :class:`Failure`
    if there is something else at ``link``.
    """
    master, slave = os.openpty()
    path = os.ttyname(slave)
    tty.setraw(slave)  # who opens it may change that; it stays so for the next one
    os.close(slave)
    os.set_blocking(master, False)
    with ended_by_signals():
        try:
            _point(link, path)
            told(path)
            while _Opening(master, attach).serve():
                pass
        finally:
            os.close(master)
            if link.is_symlink() and str(link.readlink()) == path:
                link.unlink()


class _Opening:
    """From the first open of the pty to the last close: one viewer. Neither side is waited for."""

    def __init__(self, master: int, attach: Attach) -> None:
        self._master = master
        self._attach = attach
        self._shown = bytearray()
        self._typed = bytearray()

    def serve(self) -> bool:
        """False if the daemon, or somebody there, has ended the viewer."""
        poller = select.poll()
        poller.register(self._master, select.POLLIN)
        while dict(poller.poll(0)).get(self._master, 0) == select.POLLHUP:
            time.sleep(LOOK)
        sock, pending = self._attach()
        self._shown += pending
        with contextlib.closing(sock):
            sock.setblocking(False)
            while True:
                poller.register(self._master, self._events(len(self._typed) < TYPED_MAX, self._shown))
                poller.register(sock, self._events(True, self._typed))
                ready = dict(poller.poll())
                if not self._serve_guest(sock, ready.get(sock.fileno(), 0)):
                    return False
                if not self._serve_terminal(ready.get(self._master, 0)):
                    sock.settimeout(GRACE)
                    with contextlib.suppress(OSError):
                        sock.sendall(self._typed)
                    return True

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
                del self._shown[:-SHOWN_MAX]
        except BlockingIOError:
            pass
        except ConnectionError:
            return False
        return True

    def _serve_terminal(self, events: int) -> bool:
        """False once it is closed everywhere, and what was typed before is taken."""
        try:
            if events & select.POLLOUT:
                del self._shown[: os.write(self._master, self._shown)]
            if events & ~select.POLLOUT:
                self._typed += os.read(self._master, 4096)
        except BlockingIOError:
            pass
        except OSError:  # EIO
            return False
        return True


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
