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

from xenpvd.ctl.console import End, carry, ended_by_signals
from xenpvd.ctl.output import Failure

#: Seconds between two looks whether somebody has opened it: the kernel tells nobody
LOOK = 0.1


def serve(link: Path, attach: Callable[[], tuple[socket.socket, bytes]], told: Callable[[str], None]) -> None:
    """Keep ``link`` pointing at a new pty, and whoever opens that at what ``attach`` gives: a console's
    connection, and what came on it already. ``told`` gets the pty's path.

    Returns when a connection was ended at its other side. Signals end it as SystemExit. Raises
    :class:`Failure` if there is something else at ``link``.
    """
    master, slave = os.openpty()
    path = os.ttyname(slave)
    os.close(slave)
    with ended_by_signals():
        try:
            _point(link, path)
            told(path)
            while _serve_one(master, attach) is not End.CLOSED:
                pass
        finally:
            os.close(master)
            if link.is_symlink() and str(link.readlink()) == path:
                link.unlink()


def _serve_one(master: int, attach: Callable[[], tuple[socket.socket, bytes]]) -> End:
    """One opening of the pty, until it is closed everywhere: a viewer of its own."""
    poller = select.poll()
    poller.register(master, select.POLLIN)
    while dict(poller.poll(0)).get(master, 0) == select.POLLHUP:
        time.sleep(LOOK)
    tty.setraw(master)  # the last close of a pty makes its settings those of a new one
    sock, pending = attach()
    with contextlib.closing(sock):
        try:
            return carry(sock, pending, master, master)
        except OSError:  # EIO: it was closed with something on the way there
            return End.INPUT


def _point(link: Path, path: str) -> None:
    if link.exists() and not link.is_symlink():
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
