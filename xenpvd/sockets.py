"""Unix sockets that appear whole: whoever finds one can connect to it. And who it was."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from xenpvd.errors import HostError

log = logging.getLogger(__name__)

BACKLOG = 64

#: asm-generic/socket.h; Python has no name for it
SO_PEERGROUPS = 59


def listen(path: Path, mode: int = 0o660) -> socket.socket:
    """A unix stream socket bound by another name, given its ``mode``, listening, and only then renamed to
    ``path``. A socket there that nobody serves any more is replaced; nothing else is. Raises
    :class:`HostError`."""
    new = path.parent / f".{secrets.token_hex(4)}"
    if max(len(os.fsencode(path)), len(os.fsencode(new))) > 107:
        why = f"cannot listen at {path}: a socket's path has at most 107 bytes. Choose a shorter one."
        raise HostError(why, errno.ENAMETOOLONG, str(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _check_free(path)
        sock.bind(str(new))
        new.chmod(mode)
        sock.listen(BACKLOG)
        new.rename(path)
    except OSError as fault:
        sock.close()
        new.unlink(missing_ok=True)
        why = f"cannot listen at {path}: {fault.strerror}. Check the directory, or choose another name."
        raise HostError(why, fault.errno or 0, str(path)) from None
    sock.setblocking(False)
    return sock


def _check_free(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is something else of that name")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(str(path)) in (0, errno.EAGAIN):
            raise OSError(errno.EADDRINUSE, "somebody serves there")


class Credentials(NamedTuple):
    """Who is at the other end, as of its connect()."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]

    def __str__(self) -> str:
        return f"uid {self.uid}, pid {self.pid}"


def credentials(of: asyncio.BaseTransport | socket.socket) -> Credentials:
    """Of a unix socket's peer."""
    sock = of if isinstance(of, socket.socket) else of.get_extra_info("socket")
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)  # as much as Python takes
    except OSError:  # more than 256
        log.warning("pid %d, uid %d is in too many groups: only its first one, %d, counts", pid, uid, gid)
        groups = b""
    return Credentials(pid, uid, gid, struct.unpack(f"{len(groups) // 4}I", groups))
